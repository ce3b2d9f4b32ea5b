"""Reads the parts of a run's config.json that new images need.

The file may be untrusted or damaged. So it is read strictly, and contains a
checksum of its fields.
"""

import hashlib
import json
import math
import os
import pathlib
import reprlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from deepemd_jax.config import defaults, validate
from deepemd_jax.errors import InputError
from deepemd_jax.utils import files

# The sections that define how a trained encoder encodes images and matches
# them. The others are about training and tests; only their types are checked.
SECTIONS = ("seed", "image", "model", "nodes", "emd", "sfc")
# Fields whose empty value stands for the backbone's value.
MAY_BE_EMPTY = ("image.mean", "image.std")
# Fields that list names, which their empty defaults do not show.
LISTS_OF_NAMES = ("evaluate.heads", "evaluate.more", "evaluate.variants")
# Bounds for fields of an untrusted file on which memory and time depend.
MOST = {
  **dict.fromkeys(("image.size", "image.pretrain_size"), 4096),
  "model.width": 100,
  "model.projection": 16384,
  **dict.fromkeys(("nodes.pyramid", "nodes.cells", "nodes.grid"), 32),
  **dict.fromkeys(("nodes.patches", "nodes.test_patches"), 1024),
  **dict.fromkeys(("sfc.epochs", "sfc.batch_size"), 1_000_000),
}
LARGEST_SEED = 2**63 - 1  # the largest seed that JAX takes
# The largest size in bytes; a file of this program has a few thousand.
LARGEST = 2**16
CHECKSUM = "checksum"


def read(path: pathlib.Path) -> ConfigDict:
  """Reads the config of an earlier run. Missing fields have default values.

  Raises:
    InputError: see `read_fields`.
  """
  return _read(path)[1]


def read_fields(path: pathlib.Path) -> dict:
  """Reads the config of an earlier run as the plain JSON object of its file,
  without its checksum.

  Raises:
    InputError: there is no such file, it is damaged, a field is unknown, or a
      value has another type than the field's default, or breaks its rules.
  """
  return _read(path)[0]


def _read(path: pathlib.Path) -> tuple[dict, ConfigDict]:
  fields = read_object(path, "the config of a run")
  if CHECKSUM in fields:  # older, converted and handwritten files have none
    remedy = (
      "restore the file that the run wrote or, if the change is intended, "
      f"delete the line {CHECKSUM!r}"
    )
    verify(fields, path, remedy)
    del fields[CHECKSUM]
  try:
    config = _config(fields)
  except InputError as error:
    raise InputError(f"in {str(path)!r} {error}") from error
  if config.model.weights:  # an exported folder contains them
    config.model.weights = os.path.join(
      os.path.abspath(path.parent), config.model.weights
    )
    fields["model"]["weights"] = config.model.weights
  return fields, config


def read_object(path: pathlib.Path, what: str, largest: int = LARGEST) -> dict:
  """Reads the JSON object in a file that may be untrusted.

  Args:
    path: path of the file.
    what: what the file should be, for the message.
    largest: the largest size in bytes; a larger file is not read.

  Raises:
    InputError: the file cannot be read, is too large, or is not strict JSON:
      one object, no field twice, every number finite.
  """
  try:
    fields = json.loads(
      files.read_regular(path, largest),
      parse_constant=_number,
      parse_float=_number,
      parse_int=_whole,
      object_pairs_hook=_once,
    )
  except RecursionError as error:
    raise InputError(
      f"{str(path)!r} is not {what} (brackets are nested too deep)"
    ) from error
  except (OSError, ValueError) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    raise InputError(f"{str(path)!r} is not {what} ({reason})") from error
  if not isinstance(fields, dict):
    raise InputError(
      f"in {str(path)!r} there is {reprlib.repr(fields)}, which should be "
      "an object with named fields"
    )
  return fields


def sealed(fields: dict) -> dict:
  """Adds a checksum to fields: the SHA-256 of their JSON, sorted by name."""
  rest = {name: x for name, x in fields.items() if name != CHECKSUM}
  text = json.dumps(rest, sort_keys=True)
  return rest | {CHECKSUM: hashlib.sha256(text.encode()).hexdigest()}


def verify(fields: dict, path: pathlib.Path, remedy: str) -> None:
  """Raises an error if fields do not fit their checksum.

  Args:
    fields: the fields from `read_object`.
    path: path of their file.
    remedy: what to do, for the message.

  Raises:
    InputError: the fields have changed, or there is no checksum.
  """
  try:
    intact = fields.get(CHECKSUM) == sealed(fields)[CHECKSUM]
  except RecursionError:
    intact = False  # a file of this program is not nested deep
  if not intact:
    raise InputError(
      f"{str(path)!r} is damaged, or was edited: it does not match its "
      f"checksum; {remedy}"
    )


