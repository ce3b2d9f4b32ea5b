"""Metrics of a training stage: a JSON-lines file, TensorBoard, progress.

The JSON lines are the truth. A run that resumes at step s keeps the rows up to
s and writes the others again.
"""

import json
import math
import os
import pathlib
import typing

from deepemd_jax.evaluation import metric_rows
from deepemd_jax.utils import files
from deepemd_jax.utils.progress import Progress


class MetricLog:
  """Writes scalars by step; a context manager.

  Rates and times left count the steps of this process alone, so they are right
  after a resume too.
  """

  def __init__(
    self,
    directory: str | os.PathLike | None,
    *,
    total_steps: int,
    start_step: int = 0,
    name: str = "train",
    stream: typing.TextIO | None = None,
  ) -> None:
    """Opens `directory/metrics.jsonl` and the TensorBoard events beside it.

    Args:
      directory: made when missing; None for a log that nobody reads.
      total_steps: for the time left.
      start_step: rows after it are dropped: they will be written again.
      name: shown in front of each progress line.
      stream: for progress; default stderr.
    """
    self._file: typing.Any = None
    self._board: typing.Any = None
    self._name, self._total_steps = name, total_steps
    self._progress = Progress(stream)
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
    self.progress(start_step)  # from here on the rate counts

  def __enter__(self) -> "MetricLog":
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def close(self) -> None:
    """Flushes and closes both files; leaves the terminal on a fresh line."""
    self._progress.close()
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
    self._progress.stay(self._name, step, self._total_steps, **row)

  def progress(self, step: int, **scalars: float) -> None:
    """Refreshes the terminal's bar; elsewhere writes a line now and then."""
    if self._file:
      self._progress(self._name, step, self._total_steps, **scalars)
