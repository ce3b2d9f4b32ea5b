"""Networks and matching heads. `models.DeepEMD` is the module to start from.

Each module of this package loads on first use.
"""

import importlib
import pkgutil

# A further name of a module, which other programs use.
_OTHER_NAMES = {"resnet": "resnet12"}


def __getattr__(name: str):
  if name == "DeepEMD":
    return importlib.import_module(f"{__name__}.deepemd").DeepEMD
  module = _OTHER_NAMES.get(name, name)
  if module not in _modules():
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return importlib.import_module(f"{__name__}.{module}")


def _modules() -> set[str]:
  return {module.name for module in pkgutil.iter_modules(__path__)}


def __dir__():
  return sorted({*globals(), "DeepEMD", *_OTHER_NAMES, *_modules()})
