"""Metrics of a training stage: a JSON-lines file, TensorBoard, progress.

The JSON lines are authoritative. A run that resumes at step s keeps the rows up
to s and writes the others again.
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
  """A context manager that writes scalars by step.

  Rates and remaining times count only the steps of this process, so that they
  are right after a resume, too.
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
      directory: the folder, which is made if it is missing; None writes
        nothing.
      total_steps: the number of steps, for the remaining time.
      start_step: rows after this step are dropped, because they will be written
        again.
      name: the text in front of each progress line.
      stream: the stream for progress; None is stderr.
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
    self.progress(start_step)  # this starts the clock of the rate

  def __enter__(self) -> "MetricLog":
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def close(self) -> None:
    """Flushes and closes both files, and ends the progress line."""
    self._progress.close()
    if self._file:
      self._file.close()
      self._board.close()

  def write(self, step: int, **scalars: float) -> None:
    """Writes a row, TensorBoard points, and a progress line that stays.

    Args:
      step: a step that is not before the last one written.
      **scalars: numbers. One that is not finite becomes "nan", "inf" or "-inf"
        in the row.
    """
    if not self._file:
      return
    row = {key: float(value) for key, value in scalars.items()}
    # JSON has neither NaN nor infinity.
    safe = {k: v if math.isfinite(v) else str(v) for k, v in row.items()}
    self._file.write(json.dumps({"step": step, **safe}) + "\n")
    for key, value in row.items():
      self._board.add_scalar(key, value, step)
    self._progress.stay(self._name, step, self._total_steps, **row)

  def line(self, text: str) -> None:
    """Writes a line that stays, above the bar."""
    if self._file:
      self._progress.line(text)

  def log(self, text: str) -> None:
    """Writes a line if there is no terminal, on which the bar is enough."""
    if self._file:
      self._progress.log(text)

  def progress(self, step: int, **scalars: float) -> None:
    """Updates the bar on a terminal; elsewhere writes a line now and then."""
    if self._file:
      self._progress(self._name, step, self._total_steps, **scalars)
