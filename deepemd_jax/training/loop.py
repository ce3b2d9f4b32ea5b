"""The one training loop: resume, metrics, checkpoints, stop when asked."""

import contextlib
import math
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepemd_jax.checkpoints import manager
from deepemd_jax.data import loader
from deepemd_jax.distributed import runtime, sharding
from deepemd_jax.errors import InputError, StopRequested
from deepemd_jax.training import metric_log


class TrainState(NamedTuple):
  """What a training step reads and returns; all of it is saved.

  Attributes:
    step: int32 scalar, steps done.
    params: the encoder's parameters.
    extra: other trained parameters: pre-training's classifier, or {}.
    batch_stats: the encoder's running statistics.
    opt_state: optax state for (params, extra).
  """

  step: jax.Array
  params: Any
  extra: Any
  batch_stats: Any
  opt_state: Any


def new_state(variables, optimizer, extra=None) -> TrainState:
  """The state before the first step."""
  extra = extra or {}
  trained = (variables["params"], extra)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    extra=extra,
    batch_stats=variables["batch_stats"],
    # One program, not one for each array's shape.
    opt_state=jax.jit(optimizer.init)(trained),
  )


def variables_of(state: TrainState) -> dict:
  """The encoder's variables."""
  return {"params": state.params, "batch_stats": state.batch_stats}


def make_step(loss_function: Callable, optimizer) -> Callable:
  """A jitted `(state, batch) -> (state, metrics)`.

  Args:
    loss_function: `(params, extra, batch_stats, batch) -> (loss, (batch_stats,
      metrics))`.
    optimizer: an optax transformation of (params, extra).
  """

  def step(state: TrainState, batch):
    def loss(trained):
      return loss_function(*trained, state.batch_stats, batch)

    trained = (state.params, state.extra)
    (value, (stats, measured)), gradients = jax.value_and_grad(
      loss, has_aux=True
    )(trained)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    params, extra = optax.apply_updates(trained, updates)
    state = TrainState(state.step + 1, params, extra, stats, opt_state)
    return state, {"loss": value, **measured}

  return jax.jit(step, donate_argnums=0, out_shardings=sharding.replicated())


class _StopOnSignal:
  """Turns the first TERM or INT into a flag; a second one acts as usual. Of
  several processes `processes.turn` tells."""

  def __init__(self):
    self.number = 0
    self._before = {}

  def __enter__(self):
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in () if runtime.is_distributed() else numbers:
      self._before[number] = signal.signal(number, self._note)
    return self

  def _note(self, number, frame):
    del frame
    self.number = number
    signal.signal(number, self._before[number])

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)


