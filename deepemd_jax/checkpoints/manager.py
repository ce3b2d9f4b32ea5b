"""Checkpoints of pytrees on orbax: the newest ones and the best one.

Orbax writes into a scratch directory and renames it, so that a step is always
whole. `integrity` reads a step and finds what has changed since.
"""

import asyncio
import contextlib
import functools
import logging
import math
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from deepemd_jax.checkpoints import integrity
from deepemd_jax.distributed import runtime
from deepemd_jax.errors import InputError
from deepemd_jax.utils import terminal

_NO_SCORE = -1e30  # JSON has no infinity
_TICK = 0.05  # seconds between two looks at a save


class Restored(NamedTuple):
  """The content of a checkpoint; a part that was not requested is None."""

  model: Any
  train: Any
  meta: dict


class Checkpoints:
  """A context manager for the checkpoints of one training stage.

  A step has two parts, `model` (for evaluation) and `train` (for training
  only), a JSON document `meta`, and a score. The latest `keep_latest` steps and
  the best one are kept.
  """

  def __init__(
    self, directory, *, keep_latest: int = 2, read_only: bool = False
  ) -> None:
    """Opens the directory; makes it unless `read_only`.

    Args:
      directory: the folder of the checkpoints, with a subfolder for each step.
      keep_latest: the number of newest steps to keep.
      read_only: whether to never write, as for evaluation.

    Raises:
      InputError: the directory cannot be opened, or a score is damaged.
    """
    self._directory = pathlib.Path(directory).resolve()
    self._manager: Any = None
    self._failed = False
    if read_only and not self._directory.is_dir():
      return
    integrity.check_kinds(self._directory)
    integrity.check_scores(self._directory, repair=not read_only)
    try:
      if not read_only:
        # Orbax would only fail at the first save.
        self._directory.mkdir(parents=True, exist_ok=True)
      self._manager = _open_manager(self._directory, keep_latest, read_only)
    except jax.errors.JaxRuntimeError:  # another process has ended
      raise
    except Exception as error:  # orbax raises many types for foreign metadata
      reason = getattr(error, "strerror", "") or integrity.first_sentence(error)
      raise InputError(
        f"cannot open the checkpoints in {self._directory}: {reason:.160}; "
        "give another --workdir"
      ) from error

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def close(self) -> None:
    """Waits for the last save, then ends orbax's threads."""
    # After a failure, a process of several would wait for the others.
    if self._manager is not None and not (
      self._failed and runtime.is_distributed()
    ):
      self.wait()
      self._manager.close()

  def wait(self) -> None:
    """Waits until the last save is on the disk."""
    if self._manager is not None:
      with self._explain_failure():
        # In orbax, a process whose save fails waits for the others, and they
        # wait for its files. So do not enter orbax before the save is done.
        while (
          runtime.is_distributed() and self._manager.is_saving_in_progress()
        ):
          if self._manager.failure:
            raise self._manager.failure
          time.sleep(_TICK)
        self._manager.wait_until_finished()

  def latest(self) -> int | None:
    """Returns the newest step; None if there is none."""
    return self._manager and self._manager.latest_step()

  def best(self) -> int | None:
    """Returns the step with the highest score, and the earliest of equal ones;
    None if there is no step."""
    if self._manager is None:
      return None
    steps = self._manager.all_steps()
    if not steps:
      return None
    return max(steps, key=lambda step: (self.score(step), -step))

  def score(self, step: int) -> float:
    """Returns the score that `step` was saved with; -inf if it had none."""
    score = (self._manager.metrics(step) or {}).get("score", _NO_SCORE)
    return -math.inf if score == _NO_SCORE else score

  def has_score(self, step: int) -> bool:
    """Tells whether `step` was saved with a score."""
    return self.score(step) > -math.inf

  def save(
    self, step: int, *, model, train=None, meta: dict, score: float | None
  ) -> None:
    """Saves in the background; the arrays may be donated or changed afterwards.

    Args:
      step: a step newer than all before, or the newest one, to replace it.
      model: a pytree of arrays, at least one.
      train: a pytree of arrays; None if training will never continue from here.
      meta: anything that JSON can represent.
      score: higher is better; None or NaN never becomes the best.

    Raises:
      InputError: this save, or the one before, could not be written.
    """
    # These are copies, because the next training step may reuse (donate) the
    # originals during the write. NumPy makes them without compiling anything.
    parts = {"model": model} | ({} if train is None else {"train": train})
    parts = jax.tree.map(np.array, parts)
    # The comparison is not `<=`, which would let NaN through.
    score = _NO_SCORE if score is None or not score > _NO_SCORE else score
    checksums = {n: integrity.checksums(tree) for n, tree in parts.items()}
    checksums = {**checksums, "meta": integrity.json_checksum(meta)}
    metrics = {"score": float(score), "step": step}
    args = _orbax().args
    self.wait()  # for the save before
    with self._explain_failure():
      if step == self.latest():
        self._manager.delete(step)
      self._manager.save(
        step,
        args=args.Composite(
          **{name: args.PyTreeSave(tree) for name, tree in parts.items()},
          meta=args.JsonSave({"meta": meta, "checksums": checksums}),
        ),
        metrics={**metrics, "checksum": integrity.json_checksum(metrics)},
        force=True,
      )

  @contextlib.contextmanager
  def _explain_failure(self):
    """Turns errors of orbax and TensorStore during a write, which have many
    types, into one line with the reason."""
    try:
      yield
    except (InputError, MemoryError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:
      self._failed = True
      raise InputError(
        f"a checkpoint in {self._directory} could not be written "
        f"({integrity.first_sentence(error):.160}); make room; the same "
        "command then continues from the previous checkpoint"
      ) from error

  def restore_latest(self, *, model, train) -> Restored | None:
    """Reads the newest step that is whole; returns None if there is no step.

    Damaged steps get another name, and a line on the terminal says so. Training
    makes them again.

    Args:
      model: see `restore`.
      train: see `restore`.

    Raises:
      InputError: the step does not fit, or all steps are damaged.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self.restore(step, model=model, train=train)
      except integrity.Damaged as error:
        damaged.append(step)
        terminal.note(f"deepemd_jax: {error.problem}")
        continue
      if damaged:
        integrity.set_aside(self._directory, damaged)
        self._manager.reload()
      return restored
    if damaged:
      raise InputError(
        f"all checkpoints in {self._directory} are damaged ({damaged}); delete "
        "them to begin again"
      )
    return None

  def restore(self, step: int, *, model=None, train=None) -> Restored:
    """Reads a step after the last save is on the disk.

    Args:
      step: one of the steps that are kept.
      model: the expected shapes and dtypes, a pytree of arrays or
        `jax.ShapeDtypeStruct`; None skips this part. A leaf is put where its
        `sharding` says, or on the first device.
      train: like `model`, for the training state.

    Raises:
      InputError: there is no such step, it does not fit, or it is damaged.
    """
    steps = [] if self._manager is None else sorted(self._manager.all_steps())
    if step not in steps:
      raise InputError(
        f"no checkpoint of step {step} in {self._directory}; its "
        f"steps are {steps}"
      )
    self.wait()
    targets = {"model": model, "train": train}
    targets = {name: tree for name, tree in targets.items() if tree is not None}
    parts, meta = integrity.read_step(self._directory / str(step), targets)
    placed = {name: _place(parts[name], tree) for name, tree in targets.items()}
    return Restored(placed.get("model"), placed.get("train"), meta)


def _place(arrays: dict[str, np.ndarray], target):
  """Makes a pytree like `target` from arrays, on any number of devices."""

  def put(place, leaf):
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
      sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    array = arrays[place]
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  leaves = [put(place, x) for place, x in integrity.leaves(target).items()]
  return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _orbax():
  import orbax.checkpoint as ocp

  # Orbax logs each save. A failure comes back as an exception anyway. The
  # filter is set after the import, because absl makes the logger itself.
  logging.getLogger("absl").addFilter(_is_not_from_orbax)
  return ocp


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
  return f"{os.sep}orbax{os.sep}" not in record.pathname


def _open_manager(directory: pathlib.Path, keep_latest: int, read_only: bool):
  ocp = _orbax()
  from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

  # Without best_fn, best_step() silently returns the latest.
  best: dict[str, Any] = {"best_fn": _rank, "best_mode": "max"}
  if read_only:
    options = ocp.CheckpointManagerOptions(read_only=True, **best)
  else:
    best_one = keep.BestN(
      get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False
    )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=keep.AnyPreservationPolicy(
        [keep.LatestN(keep_latest), best_one]
      ),
      cleanup_tmp_directories=True,
      **best,
    )
  manager, arrays = _orbax_classes()
  registry = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, arrays())
  )
  handlers: dict[str, Any] = {
    part: ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    for part in ("model", "train")
  }
  handlers["meta"] = ocp.JsonCheckpointHandler()
  # A manager that has not saved yet cannot guess its handlers.
  return manager(directory, options=options, item_handlers=handlers)


def _rank(metrics: dict) -> tuple[float, int]:
  """Ranks a step: a higher score is better, then an earlier step."""
  return metrics["score"], -metrics["step"]


@functools.cache
def _orbax_classes() -> tuple[type, type]:
  """Returns orbax's manager and its writer of arrays, each with a change."""
  ocp = _orbax()

  class Manager(ocp.CheckpointManager):
    """A manager that leaves signals to `runtime.should_stop` and keeps a
    `failure` in the background, which other processes may never notice."""

    failure: BaseException | None = None

    def _wait_for_checkpointers(self) -> None:
      try:
        super()._wait_for_checkpointers()
      except BaseException as error:
        self.failure = error
        raise

    def reached_preemption(self, step: int) -> bool:
      """Returns False. JAX counts these calls, and all processes stop at the
      same count; orbax's calls would disturb this count."""
      del step
      return False

  class Arrays(ocp.type_handlers.NumpyHandler):
    """A writer that waits for all writes when one of them fails. Orbax abandons
    the others, and each of them prints a traceback later."""

    async def _background_serialize(self, values, infos, args=None):
      write = super()._background_serialize
      writes = [
        write([value], [info], [arg])
        # pyrefly: ignore[bad-argument-type]: orbax always gives `args`
        for value, info, arg in zip(values, infos, args, strict=True)
      ]
      for end in await asyncio.gather(*writes, return_exceptions=True):
        if isinstance(end, BaseException):
          raise end

  return Manager, Arrays
