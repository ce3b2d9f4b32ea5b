"""Checks that a workdir belongs to the config of a run, by its `config.json`.

The first run writes the file. Later runs continue that run if they have the
same config. Otherwise they are refused, before anything in the folder changes.
A checksum in the file distinguishes damage from another config. The checksums
of two runs are not compared.
"""

import json
import math
import pathlib
import tempfile

from deepemd_jax.errors import InputError
from deepemd_jax.utils import files

CONFIG = "config.json"
# Fields, or whole sections, that may change between two runs in one workdir:
# they do not alter what the training stages learn.
MUTABLE_FIELDS = frozenset(
  {
    *("stages", "evaluate", "sfc", "data.test_name", "data.workers"),
    *("episode", "variant", "retrieve"),
  }
)
# The values for a config.json from before these fields existed.
LEGACY_DEFAULTS = {"model": {"precision": "float32", "backbone": "resnet12"}}


def check(workdir: pathlib.Path, fields: dict, *, trains: bool) -> None:
  """Makes sure that a run may use a workdir; makes it if it is missing.

  Args:
    workdir: the folder of the run.
    fields: the run's config as a JSON object, with "streams", the version of
      its random draws.
    trains: whether a stage of the run trains. If none does, only the model's
      fields must be those of `config.json`: a trained encoder may be tested on
      other data, nodes or episodes.

  Raises:
    InputError: the workdir cannot be written to, contains foreign files, or
      belongs to another config; or a later run could not read this config.
  """
  _check_readable(fields)
  try:
    saved = _read(workdir / CONFIG)
    workdir.mkdir(parents=True, exist_ok=True)
    foreign = bool(_names(workdir))
    with tempfile.TemporaryFile(dir=workdir, prefix=files.SCRATCH_PREFIX):
      pass
  except OSError as error:
    raise InputError(
      f"cannot write to workdir {workdir}: {error.strerror}; give another "
      "--workdir"
    ) from error
  if saved is None and foreign:
    raise InputError(
      f"workdir {workdir} contains files but no config.json of a run; give "
      "an empty or new --workdir"
    )
  _check_streams(workdir, saved or {}, fields, trains=trains)
  if changes := _changes(saved or {}, fields, trains=trains):
    remedy = "" if trains else "use the values the run was trained with, or "
    raise InputError(
      f"workdir {workdir} belongs to another config: "
      f"{'; '.join(changes[:5])}; {remedy}give another --workdir"
    )


def claim(workdir: pathlib.Path, fields: dict) -> bool:
  """Writes the config into a new workdir. Only one of several processes calls
  this.

  Returns:
    Whether the workdir was new.

  Raises:
    InputError: the file cannot be written.
  """
  path = workdir / CONFIG
  from deepemd_jax.config import stored  # loads ml_collections

  if path.exists():
    return False
  try:
    text = json.dumps(stored.sealed(fields), indent=2, sort_keys=True)
    files.write(path, text + "\n")
  except OSError as error:
    raise InputError(
      f"cannot write to workdir {workdir}: {error.strerror}; make room, or "
      "give another --workdir"
    ) from error
  return True


def release(workdir: pathlib.Path) -> None:
  """Removes the config from a workdir in which no stage has written anything,
  so that a run with another config can have it."""
  if _names(workdir) == {CONFIG}:
    (workdir / CONFIG).unlink()


def _names(workdir: pathlib.Path) -> set[str]:
  """Returns the names in a folder, without remains of interrupted writing."""
  names = {path.name for path in workdir.iterdir()}
  return {x for x in names if not x.startswith(files.SCRATCH_PREFIX)}


def _read(path: pathlib.Path) -> dict | None:
  """Reads the config.json of an earlier run; returns None if there is none."""
  from deepemd_jax.config import stored

  if not path.exists():
    return None
  try:
    fields = stored.read_fields(path)
  except InputError as error:
    raise InputError(f"{error}; or give another --workdir") from error
  for section, defaults in LEGACY_DEFAULTS.items():
    if isinstance(fields.get(section), dict):
      fields[section] = defaults | fields[section]
  return fields


def _check_readable(fields: dict) -> None:
  """Raises an error if a later run would refuse to read the fields, before
  training depends on them."""
  from deepemd_jax.config import stored

  problems = stored.excesses(fields)
  for name, value in _leaves(fields):
    numbers = value if isinstance(value, list) else [value]
    if not all(math.isfinite(x) for x in numbers if isinstance(x, float)):
      problems.append(f"config.{name} is {value!r}; use finite numbers")
  if problems:
    raise InputError("; ".join(problems))


def _check_streams(
  workdir: pathlib.Path, saved: dict, fields: dict, *, trains: bool
) -> None:
  """Raises an error if a workdir was made with other random draws and these
  matter: in training, and if the seed splits the classes of a folder."""
  if "data" not in saved:  # it is new, or has a converted encoder
    return
  data = fields["data"]
  by_seed = data["name"].partition(":")[0] == "folder" and not data["csv"]
  same = saved.get("streams", 1) == fields["streams"]
  if not same and (trains or by_seed):
    raise InputError(
      f"workdir {workdir} was made by a version that drew other random numbers "
      "(and split the classes of a folder in another way); give another "
      "--workdir"
    )


def _changes(saved: dict, fields: dict, *, trains: bool) -> list[str]:
  """Returns a clause for each field that must be equal and is not."""
  before, now = dict(_leaves(saved)), dict(_leaves(fields))
  return [
    f"{name} was {before[name]!r} and is {now[name]!r}"
    # Fields that only one of two versions of this program knows do not count.
    for name in sorted(before.keys() & now.keys())
    if (trains or name.split(".")[0] == "model")
    and not {name, name.split(".")[0]} & MUTABLE_FIELDS
    and name != "streams"
    and before[name] != now[name]
  ]


def _leaves(fields, prefix: str = ""):
  """Yields pairs of a field's dotted name and its value."""
  for name, value in fields.items():
    if isinstance(value, dict):
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value
