"""Names that a person may choose, and what stands behind them.

A registry is a plain dict: name -> a frozen entry with a title, and with the
path of what it stands for, "package.module:name". The path is followed on first
use, so that `--help` and a wrong name answer without loading JAX.
"""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


def load(path: str) -> Any:
  """What "package.module:name" stands for; imports the module."""
  module, _, name = path.partition(":")
  return getattr(importlib.import_module(module), name)


def hint(name: str, known: Iterable[str]) -> str:
  """What to do about an unknown name: the nearest ones, or all of them."""
  known = list(known)
  near = difflib.get_close_matches(name, known, 2)
  if near:
    return f"did you mean {' or '.join(near)}?"
  return f"use one of {', '.join(known)}"
