"""Registries: names that a user may choose, and the objects that they name.

A registry is a plain dict from a name to a frozen entry, which has a title and
the path of the object, "package.module:name". The object is imported on first
use, so that `--help` and a wrong name are answered without loading JAX.
"""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


def load(path: str) -> Any:
  """Imports the module of "package.module:name" and returns the object."""
  module, _, name = path.partition(":")
  return getattr(importlib.import_module(module), name)


def hint(name: str, known: Iterable[str]) -> str:
  """Returns advice on an unknown name: the nearest names, or all of them."""
  known = list(known)
  near = difflib.get_close_matches(name, known, 2)
  if near:
    return f"did you mean {' or '.join(near)}?"
  return f"use one of {', '.join(known)}"