def fit(
  directory: pathlib.Path,
  state: TrainState,
  *,
  step: Callable,
  batch: Callable[[int], Any],
  total_steps: int,
  validate_every: int,
  validate: Callable[[dict, Callable[[], None]], dict[str, float]],
  name: str,
  workers: int = 0,
) -> None:
  """Trains until `total_steps`, from wherever `directory` left off.

  The state after training is read back from the checkpoints: the best by
  `validate`'s "accuracy", which the start takes part in too.

  Args:
    directory: holds `checkpoints/`, `metrics.jsonl` and TensorBoard events.
    state: the state before the first step, used when there is no checkpoint.
    step: from `make_step`.
    batch: step number -> this process's share (see `mesh`) of what `step`
      takes; a pure function of the number, so that a resumed run sees the same
      data.
    total_steps: where to stop.
    validate_every: steps between validations; each saves a checkpoint.
    validate: (encoder variables, function to call now and then, which raises
      when it is time to stop) -> {"accuracy": ..., ...}.
    name: for messages.
    workers: processes that call `batch`; 0 for threads of this one.

  Raises:
    InputError: the loss is not finite.
    StopRequested: SIGTERM or SIGINT; the same call goes on from here.
  """
  state = sharding.replicate(state)
  with (
    manager.Checkpoints(directory / "checkpoints") as saved,
    _StopOnSignal() as stop,
    contextlib.ExitStack() as opened,
  ):
    restored = saved.restore_latest(**_items(state))
    if restored is not None:
      state = _state(restored)
    start = int(state.step)
    note(
      f"{name}: step {start} of {total_steps}, on {sharding.describe_devices()}"
    )
    with metric_log.MetricLog(
      directory if runtime.is_main() else None,
      total_steps=total_steps,
      start_step=start,
      name=name,
    ) as log:

      def save_and_stop(state):
        done = int(state.step)
        saved.save(done, **_items(state), meta={}, score=None)
        saved.wait()
        raise stopped(done)

      def stopped(done):
        return StopRequested(
          f"{name} stopped at step {done} of {total_steps} and saved; "
          "the same command goes on from there"
        )

      def heed():
        if runtime.should_stop() or stop.number:
          raise StopRequested(f"{name} stopped")

      def save_and_log(state, losses):
        try:
          values = validate(variables_of(state), heed)
        except StopRequested:
          save_and_stop(state)  # to be validated when it goes on
        done = int(state.step)
        saved.save(done, **_items(state), meta={}, score=values["accuracy"])
        scores = {f"val_{k}": v for k, v in values.items()}
        log.write(done, **_means(losses), **scores)

      due = start % validate_every == 0 or start == total_steps
      if restored is None or (due and not saved.has_score(start)):
        save_and_log(state, [])
      losses: list[dict] = []
      ahead = loader.prefetch(batch, start, total_steps, workers=workers)
      opened.enter_context(contextlib.closing(ahead))  # ends its processes
      for index, data in enumerate(ahead, start):
        state, measured = step(state, sharding.shard_batch(data))
        # Reading the step before keeps the device busy with this one.
        _check_finite(losses, index)
        losses.append(measured)
        if len(losses) > 1:
          log.progress(index, **_floats(losses[-2]))
        if (index + 1) % validate_every == 0 or index + 1 == total_steps:
          _check_finite(losses, index + 1)
          save_and_log(state, losses)
          losses = []
        if index == start:
          # Until all processes have compiled it: then none is far ahead.
          jax.block_until_ready(measured)
        if runtime.should_stop() or stop.number:
          if losses:
            save_and_stop(state)
          saved.wait()
          raise stopped(index + 1)


def is_finished(directory: pathlib.Path, total_steps: int) -> bool:
  """Whether `fit` has nothing left to do in this directory."""
  with manager.Checkpoints(directory / "checkpoints", read_only=True) as saved:
    latest = saved.latest() or 0
    # A stop may have come before the last validation.
    finished = latest >= total_steps and saved.has_score(latest)
  if finished:
    note(f"{directory.name}: finished earlier, {total_steps} steps")
  return finished


def _items(state: TrainState) -> dict:
  return {
    "model": variables_of(state),
    "train": {
      "step": state.step,
      "extra": state.extra,
      "opt_state": state.opt_state,
    },
  }


def _state(restored) -> TrainState:
  return TrainState(
    params=restored.model["params"],
    batch_stats=restored.model["batch_stats"],
    **restored.train,
  )


def _floats(measured: dict) -> dict[str, float]:
  return {key: float(value) for key, value in measured.items()}


def _means(losses: list[dict]) -> dict[str, float]:
  rows = [_floats(row) for row in losses]
  return {k: float(np.mean([r[k] for r in rows])) for k in (rows or [{}])[0]}


def _check_finite(losses: list[dict], step: int) -> None:
  if losses and not math.isfinite(float(losses[-1]["loss"])):
    raise InputError(
      f"the loss is {float(losses[-1]['loss'])} at step {step}; lower the "
      "learning rate (the last checkpoint is from before)"
    )


def best_variables(
  directory: pathlib.Path, abstract: dict
) -> tuple[dict, int, float]:
  """The best validated encoder of a finished or running stage.

  Args:
    directory: the stage's directory.
    abstract: the variables' shapes, as `jax.eval_shape` gives them, or like
      ones.

  Returns:
    (variables, their step, their validation accuracy).

  Raises:
    InputError: there is no checkpoint, or it does not fit.
  """
  with manager.Checkpoints(directory / "checkpoints", read_only=True) as saved:
    step = saved.best()
    if step is None:
      raise nothing_trained(directory)
    model = sharding.replicate(saved.restore(step, model=abstract).model)
    return model, step, saved.score(step)


def nothing_trained(directory: pathlib.Path) -> InputError:
  """The error of looking for a checkpoint where there is none."""
  return InputError(
    f"no checkpoint in {directory}; give the --workdir of a training run, or "
    "run the stages pretrain and metatrain first"
  )


def note(message: str) -> None:
  """One line for the person at the terminal."""
  if runtime.is_main():
    print(message, file=sys.stderr, flush=True)
