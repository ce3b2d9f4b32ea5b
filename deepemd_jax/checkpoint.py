"""Checkpoints: the latest ones and the best, on orbax. Knows only pytrees.

Orbax writes into a scratch directory and renames it, so a step that is there is
whole. What it does not do is notice a flipped byte: the checksum of every leaf
is kept beside it and compared on the way back.
"""

import logging
import math
import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from deepemd_jax.errors import InputError

_SHOWN = 5
_NO_SCORE = -1e30  # JSON has no infinity


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
      InputError: the directory cannot be written.
    """
    self._directory = pathlib.Path(directory).resolve()
    self._manager = None
    if read_only and not self._directory.exists():
      return
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
      self._manager = ocp.CheckpointManager(
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
        f"cannot keep checkpoints in {self._directory}: {error.strerror}; "
        "give another --workdir"
      ) from error

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    if self._manager is not None:
      self._manager.wait_until_finished()
      self._manager.close()

  def wait(self) -> None:
    """Returns when what was saved is on the disk."""
    self._manager.wait_until_finished()

  def latest(self) -> int | None:
    """The newest step."""
    return self._manager and self._manager.latest_step()

  def best(self) -> int | None:
    """The step with the highest score; the earliest of equals."""
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

  def save(
    self, step: int, *, model, train, meta: dict, score: float | None
  ) -> None:
    """Saves in the background.

    Args:
      step: newer than all before.
      model: a pytree of arrays.
      train: a pytree of arrays.
      meta: JSON.
      score: higher is better; None or NaN never becomes the best.
    """
    ocp = _orbax()
    if score is None or math.isnan(score):
      score = _NO_SCORE
    items = {"model": model, "train": train}
    checksums = {name: _checksums(tree) for name, tree in items.items()}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        model=ocp.args.StandardSave(model),
        train=ocp.args.StandardSave(train),
        meta=ocp.args.JsonSave({"meta": meta, "checksums": checksums}),
      ),
      metrics={"score": float(score), "step": step},
      force=True,
    )

  def restore(self, step: int, *, model=None, train=None) -> Restored:
    """Reads a step back.

    Args:
      step: one of those kept.
      model: the shapes and dtypes expected, a pytree of arrays or
        `jax.ShapeDtypeStruct`; None to leave this part.
      train: likewise.

    Raises:
      InputError: the checkpoint does not fit, or is damaged.
    """
    ocp = _orbax()
    where = self._directory / str(step)
    asked = {"model": model, "train": train}
    asked = {name: tree for name, tree in asked.items() if tree is not None}
    try:
      stored = self._manager.item_metadata(step)
      for name, tree in asked.items():
        _check_fit(where, name, _shapes(stored[name]), _shapes(tree))
      args = {
        name: ocp.args.StandardRestore(jax.tree.map(_abstract, tree))
        for name, tree in asked.items()
      }
      restored = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args)
      )
    except InputError:
      raise
    except Exception as error:
      # Whatever orbax or tensorstore make of missing or torn files.
      reason = str(error).strip().splitlines()
      raise InputError(
        f"checkpoint {where} is damaged and cannot be read "
        f"({reason[0][:120] if reason else type(error).__name__}); delete it "
        "to go on from the one before"
      ) from error
    for name in asked:
      found = _checksums(restored[name])
      bad = [
        k
        for k, v in restored.meta["checksums"][name].items()
        if found.get(k) != v
      ]
      if bad:
        raise InputError(
          f"checkpoint {where} is damaged: {name}/{bad[0]} is not what was "
          "saved (checksum); delete it to go on from the one before"
        )
    return Restored(
      restored.get("model"), restored.get("train"), restored.meta["meta"]
    )


def _orbax():
  # Orbax and absl report each save at INFO and WARNING, on stderr.
  logging.getLogger("absl").setLevel(logging.ERROR)
  import orbax.checkpoint as ocp

  return ocp


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


def _shapes(tree) -> dict[str, tuple]:
  return {
    name: (tuple(leaf.shape), np.dtype(leaf.dtype).name)
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
  return {
    name: zlib.crc32(np.ascontiguousarray(leaf).tobytes())
    for name, leaf in _leaves(tree).items()
  }


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
      f"checkpoint {where} does not fit ({part}): {'; '.join(problems)}"
    )
