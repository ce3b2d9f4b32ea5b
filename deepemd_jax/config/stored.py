"""A run's config.json, read back: what new images need of it."""

import json
import pathlib

from ml_collections import ConfigDict

from deepemd_jax.config import defaults, validate
from deepemd_jax.errors import InputError

# Sections that say how a trained encoder looks at images and matches them. The
# others are about training and tests, and may be anything.
SECTIONS = ("seed", "image", "model", "nodes", "emd", "sfc")
# Fields whose empty value stands for what the backbone was made for.
MAY_BE_EMPTY = ("image.mean", "image.std")


def read(path: pathlib.Path) -> ConfigDict:
  """The config of an earlier run; what its file leaves out is as by default.

  Raises:
    InputError: there is no such file, or a value is of another kind than the
      field's default, or against its rules.
  """
  fields = read_fields(path)
  config = defaults.get_config()
  try:
    for section in SECTIONS:
      if section in fields:
        config[section] = _typed(fields[section], config[section], section)
    if problems := validate.broken_rules(config, SECTIONS):
      raise InputError("; ".join(problems))
  except InputError as error:
    raise InputError(f"in {str(path)!r} {error}") from error
  return config


def read_fields(path: pathlib.Path) -> dict:
  """The same as the plain JSON object that the file holds."""
  try:
    fields = json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise InputError(
      f"{str(path)!r} is not the config of a run ({error})"
    ) from error
  if not isinstance(fields, dict):
    raise InputError(
      f"in {str(path)!r} there is {fields!r:.80}, which should be named fields"
    )
  return fields


def _typed(value, default, name: str):
  """`value` where it is of the kind of `default`; what it lacks is filled in.

  Raises:
    InputError: it is of another kind.
  """
  if name in MAY_BE_EMPTY and value == []:
    return ()
  if not _fits(value, default):
    raise InputError(
      f"{name} is {value!r:.80}, which should be {_kind(default)}"
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
    if _is_counts(default):
      return all(_fits(x, 1) for x in value)
    return len(value) == len(default) and all(_fits(x, 1.0) for x in value)
  if isinstance(default, float):
    return type(value) in (int, float)
  return type(value) is type(default)


def _kind(default) -> str:
  if isinstance(default, ConfigDict):
    return "named fields"
  if isinstance(default, tuple):
    if _is_counts(default):
      return "a list of whole numbers"
    return f"a list of {len(default)} numbers"
  return {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
  }[type(default)]


def _is_counts(default: tuple) -> bool:
  """Whether there may be any number of them, all whole: a pyramid's levels."""
  return not default or isinstance(default[0], int)
