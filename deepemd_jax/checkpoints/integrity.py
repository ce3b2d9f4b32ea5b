"""The integrity of checkpoints: data are read as they were saved, or an error
tells what is wrong.

A step's folder contains arrays, a JSON document `meta`, and a score. Orbax
writes them but does not notice a flipped byte. So a checksum of each is stored
beside them and compared when they are read.

Arrays are read here with TensorStore, as in orbax itself. When orbax cannot
read one array, it abandons the readers of the others, and each of these prints
a traceback later, at an unrelated moment.
"""

import json
import math
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from deepemd_jax.distributed import runtime
from deepemd_jax.errors import InputError
from deepemd_jax.utils import files, terminal

_SHOWN = 5  # names in a message
_LONGEST_SCORE = 2**16  # bytes
META = "metadata"  # orbax's name for the file of a JSON document
SCORE = pathlib.Path("metrics", "metrics")  # orbax's name for that of the score


class Damaged(InputError):
  """An error: a checkpoint is not what was saved."""

  def __init__(self, step: pathlib.Path, how: str) -> None:
    """Makes the message.

    Args:
      step: the step's folder.
      how: the damage, as a clause of the message.
    """
    self.problem = f"checkpoint {step} is damaged: {how}"
    super().__init__(f"{self.problem}; delete it to use the previous one")


def leaves(tree) -> dict[str, Any]:
  """Returns a pytree's leaves by place, such as "a/b/0", as in orbax."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {_name(path): leaf for path, leaf in flat}


def _name(path) -> str:
  parts = []
  for key in path:
    for attribute in ("key", "name", "idx"):
      if hasattr(key, attribute):
        parts.append(str(getattr(key, attribute)))
        break
  return "/".join(parts)


def checksums(tree) -> dict[str, int]:
  """Computes the CRC-32 of every leaf's bytes, by place."""
  # The arrays are viewed as bytes, because bfloat16 has no buffer.
  return {
    # NumPy's stubs declare buffers only from Python 3.12 on.
    # pyrefly: ignore[bad-argument-type]
    name: zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    for name, leaf in leaves(tree).items()
  }


def json_checksum(document) -> int:
  """Computes the CRC-32 of a JSON document, whatever the order of its keys."""
  # JSON turns keys that are numbers into text, and tuples into lists.
  document = json.loads(json.dumps(document))
  return zlib.crc32(json.dumps(document, sort_keys=True).encode())


def check_kinds(directory: pathlib.Path) -> None:
  """Makes sure that a folder of checkpoints contains only files and folders.

  A program that opens a pipe waits for its other end forever, and none of the
  libraries that read checkpoints checks first.

  Raises:
    InputError: the folder contains something else; the message names it.
  """
  for folder, subfolders, names in os.walk(directory):
    for name in (*subfolders, *names):
      path = pathlib.Path(folder, name)
      linked_folder = name in subfolders and path.is_symlink()
      if linked_folder or not (path.is_dir() or path.is_file()):
        raise InputError(
          f"{path} is a link or a special file, but a checkpoint may contain "
          "only files and folders; remove it, or replace a link by a copy"
        )


def read_step(step: pathlib.Path, targets: dict) -> tuple[dict, Any]:
  """Reads parts of a step, and compares them with what was saved.

  Args:
    step: the step's folder.
    targets: part -> a pytree of the expected shapes and dtypes.

  Returns:
    ({part: {place of a leaf: NumPy array}}, the step's `meta`).

  Raises:
    InputError: a part does not fit its target, or is missing.
    Damaged: something cannot be read, or is not what was saved.
  """
  try:
    document = json.loads((step / "meta" / META).read_bytes())
    saved, meta = document["checksums"], document["meta"]
    own = json_checksum(meta)
    changed = [] if saved.get("meta", own) == own else ["meta"]
    parts = {}
    for name, target in targets.items():
      parts[name] = arrays = _read_part(step, name, target)
      sums = checksums(arrays)
      changed += [f"{name}/{x}" for x in sums if sums[x] != saved[name].get(x)]
  except (InputError, MemoryError):
    raise
  except Exception as error:
    # For damaged bytes, TensorStore, JSON and NumPy raise many types.
    reason = first_sentence(error)
    raise Damaged(step, f"it cannot be read ({reason:.120})") from error
  if changed:
    raise Damaged(step, f"{changed[0]} differs from what was saved (checksum)")
  return parts, meta


def _read_part(step: pathlib.Path, name: str, target) -> dict[str, np.ndarray]:
  if not (step / name).is_dir():
    raise InputError(
      f"checkpoint {step} has no part {name!r}: a converted or exported "
      "checkpoint cannot be trained further; if a training run wrote it, it is "
      "damaged"
    )
  expected = leaves(target)
  stores = open_arrays(step / name, expected)
  _check_fit(step, name, _shapes(stores), _shapes(expected))
  _check_chunks(step, stores)
  reads = {place: store.read() for place, store in stores.items()}
  return {place: read.result() for place, read in reads.items()}