def excesses(fields: Mapping | ConfigDict) -> list[str]:
  """Returns a clause for each value of a config that is above MOST."""
  problems = []
  # pyrefly: ignore[unsupported-operation]: there is a default
  if fields.get("seed", 0) > LARGEST_SEED:
    problems.append(f"config.seed must be at most {LARGEST_SEED}")
  for field, most in MOST.items():
    section, name = field.split(".")
    # pyrefly: ignore[missing-attribute]: there is a default
    value = fields.get(section, {}).get(name, 0)
    numbers = value if isinstance(value, list | tuple) else (value,)
    # The sum of the squares is a number of crops, or nodes, of an image.
    many = len(numbers) > 1 and sum(x * x for x in numbers) > most * most
    if max(numbers, default=0) > most or many:
      problems.append(
        f"config.{field} is {reprlib.repr(value)}; must be at most {most}"
      )
  return problems


def _number(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"{text:.40} is not a finite number")
  return value


def _whole(text: str) -> int:
  _number(text)  # refuses integers that are too large for a float
  return int(text)


def _once(pairs: list[tuple]) -> dict:
  """Makes a dictionary, and refuses two fields with one name, of which readers
  could choose different ones."""
  fields = dict(pairs)
  if len(fields) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"{twice!r:.80} occurs more than once")
  return fields


def _config(fields: dict) -> ConfigDict:
  """Returns the default config with the values of `fields` in SECTIONS.

  Raises:
    InputError: a field is unknown, or a value has another type or breaks its
      rules.
  """
  config = defaults.get_config()
  known = dict(config.items()) | {"streams": 1}
  if names := _unknown(fields, known):
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    listed = ", ".join(f"{name!r:.80}" for name in names[:5])
    raise InputError(
      f"there are fields that this version does not know: {listed}{more}; "
      "correct or delete them, or use the version that wrote them"
    )
  typed = {name: _typed(x, known[name], name) for name, x in fields.items()}
  for section in SECTIONS:
    if section in typed:
      config[section] = typed[section]
  problems = validate.broken_rules(config, SECTIONS)
  if problems := problems + excesses(config):
    raise InputError("; ".join(problems))
  return config


def _unknown(fields: dict, known: dict) -> list[str]:
  """Returns the dotted names of the fields that are not known."""
  names = [name for name in fields if name not in known]
  for section, own in known.items():
    found = fields.get(section)
    if isinstance(own, ConfigDict) and isinstance(found, dict):
      names += [f"{section}.{name}" for name in found if name not in own]
  return names


def _typed(value, default, name: str):
  """Returns `value` if it has the type of `default`, with missing fields added.

  Raises:
    InputError: it has another type.
  """
  if name in MAY_BE_EMPTY and value == []:
    return ()
  if name in LISTS_OF_NAMES:
    default = ("",)
  if not _fits(value, default):
    raise InputError(
      f"{name} is {reprlib.repr(value)}, which should be {_kind(default)}"
    )
  if isinstance(default, ConfigDict):
    return ConfigDict(
      {
        key: _typed(value.get(key, own), own, f"{name}.{key}")
        for key, own in default.items()
      }
    )
  return tuple(value) if isinstance(default, tuple) else value


def _fits(value, default) -> bool:
  if isinstance(default, ConfigDict):
    return isinstance(value, dict | ConfigDict)
  if isinstance(default, tuple):
    if not isinstance(value, list | tuple):
      return False
    if _is_open(default):
      return all(_fits(x, default[0] if default else 1) for x in value)
    return len(value) == len(default) and all(_fits(x, 1.0) for x in value)
  if isinstance(default, float):
    return type(value) in (int, float)
  return type(value) is type(default)


def _kind(default) -> str:
  if isinstance(default, ConfigDict):
    return "an object with named fields"
  if isinstance(default, tuple):
    if _is_open(default):
      names = default and isinstance(default[0], str)
      return "a list of names" if names else "a list of whole numbers"
    return f"a list of {len(default)} numbers"
  return {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
  }[type(default)]


def _is_open(default: tuple) -> bool:
  """Tells whether a list may have any length: a pyramid's levels, or names."""
  return not default or isinstance(default[0], int | str)
