"""Checkpoints: the latest ones and the best, on orbax. Knows only pytrees.

Orbax writes into a scratch directory and renames it, so a step that is there is
whole. What it does not do is notice a flipped byte: the checksum of every leaf,
of `meta` and of the score is kept beside it and compared on the way back.
"""

import contextlib
import functools
import gc
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
import time
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from deepemd_jax.distributed import runtime
from deepemd_jax.errors import InputError

_SHOWN = 5
_NO_SCORE = -1e30  # JSON has no infinity
_TICK = 0.05  # seconds between two looks at a save


class Damaged(InputError):
  """A checkpoint is not what was saved."""


class Restored(NamedTuple):
  """What a checkpoint held; None for what was not asked for."""

  model: Any
  train: Any
  meta: dict


class Checkpoints:
  """The checkpoints of one training stage; a context manager.

  A step has two parts, `model` (what evaluation needs) and `train` (what only
  training needs), a JSON `meta`, and a score. The latest `keep_latest` steps
  and the best one are kept.
  """

  def __init__(
    self, directory, *, keep_latest: int = 2, read_only: bool = False
  ) -> None:
    """Opens the directory; makes it unless `read_only`.

    Args:
      directory: of the checkpoints, one subdirectory a step.
      keep_latest: how many of the newest to keep.
      read_only: for evaluation; never writes.

    Raises:
      InputError: the directory cannot be opened, or a score is damaged.
    """
    self._directory = pathlib.Path(directory).resolve()
    self._manager = None
    self._failed = False
    if read_only and not self._directory.is_dir():
      return
    _check_scores(self._directory, mend=not read_only)
    ocp = _orbax()
    from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

    if read_only:
      options = ocp.CheckpointManagerOptions(
        read_only=True, best_fn=_rank, best_mode="max"
      )
    else:
      options = ocp.CheckpointManagerOptions(
        preservation_policy=keep.AnyPreservationPolicy(
          [
            keep.LatestN(keep_latest),
            keep.BestN(
              get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False
            ),
          ]
        ),
        # Without it, best_step() silently returns the latest.
        best_fn=_rank,
        best_mode="max",
        cleanup_tmp_directories=True,
      )
    try:
      if not read_only:
        # Orbax would find out at the first save.
        self._directory.mkdir(parents=True, exist_ok=True)
      self._manager = _manager_class()(
        self._directory,
        options=options,
        # Stated, because a manager that has not saved yet cannot guess them.
        item_handlers={
          "model": ocp.StandardCheckpointHandler(),
          "train": ocp.StandardCheckpointHandler(),
          "meta": ocp.JsonCheckpointHandler(),
        },
      )
    except OSError as error:
      raise InputError(
        f"cannot keep checkpoints in {self._directory}: "
        f"{error.strerror or error}; give another --workdir"
      ) from error

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def close(self) -> None:
    """Waits for what was saved, then ends orbax's threads."""
    # After a failure one of several processes would wait for the others.
    if self._manager is not None and not (
      self._failed and runtime.is_distributed()
    ):
      self.wait()
      self._manager.close()

  def wait(self) -> None:
    """Returns when what was saved is on the disk."""
    if self._manager is not None:
      with self._refusing():
        # A process that fails in the background then waits, inside orbax, for
        # the others, which wait for what it was to write.
        while (
          runtime.is_distributed() and self._manager.is_saving_in_progress()
        ):
          if self._manager.failure:
            raise self._manager.failure
          time.sleep(_TICK)
        self._manager.wait_until_finished()

  def latest(self) -> int | None:
    """The newest step; None if there is none."""
    return self._manager and self._manager.latest_step()

  def best(self) -> int | None:
    """The step with the highest score, the earliest of equals; None if there
    is none."""
    if self._manager is None:
      return None
    return max(
      self._manager.all_steps(),
      key=lambda step: (self.score(step), -step),
      default=None,
    )

  def score(self, step: int) -> float:
    """The score that `step` was saved with; -inf if it had none."""
    found = (self._manager.metrics(step) or {}).get("score", _NO_SCORE)
    return -math.inf if found == _NO_SCORE else found

  def has_score(self, step: int) -> bool:
    """Whether `step` was saved with a score."""
    return self.score(step) > -math.inf

  def save(
    self, step: int, *, model, train=None, meta: dict, score: float | None
  ) -> None:
    """Saves in the background; the arrays may be donated or changed after it.

    Args:
      step: newer than all before; or the newest once more, which is replaced.
      model: a pytree of arrays, at least one.
      train: likewise; None where no training will go on from here.
      meta: what JSON can hold.
      score: higher is better; None or NaN never becomes the best.
    """
    ocp = _orbax()
    # Copies, because the next training step may reuse (donate) the originals
    # while they are still being written in the background; in NumPy, which
    # compiles nothing.
    parts = {"model": model} | ({} if train is None else {"train": train})
    parts = jax.tree.map(np.array, parts)
    # Not `<=`: that would let NaN through.
    score = _NO_SCORE if score is None or not score > _NO_SCORE else score
    checksums = {name: _checksums(tree) for name, tree in parts.items()}
    checksums["meta"] = _json_checksum(meta)
    metrics = {"score": float(score), "step": step}
    self.wait()  # for the one before
    with self._refusing():
      if step == self.latest():
        self._manager.delete(step)
      self._manager.save(
        step,
        args=ocp.args.Composite(
          **{name: ocp.args.StandardSave(x) for name, x in parts.items()},
          meta=ocp.args.JsonSave({"meta": meta, "checksums": checksums}),
        ),
        metrics={**metrics, "checksum": _json_checksum(metrics)},
        force=True,
      )

  @contextlib.contextmanager
  def _refusing(self):
    """Whatever orbax and tensorstore make of a full or failing disk."""
    try:
      yield
    except (InputError, MemoryError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:
      self._failed = True
      reason = re.split(r"\n|\. See ", str(error) or type(error).__name__)[0]
      raise InputError(
        f"a checkpoint in {self._directory} could not be written "
        f"({reason:.160}); make room, and the same command goes on from the "
        "one before"
      ) from error

  def restore_latest(self, *, model, train) -> Restored | None:
    """The newest step that is whole; None if there never was one.

    Steps that are damaged are set aside, under another name, and said so: the
    steps in between can be made again.

    Args:
      model: as `restore`.
      train: likewise.

    Raises:
      InputError: it does not fit, or all are damaged.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        found = self.restore(step, model=model, train=train)
      except Damaged as error:
        damaged.append(step)
        _say(str(error).rpartition(";")[0])
        continue
      if damaged:
        _set_aside(self._directory, damaged)
        self._manager.reload()
      return found
    if damaged:
      raise InputError(
        f"all checkpoints in {self._directory} are damaged ({damaged}); delete "
        "them to begin again"
      )
    return None

  def restore(self, step: int, *, model=None, train=None) -> Restored:
    """Reads a step back.

    Args:
      step: one of those kept.
      model: the shapes and dtypes expected, a pytree of arrays or
        `jax.ShapeDtypeStruct`; None to leave this part. A leaf is put where its
        `sharding` says, or on the first device.
      train: likewise.

    Raises:
      InputError: there is no such step, it does not fit, or it is damaged.
    """
    there = [] if self._manager is None else sorted(self._manager.all_steps())
    if step not in there:
      raise InputError(
        f"no checkpoint of step {step} in {self._directory}; it has {there}"
      )
    where = self._directory / str(step)
    asked = {"model": model, "train": train}
    asked = {name: tree for name, tree in asked.items() if tree is not None}
    damage = None
    with _hushed():
      try:
        restored = self._read(step, asked)
        bad = _not_as_saved(restored, asked)
      except (InputError, MemoryError, jax.errors.JaxRuntimeError):
        raise
      except Exception as error:
        # Whatever orbax and tensorstore make of missing or torn files, by its
        # text alone: its frames hold the readers that `_hushed` is to end.
        damage = str(error) or type(error).__name__
      if damage is not None:
        gc.collect()
    if damage is not None:
      reason = re.split(r"\n|\. See ", damage)[0]
      raise _damaged(where, f"it cannot be read ({reason:.120})")
    if bad:
      raise _damaged(where, f"{bad[0]} is not what was saved (checksum)")
    return Restored(
      restored.get("model"), restored.get("train"), restored.meta["meta"]
    )

  def _read(self, step: int, asked: dict):
    """What orbax has for `step`, once it is known to fit."""
    ocp = _orbax()
    stored = self._manager.item_metadata(step)
    for name, tree in asked.items():
      if name not in stored or stored[name] is None:
        raise InputError(
          f"checkpoint {self._directory / str(step)} has no part {name!r}: a "
          "converted or exported one is not trained further; if it is a run's "
          "own, it is damaged"
        )
      _check_fit(
        self._directory / str(step), name, _shapes(stored[name]), _shapes(tree)
      )
    args = {
      name: ocp.args.StandardRestore(jax.tree.map(_abstract, tree))
      for name, tree in asked.items()
    }
    return self._manager.restore(
      step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args)
    )


def _orbax():
  import orbax.checkpoint as ocp

  # It reports each save; what matters of that comes back as an exception.
  # After the import, because absl makes that logger its own way.
  logging.getLogger("absl").addFilter(_is_not_from_orbax)
  if sys.unraisablehook is sys.__unraisablehook__:
    sys.unraisablehook = _print_unraisable
  return ocp


@functools.cache
def _manager_class():
  class Manager(_orbax().CheckpointManager):
    """Leaves signals to `processes.turn`; tells of a `failure` in the
    background before the others have heard of it, which they may never."""

    failure: BaseException | None = None

    def _wait_for_checkpointers(self) -> None:
      try:
        super()._wait_for_checkpointers()
      except BaseException as error:
        self.failure = error
        raise

    def reached_preemption(self, step: int) -> bool:
      """No. JAX takes the question for one of the turns that it counts, and
      the turn at which all are to stop might never come."""
      del step
      return False

  return Manager


def _print_unraisable(found) -> None:
  """As usual, but not what tensorstore's threads still want of a save that has
  failed already: `Checkpoints.wait` tells why."""
  if str(found.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(found)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
  return f"{os.sep}orbax{os.sep}" not in record.pathname


@contextlib.contextmanager
def _hushed():
  """When one leaf cannot be read, orbax abandons the readers of the others,
  which then print tracebacks of their own, by three ways."""
  hooks = sys.unraisablehook, sys.excepthook
  asyncio_log = logging.getLogger("asyncio")
  was = asyncio_log.disabled
  sys.unraisablehook = sys.excepthook = lambda *unused: None
  asyncio_log.disabled = True
  try:
    yield
  finally:
    sys.unraisablehook, sys.excepthook = hooks
    asyncio_log.disabled = was


def _rank(metrics: dict) -> tuple[float, int]:
  """Higher is better; of equal scores the earlier step."""
  return metrics["score"], -metrics["step"]


def _name(path) -> str:
  """A leaf's place as orbax and we both write it: a/b/0."""
  parts = []
  for key in path:
    for attribute in ("key", "name", "idx"):
      if hasattr(key, attribute):
        parts.append(str(getattr(key, attribute)))
        break
  return "/".join(parts)


def _leaves(tree) -> dict[str, Any]:
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {_name(path): leaf for path, leaf in flat}


def _shapes(tree) -> dict[str, str]:
  """Name -> dtype and shape, as in float32[3, 84]."""
  return {
    name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    for name, leaf in _leaves(tree).items()
  }


def _abstract(leaf) -> jax.ShapeDtypeStruct:
  """Shape, dtype, and one stated sharding: a checkpoint then restores on any
  number of devices."""
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _checksums(tree) -> dict[str, int]:
  # As bytes, because not every dtype has a buffer: bfloat16 has none.
  return {
    name: zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    for name, leaf in _leaves(tree).items()
  }


def _json_checksum(document) -> int:
  # Twice, because JSON turns some keys and sequences into others.
  document = json.loads(json.dumps(document))
  return zlib.crc32(json.dumps(document, sort_keys=True).encode())


def _not_as_saved(restored, asked: dict) -> list[str]:
  """The names of what differs from its checksum."""
  saved = restored.meta["checksums"]
  found = _json_checksum(restored.meta["meta"])
  bad = [] if saved.get("meta", found) == found else ["meta"]
  for part in asked:
    for name, checksum in _checksums(restored[part]).items():
      if saved[part].get(name) != checksum:
        bad.append(f"{part}/{name}")
  return bad


def _set_aside(directory: pathlib.Path, steps: list[int]) -> None:
  """Renames steps that are damaged; all processes together."""
  runtime.barrier("damage seen")
  if runtime.is_main():
    for step in steps:
      place = directory / f"damaged.{step}"
      shutil.rmtree(place, ignore_errors=True)
      os.rename(directory / str(step), place)
    _say(f"going on from the one before; kept as {place}")
  runtime.barrier("damage set aside")


def _say(message: str) -> None:
  if runtime.is_main():
    sys.stderr.write(f"deepemd_jax: {message}\n")
    sys.stderr.flush()


def _check_scores(directory: pathlib.Path, mend: bool) -> None:
  """Orbax reads all scores at the start and would not say which is damaged.

  A step without any is one whose deletion was interrupted; orbax ends it. To
  `mend` is to do without the newest step: it can be made again.
  """
  found = directory.glob("[0-9]*/metrics/metrics")
  steps = [path.parents[1] for path in found]
  # The others are scratch directories.
  steps = sorted((s for s in steps if s.name.isdigit()), key=_number)
  for step in steps:
    path = step / "metrics" / "metrics"
    try:
      metrics = json.loads(path.read_bytes())
      found = _json_checksum({k: metrics[k] for k in ("score", "step")})
      whole = metrics.get("checksum", found) == found
    except (ValueError, LookupError, TypeError, AttributeError):
      whole = False
    if whole:
      continue
    error = _damaged(step, "its score is not what was saved")
    if not mend or step != steps[-1] or len(steps) == 1:
      raise error
    _say(str(error).rpartition(";")[0])
    _set_aside(directory, [_number(step)])


def _number(step: pathlib.Path) -> int:
  return int(step.name)


def _damaged(where: pathlib.Path, how: str) -> InputError:
  return Damaged(
    f"checkpoint {where} is damaged: {how}; delete it to use the one before"
  )


def _check_fit(where, part: str, stored: dict, wanted: dict) -> None:
  missing = sorted(wanted.keys() - stored.keys())
  extra = sorted(stored.keys() - wanted.keys())
  wrong = [
    f"{name} is {stored[name]}, not {wanted[name]}"
    for name in sorted(stored.keys() & wanted.keys())
    if stored[name] != wanted[name]
  ]
  problems = [
    f"{len(names)} {what}: {', '.join(names[:_SHOWN])}"
    + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    for what, names in (
      ("missing", missing),
      ("extra", extra),
      ("of another shape or type", wrong),
    )
    if names
  ]
  if problems:
    raise InputError(
      f"checkpoint {where} does not fit ({part}): {'; '.join(problems)}; "
      "use the config it was trained with"
    )
