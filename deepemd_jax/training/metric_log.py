"""Metrics of a training stage: a JSON-lines file, TensorBoard, progress.

The JSON lines are the truth. A run that resumes at step s keeps the rows up to
s and writes the others again.
"""

import datetime
import json
import math
import pathlib
import shutil
import sys
import time

from deepemd_jax.evaluation import metric_rows
from deepemd_jax.utils import files

_REFRESH = 0.2  # seconds between two updates of a terminal's progress line
_SIGN_OF_LIFE = 30.0  # seconds between two lines elsewhere


class MetricLog:
  """Writes scalars by step; a context manager.

  Rates and times left count the steps of this process alone, so they are right
  after a resume too.
  """

  def __init__(
    self,
    directory,
    *,
    total_steps: int,
    start_step: int = 0,
    name: str = "train",
    stream=None,
  ) -> None:
    """Opens `directory/metrics.jsonl` and the TensorBoard events beside it.

    Args:
      directory: made when missing; None for a log that nobody reads.
      total_steps: for the time left.
      start_step: rows after it are dropped: they will be written again.
      name: shown in front of each progress line.
      stream: for progress; default stderr.
    """
    self._file = self._board = None
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    self._name, self._total, self._start = name, total_steps, start_step
    self._began = self._shown = time.monotonic()
    self._unfinished = False  # whether the cursor stands behind a bar
    if directory is None:
      return
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "metrics.jsonl"
    rows = [row for row in metric_rows.read(path) if row["step"] <= start_step]
    files.write(path, "".join(json.dumps(row) + "\n" for row in rows))
    self._file = open(path, "a", encoding="utf-8", buffering=1)
    from tensorboardX import SummaryWriter

    self._board = SummaryWriter(str(directory), purge_step=start_step + 1)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def close(self) -> None:
    """Flushes and closes both files; leaves the terminal on a fresh line."""
    if self._unfinished:
      self._show("\n")
    if self._file:
      self._file.close()
      self._board.close()

  def write(self, step: int, **scalars: float) -> None:
    """One row, a TensorBoard point for each scalar, a progress line that stays.

    Args:
      step: not before the last one written.
      **scalars: what is not finite becomes "nan", "inf" or "-inf" in the row.
    """
    if not self._file:
      return
    row = {key: float(value) for key, value in scalars.items()}
    # JSON has neither.
    safe = {k: v if math.isfinite(v) else str(v) for k, v in row.items()}
    self._file.write(json.dumps({"step": step, **safe}) + "\n")
    for key, value in row.items():
      self._board.add_scalar(key, value, step)
    self._shown = time.monotonic()
    self._show(self._start_of_line() + self._line(step, row) + "\n")

  def progress(self, step: int, **scalars: float) -> None:
    """Refreshes the terminal's progress line; elsewhere a line now and then."""
    now = time.monotonic()
    if not self._file:
      return
    if not self._terminal:
      if now - self._shown > _SIGN_OF_LIFE:
        self._shown = now
        self._show(self._line(step, scalars) + "\n")
    elif now - self._shown > _REFRESH:
      self._shown = now
      # A line that wraps could not be drawn over.
      width = shutil.get_terminal_size().columns - 1
      line = self._line(step, scalars, bar=True)[:width]
      self._show(self._start_of_line() + line)

  def _start_of_line(self) -> str:
    """Clears the bar, where there are bars."""
    return "\r\x1b[K" if self._terminal else ""

  def _show(self, text: str) -> None:
    self._stream.write(text)
    self._stream.flush()
    self._unfinished = not text.endswith("\n")

  def _line(self, step: int, scalars: dict, bar: bool = False) -> str:
    spent = time.monotonic() - self._began
    rate = (step - self._start) / spent if spent > 0 else 0.0
    parts = [f"{self._name} {step}/{self._total}"]
    if bar:
      done = 20 * step // max(self._total, 1)
      parts.append("[" + "#" * done + "." * (20 - done) + "]")
    parts += [f"{key} {value:.4g}" for key, value in scalars.items()]
    if rate > 0:
      left = datetime.timedelta(seconds=int((self._total - step) / rate))
      parts.append(f"| {rate:.2f} steps/s, {left} left")
    return " ".join(parts)
