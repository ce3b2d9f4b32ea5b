"""Finds the compiled network simplex and registers it with XLA."""

import ctypes
import functools
import pathlib

import jax

from deepemd_jax.emd.native import build

_TYPES = ("float32", "float64")


def target(dtype) -> str:
  """Returns the name by which XLA calls the code: one for each dtype.

  Args:
    dtype: the dtype of costs and masses, float32 or float64.
  """
  return f"deepemd_transport_{dtype}"


@functools.cache
def load() -> bool:
  """Returns whether the library exists; registers it, once per process."""
  folder = pathlib.Path(build.__file__).parent
  found = [
    path
    for path in sorted(folder.glob(f"{build.NAME}*"))
    if path.suffix in (".so", ".pyd", ".dylib")
  ]
  for path in found:
    try:
      library = ctypes.CDLL(str(path))
      functions = [getattr(library, target(dtype)) for dtype in _TYPES]
    except (OSError, AttributeError):  # built for another machine or version
      continue
    for dtype, function in zip(_TYPES, functions, strict=True):
      jax.ffi.register_ffi_target(
        target(dtype), jax.ffi.pycapsule(function), platform="cpu"
      )
    return True
  return False
