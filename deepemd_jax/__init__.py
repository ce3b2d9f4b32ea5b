"""DeepEMD few-shot learning, and an exact differentiable EMD, in JAX.

Importing this package imports nothing else: `emd`, `data`, `models` and the
rest load on first use, so that `python -m deepemd_jax.main --help` is instant.
"""

import importlib

__version__ = "0.1.0"

_ROOMS = ("data", "emd", "models")
_LAZY = {"FewShotClassifier": "deepemd_jax.inference.classifier"}


def __getattr__(name: str):
  if name in _ROOMS:
    return importlib.import_module(f"deepemd_jax.{name}")
  if name in _LAZY:
    return getattr(importlib.import_module(_LAZY[name]), name)
  raise AttributeError(f"module 'deepemd_jax' has no attribute {name!r}")


def __dir__():
  return sorted([*globals(), *_ROOMS, *_LAZY])