def open_arrays(part: pathlib.Path, expected: Iterable[str] = ()) -> dict:
  """Opens all arrays of a part.

  Args:
    part: the folder of the part.
    expected: places, such as "a/b", whose names may contain dots.

  Returns:
    Place -> an open `tensorstore.TensorStore`; `read().result()` gives the
    NumPy array.

  Raises:
    Exception: a file is damaged. The error may have many types.
  """
  import tensorstore

  base = {"driver": "file", "path": f"{part}/"}
  store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
  keys = [key.decode() for key in store.list().result()]
  names = [k.removesuffix("/.zarray") for k in keys if k.endswith("/.zarray")]
  if not names:  # TensorStore finds no array if its table of contents is lost
    raise FileNotFoundError(f"no arrays in {part.name}")
  # On the disk, a/b is a.b, which may also be a single key of a dictionary.
  places = {place.replace("/", "."): place for place in expected}
  opening = {
    places.get(name, name.replace(".", "/")): tensorstore.open(
      {"driver": "zarr", "kvstore": store.spec().to_json() | {"path": name}}
    )
    for name in names
  }
  return {place: future.result() for place, future in opening.items()}


def _check_chunks(step: pathlib.Path, stores: dict) -> None:
  """Raises an error if an array has pieces that are larger than the array.

  TensorStore allocates memory for a whole piece, and a forged piece needs few
  bytes.
  """
  for place, store in stores.items():
    chunk = store.chunk_layout.read_chunk.shape or ()  # a number has no shape
    if math.prod(chunk) > max(1, math.prod(store.shape)):
      raise Damaged(
        step,
        f"{place} has pieces of shape {list(chunk)}, larger than the array",
      )


def _shapes(arrays: dict) -> dict[str, str]:
  """Returns place -> dtype and shape, such as float32[3, 84]."""
  return {
    place: f"{_dtype(array).name}{list(array.shape)}"
    for place, array in arrays.items()
  }


def _dtype(array) -> np.dtype:
  # TensorStore has dtypes of its own.
  return np.dtype(getattr(array.dtype, "numpy_dtype", array.dtype))


def _check_fit(step, part: str, stored: dict, wanted: dict) -> None:
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
      f"checkpoint {step} does not fit ({part}): {'; '.join(problems)}; "
      "use the config it was trained with"
    )


def check_scores(directory: pathlib.Path, *, repair: bool) -> None:
  """Checks the scores of all steps.

  Orbax reads them when it opens the directory, and would not tell which one is
  damaged. A step without a score is half deleted; orbax deletes the rest.

  Args:
    directory: the folder of the checkpoints.
    repair: whether to set the newest step aside if its score is damaged.
      Training can make it again from the step before.

  Raises:
    Damaged: a score is not what was saved.
  """
  scored = [path.parents[1] for path in directory.glob(f"[0-9]*/{SCORE}")]
  # Folders with other names are orbax's scratch directories.
  steps = sorted((s for s in scored if _is_number(s.name)), key=_number)
  for step in steps:
    if _score_is_whole(step):
      continue
    error = Damaged(step, "its score differs from what was saved")
    if not repair or step != steps[-1] or len(steps) == 1:
      raise error
    terminal.note(f"deepemd_jax: {error.problem}")
    set_aside(directory, [_number(step)])


def _score_is_whole(step: pathlib.Path) -> bool:
  try:
    metrics = json.loads(files.read_regular(step / SCORE, _LONGEST_SCORE))
    numbers = {k: metrics[k] for k in ("score", "step")}
    if not all(type(x) in (int, float) for x in numbers.values()):
      return False
    if not all(math.isfinite(x) for x in numbers.values()):
      return False
    checksum = json_checksum(numbers)
    return metrics.get("checksum", checksum) == checksum
  except (ValueError, LookupError, TypeError, AttributeError):
    return False
  except (OSError, OverflowError, RecursionError):
    return False


def _is_number(name: str) -> bool:
  return name.isascii() and name.isdecimal()


def _number(step: pathlib.Path) -> int:
  return int(step.name)


def set_aside(directory: pathlib.Path, steps: list[int]) -> None:
  """Renames damaged steps. Call it on all processes."""
  runtime.barrier("damage seen")
  if runtime.is_main():
    for step in steps:
      place = directory / f"damaged.{step}"
      shutil.rmtree(place, ignore_errors=True)
      os.rename(directory / str(step), place)
    kept = directory / f"damaged.{steps[-1]}"
    terminal.note(
      "deepemd_jax: training continues from an earlier checkpoint; the "
      f"damaged one is kept as {kept}"
    )
  runtime.barrier("damage set aside")


def first_sentence(error: BaseException) -> str:
  """Returns the message of an error of orbax or TensorStore without its long
  tail."""
  return re.split(r"\n|\. See ", str(error) or type(error).__name__)[0]
