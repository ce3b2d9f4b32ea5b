"""A line on stderr with the progress of a long call. It needs no package."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_REDRAW = 0.2  # seconds between two updates on a terminal
_SIGN_OF_LIFE = 30.0  # seconds between two lines if there is no terminal
_TO_LINE_START, _TO_LINE_END = "\r", "\x1b[K"  # the second clears to the right


@contextlib.contextmanager
def reporter(progress) -> Iterator[Callable[[int, int], object]]:
  """Yields the function to call with (done, total) during the work.

  Args:
    progress: True for a line on stderr, False for nothing, or the function.
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
  """A line with the number of finished pairs and the remaining time."""

  def __init__(self, stream=None) -> None:
    """Starts the clock.

    Args:
      stream: the stream to write to; None is stderr.
    """
    self._stream = stream or sys.stderr
    self._on_terminal = self._stream.isatty()
    self._interval = _REDRAW if self._on_terminal else _SIGN_OF_LIFE
    self._began = self._shown = time.monotonic()

  def __call__(self, done: int, total: int) -> None:
    """Shows the progress, but not too often, and always at the end."""
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
    """Ends the line, so that later output is below it."""
    if self._on_terminal:
      self._stream.write("\n")
      self._stream.flush()


def _clock(seconds: float) -> str:
  """Formats a duration, such as 1:02:03."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02}:{rest:02}"
  return f"{minutes}:{rest:02}"
