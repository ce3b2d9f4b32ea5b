"""DeepEMD few-shot learning, and an exact differentiable EMD, in JAX.

Importing this package imports nothing else. Each of the names below is loaded
on first use, so that `python -m deepemd_jax.main --help` is instant. For `emd`,
`pip install deepemd_jax` is enough. The rest needs
`pip install 'deepemd_jax[train]'`.
"""

import importlib
from typing import TYPE_CHECKING

from deepemd_jax.utils.version import VERSION

if TYPE_CHECKING:
  from deepemd_jax import data, emd, models
  from deepemd_jax.checkpoints import convert
  from deepemd_jax.inference.classifier import FewShotClassifier
  from deepemd_jax.inference.node_classifier import NodeClassifier
  from deepemd_jax.models.deepemd import DeepEMD

__version__ = VERSION

__all__ = [
  "DeepEMD",
  "FewShotClassifier",
  "NodeClassifier",
  "convert",
  "data",
  "emd",
  "models",
]

# Public name -> its module, or "module:name".
_LAZY = {
  "DeepEMD": "deepemd_jax.models.deepemd:DeepEMD",
  "FewShotClassifier": "deepemd_jax.inference.classifier:FewShotClassifier",
  "NodeClassifier": "deepemd_jax.inference.node_classifier:NodeClassifier",
  "convert": "deepemd_jax.checkpoints.convert",
  "data": "deepemd_jax.data",
  "emd": "deepemd_jax.emd",
  "models": "deepemd_jax.models",
}


def __getattr__(name: str):
  if name not in _LAZY:
    raise AttributeError(f"module 'deepemd_jax' has no attribute {name!r}")
  module, _, attribute = _LAZY[name].partition(":")
  try:
    loaded = importlib.import_module(module)
  except ModuleNotFoundError as error:
    from deepemd_jax.utils import extra

    if line := extra.missing(error):
      raise ImportError(line, name=error.name) from None
    raise
  return getattr(loaded, attribute) if attribute else loaded


def __dir__():
  return sorted({*globals(), *_LAZY})
