"""The progress of long work, on stderr."""

import functools
import io
import sys
import threading
import time
from typing import Any

from deepemd_jax.utils import terminal

_REDRAW = 0.2  # seconds between two updates of a bar
_SIGN_OF_LIFE = 20.0  # seconds between two lines if there is no terminal
_BAR = (
  "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
  "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
)
_LINE = (
  "{desc}: {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"
)


@functools.cache
def _bar_class():
  # Imported here, because --help does not need it.
  from tqdm import std

  class Bar(std.tqdm):
    monitor_interval = 0  # no thread that watches the bars

  # tqdm's own lock is shared with other processes and starts a helper process
  # on some systems. It is not needed, because only this process draws.
  Bar.set_lock(threading.RLock())
  return Bar


class Progress:
  """A progress display: a bar on a terminal, else a line every 20 seconds.

      with Progress() as progress:
        for done, image in enumerate(images):
          progress("images", done, len(images), loss=0.3)

  The rate and the time left count from the first call with a name, so that
  they are right after a resume. After `terminal.silence` nothing is shown.
  """

  def __init__(self, stream=None) -> None:
    """Makes a display that shows nothing yet.

    Args:
      stream: the stream to write to; None is stderr.
    """
    self._stream = stream or sys.stderr
    self._on_terminal = self._stream.isatty()
    self._interval = _REDRAW if self._on_terminal else _SIGN_OF_LIFE
    self._bar: Any = None
    self._name: str | None = None
    self._scalars: dict[str, float] = {}
    self._shown = time.monotonic()  # when the last line was written

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def __call__(
    self, name: str, done: int, total: int, **scalars: float
  ) -> None:
    """Notes the progress, and shows it if the display is due for an update.

    Args:
      name: what is counted, such as "images" or a training stage. Another name
        ends the bar and begins a new one. "bytes" are shown as MB and GB.
      done: how many are done.
      total: how many there are in total.
      **scalars: numbers to show behind the bar.
    """
    if self._note(name, done, total, scalars) and self._is_due():
      self._show()

  def stay(self, name: str, done: int, total: int, **scalars: float) -> None:
    """Notes the progress, and always shows it, as a line that stays."""
    if self._note(name, done, total, scalars):
      self.line(self.text())

  def _note(self, name: str, done: int, total: int, scalars: dict) -> bool:
    """Notes the progress; returns whether it may be shown."""
    if terminal.is_silent():
      return False
    if name != self._name or self._bar is None:
      self._begin(name, done, total)
    self._bar.n, self._bar.total, self._scalars = done, total, scalars
    return True

  def _is_due(self) -> bool:
    return time.monotonic() - self._shown >= self._interval

  def _begin(self, name: str, done: int, total: int) -> None:
    self.close()
    self._name = name
    # tqdm always draws. Without a terminal it draws to a buffer, and `_show`
    # prints its text.
    self._bar = _bar_class()(
      desc=name,
      initial=done,
      total=total,
      unit="B" if name == "bytes" else "",
      unit_scale=name == "bytes",
      bar_format=_BAR if self._on_terminal else _LINE,
      file=self._stream if self._on_terminal else io.StringIO(),
      dynamic_ncols=True,
    )

  def _show(self) -> None:
    self._shown = time.monotonic()
    if self._on_terminal:
      self._bar.set_postfix_str(_joined(self._scalars))
    else:
      self._write(self.text())

  def text(self) -> str:
    """Returns the last progress as a line without a bar; "" if none."""
    if self._bar is None:
      return ""
    values = self._bar.format_dict | {
      "bar_format": _LINE,
      "postfix": _joined(self._scalars),
    }
    # tqdm pads the rate with spaces.
    return " ".join(self._bar.format_meter(**values).split())

  def line(self, text: str) -> None:
    """Writes a line that stays, above the bar."""
    if terminal.is_silent():
      return
    self._shown = time.monotonic()
    bar = self._bar if self._on_terminal else None
    if bar is not None:
      bar.clear()
    self._write(text)
    if bar is not None:
      bar.refresh()

  def log(self, text: str) -> None:
    """Writes a line if there is no terminal, on which the bar is enough."""
    if not self._on_terminal:
      self.line(text)

  def _write(self, text: str) -> None:
    self._stream.write(text + "\n")
    self._stream.flush()

  def close(self) -> None:
    """Ends the bar. It stays visible, and the next line is below it."""
    if self._bar is not None:
      if self._on_terminal:
        self._bar.set_postfix_str(_joined(self._scalars), refresh=False)
      self._bar.close()
    self._bar = self._name = None


def _joined(scalars: dict[str, float]) -> str:
  return ", ".join(f"{name} {value:.4g}" for name, value in scalars.items())
