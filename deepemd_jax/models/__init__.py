"""Networks and matching heads. `models.DeepEMD` is the module to start from."""

import importlib

_ATTRIBUTES = {"DeepEMD": "deepemd_jax.models.deepemd"}
_MODULES = {
  **{
    name: f"deepemd_jax.models.{name}"
    for name in (
      *("backbone", "deepemd", "heads", "matching", "nodes", "resnet12"),
      "sfc",
    )
  },
  # The name by which other people's code knows it.
  "resnet": "deepemd_jax.models.resnet12",
}


def __getattr__(name: str):
  if name in _ATTRIBUTES:
    return getattr(importlib.import_module(_ATTRIBUTES[name]), name)
  if name in _MODULES:
    return importlib.import_module(_MODULES[name])
  raise AttributeError(f"module 'deepemd_jax.models' has no attribute {name!r}")


def __dir__():
  return sorted([*globals(), *_ATTRIBUTES, *_MODULES])
