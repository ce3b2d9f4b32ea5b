"""How far a long call has come, in one line on stderr. Needs no package."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_REDRAW = 0.2  # seconds between two updates on a terminal
_SIGN_OF_LIFE = 30.0  # seconds between two lines where there is no terminal
_TO_LINE_START, _TO_LINE_END = "\r", "\x1b[K"  # the second clears what is right


@contextlib.contextmanager
def reporter(progress) -> Iterator[Callable[[int, int], object]]:
  """What to call with (done, total) while the work goes on.

  Args:
    progress: True for a line on stderr, False for nothing, or a function that
      is called in place of that.
  """
  if callable(progress):
    yield progress
  elif not progress:
    yield lambda done, total: None
  else:
    line = ProgressLine()
    try:
      yield line
    finally:
      line.close()


class ProgressLine:
  """Shows the pairs that are done, and the time left."""

  def __init__(self, stream=None) -> None:
    """Begins to count the time.

    Args:
      stream: where to write; default stderr.
    """
    self._stream = stream or sys.stderr
    self._on_terminal = self._stream.isatty()
    self._interval = _REDRAW if self._on_terminal else _SIGN_OF_LIFE
    self._began = self._shown = time.monotonic()

  def __call__(self, done: int, total: int) -> None:
    """Shows how far the work is, if it is time to, and at its end."""
    now = time.monotonic()
    if done < total and now - self._shown < self._interval:
      return
    self._shown = now
    spent = now - self._began
    left = spent * (total - done) / max(done, 1)
    text = f"{done:,}/{total:,} pairs, {_clock(spent)}, {_clock(left)} left"
    if self._on_terminal:
      text = f"{_TO_LINE_START}{text}{_TO_LINE_END}"
    else:
      text += "\n"
    self._stream.write(text)
    self._stream.flush()

  def close(self) -> None:
    """Ends the line; what is written next is below it."""
    if self._on_terminal:
      self._stream.write("\n")
      self._stream.flush()


def _clock(seconds: float) -> str:
  """For people, such as 1:02:03."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02}:{rest:02}"
  return f"{minutes}:{rest:02}"
