"""Networks and matching heads. `models.DeepEMD` is the module to start from."""

import importlib

_LAZY = {"DeepEMD": "deepemd_jax.models.deepemd"}
_ROOMS = ("deepemd", "matching", "nodes", "resnet")


def __getattr__(name: str):
  if name in _LAZY:
    return getattr(importlib.import_module(_LAZY[name]), name)
  if name in _ROOMS:
    return importlib.import_module(f"deepemd_jax.models.{name}")
  raise AttributeError(f"module 'deepemd_jax.models' has no attribute {name!r}")


def __dir__():
  return sorted([*globals(), *_LAZY, *_ROOMS])
