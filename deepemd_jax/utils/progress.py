"""How far a long piece of work has come, on stderr."""

import sys
import time

from deepemd_jax.data.published import prepare

_EVERY = 10.0  # seconds between two lines of progress in a log
_REDRAW = 0.2  # on a terminal


class Progress:
  """Progress on stderr: a line that is redrawn, or one every ten seconds where
  nobody watches. Of several processes the first shows its own."""

  def __init__(self, stream=None, clock=time.monotonic):
    self._stream = stream or sys.stderr
    self._clock = clock
    self._what = None
    self._start = self._last = 0.0
    self._first = 0
    self._drawn = False

  def __call__(self, what: str, done: int, total: int) -> None:
    now = self._clock()
    if what != self._what:
      self.close()
      self._what, self._start, self._first = what, now, done
      self._last = now
    terminal = self._stream.isatty()
    if now - self._last < (_REDRAW if terminal else _EVERY):
      return
    self._last = now
    rate = (done - self._first) / max(now - self._start, 1e-9)
    show = prepare.human_size if what == "bytes" else "{:,}".format
    unit = "" if what == "bytes" else f" {what}"
    line = f"{show(done)} of {show(total)}{unit}, {show(round(rate))}/s"
    if rate > 0:
      left = round((total - done) / rate)
      line += f", {left // 60}:{left % 60:02d} left"
    if terminal:
      self._stream.write(f"\r{line[:78]:<78}")
    else:
      self._stream.write(line + "\n")
    self._drawn = terminal
    self._stream.flush()

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def close(self) -> None:
    """Ends a line that was being redrawn."""
    if self._drawn:
      self._stream.write("\n")
    self._drawn = False
