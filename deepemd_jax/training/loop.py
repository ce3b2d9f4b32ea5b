"""The training loop, which resumes, logs, saves, and stops on request."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np

from deepemd_jax.checkpoints.manager import Checkpoints
from deepemd_jax.data import loader
from deepemd_jax.distributed import runtime, sharding
from deepemd_jax.errors import InputError, StopRequested
from deepemd_jax.training.metric_log import MetricLog
from deepemd_jax.training.state import TrainState
from deepemd_jax.utils import terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """The training that `fit` does.

  Attributes:
    directory: the folder of `checkpoints/`, `metrics.jsonl` and TensorBoard
      events. Its name is that of the stage.
    step: `(state, batch) -> (state, metrics)`, from `state.make_step`.
    batch: a function of the step number that returns this process's share (see
      `sharding`) of the batch for `step`. It is pure, so that a resumed run
      sees the same data.
    total_steps: the number of steps.
    validate_every: steps between validations. Each one saves a checkpoint.
    validate: backbone variables -> {"accuracy": ..., ...}; raises
      `StopRequested` when it is time to stop.
    workers: processes that call `batch`; 0 uses threads of this process.
  """

  directory: pathlib.Path
  step: Callable
  batch: Callable[[int], Any]
  total_steps: int
  validate_every: int
  validate: Callable[[dict], dict[str, float]]
  workers: int = 0

  @property
  def name(self) -> str:
    """The name of the stage."""
    return self.directory.name

  @property
  def checkpoints(self) -> pathlib.Path:
    """The folder of the checkpoints."""
    return self.directory / "checkpoints"

  def is_validated_at(self, step: int) -> bool:
    """Tells whether there is a validation after `step` steps."""
    return step % self.validate_every == 0 or step == self.total_steps


def fit(plan: Plan, state: TrainState) -> None:
  """Trains until `total_steps`, starting from the latest checkpoint.

  Later stages read the trained state from the checkpoints. They take the best
  one by the "accuracy" of `validate`. The state before the first step is
  validated and saved, too.

  Args:
    plan: the training to do.
    state: the state before the first step, used when there is no checkpoint.

  Raises:
    InputError: the loss is not finite.
    StopRequested: SIGTERM or SIGINT came; the same call continues the training.
  """
  state = sharding.replicate(state)
  with Checkpoints(plan.checkpoints) as saved, runtime.stop_on_signal():
    restored = saved.restore_latest(**state.to_items())
    if restored is not None:
      state = TrainState.from_items(restored.model, restored.train)
    start = int(state.step)
    devices = sharding.describe_devices()
    terminal.note(
      f"{plan.name}: step {start} of {plan.total_steps}, on {devices}"
    )
    with MetricLog(
      plan.directory if runtime.is_main() else None,
      total_steps=plan.total_steps,
      start_step=start,
      name=plan.name,
    ) as log:
      training = _Training(plan, saved, log)
      unvalidated = plan.is_validated_at(start) and not saved.has_score(start)
      if restored is None or unvalidated:
        training.validate(state)
      training.train(state, start)


class _Training:
  """One call of `fit`, with its open files."""

  def __init__(self, plan: Plan, saved: Checkpoints, log: MetricLog) -> None:
    self._plan, self._saved, self._log = plan, saved, log
    self._metrics: list[dict] = []  # one for each step since the validation

  def train(self, state: TrainState, start: int) -> None:
    """Takes the steps from `start` to the end."""
    plan = self._plan
    batches = loader.prefetch(
      plan.batch, start, plan.total_steps, workers=plan.workers
    )
    with contextlib.closing(batches):  # this ends the worker processes
      for index, data in enumerate(batches, start):
        batch = sharding.shard_batch(data)
        runtime.mark_progress()
        if index == start:
          self._log.line(f"{plan.name}: compiling a step")
        state, measured = plan.step(state, batch)
        # Only the step before is read, so that the device stays busy.
        self._check_finite(index)
        self._metrics.append(measured)
        if len(self._metrics) > 1:
          self._log.progress(index, **_floats(self._metrics[-2]))
        if plan.is_validated_at(index + 1):
          self._check_finite(index + 1)
          self.validate(state)
        if index == start:
          # Wait until all processes have compiled the step, so that none is far
          # ahead.
          jax.block_until_ready(measured)
        if runtime.should_stop():
          self._stop(state)

  def validate(self, state: TrainState) -> None:
    """Validates, saves and logs."""
    self._log.log(f"{self._plan.name}: validating")
    try:
      values = self._plan.validate(state.variables)
    except StopRequested:
      self._save_and_stop(state)  # the run validates it when it continues
    step = int(state.step)
    score = values["accuracy"]
    self._saved.save(step, **state.to_items(), meta={}, score=score)
    scores = {f"val_{name}": value for name, value in values.items()}
    self._log.write(step, **_means(self._metrics), **scores)
    self._metrics = []

  def _stop(self, state: TrainState) -> NoReturn:
    if self._metrics:
      self._save_and_stop(state)
    self._saved.wait()  # the validation may still be saving
    raise self._stopped(state)

  def _save_and_stop(self, state: TrainState) -> NoReturn:
    step = int(state.step)
    self._saved.save(step, **state.to_items(), meta={}, score=None)
    self._saved.wait()
    raise self._stopped(state)

  def _stopped(self, state: TrainState) -> StopRequested:
    plan = self._plan
    return StopRequested(
      f"{plan.name} stopped at step {int(state.step)} of {plan.total_steps} "
      "and saved; the same command continues the run"
    )

  def _check_finite(self, step: int) -> None:
    if not self._metrics:
      return
    loss = float(self._metrics[-1]["loss"])
    if not math.isfinite(loss):
      raise InputError(
        f"the loss is {loss} at step {step}; lower the learning rate (the last "
        "checkpoint is from an earlier step)"
      )


def is_finished(directory: pathlib.Path, total_steps: int) -> bool:
  """Tells whether `fit` has nothing left to do in this directory."""
  with Checkpoints(directory / "checkpoints", read_only=True) as saved:
    latest = saved.latest() or 0
    # A stop may have come before the last validation.
    finished = latest >= total_steps and saved.has_score(latest)
  if finished:
    terminal.note(f"{directory.name}: finished earlier, {total_steps} steps")
  return finished


def _floats(measured: dict) -> dict[str, float]:
  return {name: float(value) for name, value in measured.items()}


def _means(metrics: list[dict]) -> dict[str, float]:
  rows = [_floats(row) for row in metrics]
  names = (rows or [{}])[0]
  return {name: float(np.mean([row[name] for row in rows])) for name in names}
