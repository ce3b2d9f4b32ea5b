"""State dicts of PyTorch networks, {name: array}, from files of any kind.

`.safetensors` is the preferred kind: it contains names, shapes and numbers and
nothing else. A `.pth` file is a pickle, which `torch_file` reads without
running it. If PyTorch is installed, its own reader can be used instead, which
refuses to run anything, too (`torch.load` with `weights_only`).
"""

import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from deepemd_jax.checkpoints import torch_file
from deepemd_jax.errors import InputError
from deepemd_jax.utils import files

SUFFIX = ".safetensors"
_HEADER = 2**21  # bytes
_DTYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U8": np.uint8,
  "BOOL": np.bool_,
}


def read(path: str | os.PathLike, reader: str = "own") -> dict[str, Any]:
  """Reads the state dict of a file.

  Args:
    path: a `.safetensors` file, or a file of `torch.save`. The latter contains
      a state dict, or {"params": state dict}, as from the authors of DeepEMD
      and FEAT, or {"model": state dict, ...}, as LibFewShot's `model_last.pth`.
    reader: the reader for files of `torch.save`: "own", or "torch", PyTorch's.

  Returns:
    {name: array}; entries of a `.pth` file may be something else, too.

  Raises:
    InputError: the file cannot be read, is damaged or refused, or contains no
      state dict; or reader is "torch" and PyTorch is not installed.
  """
  if pathlib.Path(path).suffix == SUFFIX:
    return _read_safetensors(path)
  found = _read_by_torch(path) if reader == "torch" else torch_file.load(path)
  for name in ("params", "model"):
    if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
      found = found[name]
  if not isinstance(found, Mapping):
    raise InputError(f"{path} holds a {type(found).__name__}, not a state dict")
  return dict(found)


def write(path: str | os.PathLike, state: Mapping[str, np.ndarray]) -> None:
  """Writes a `.safetensors` file, whole or not at all.

  Args:
    path: path of the file.
    state: {name: array [...] of any shape}.

  Raises:
    InputError: the file cannot be written.
  """
  from safetensors import numpy

  arrays = {name: np.ascontiguousarray(x) for name, x in state.items()}
  try:
    files.write(path, numpy.save(arrays))
  except OSError as error:
    raise InputError(f"cannot write {path}: {error.strerror}") from error


def _read_safetensors(path) -> dict[str, np.ndarray]:
  """Returns the arrays of a file, which are read from it when they are used."""
  import safetensors

  try:
    with files.opened_regular(path) as file:
      length = int.from_bytes(file.read(8), "little")
      header = file.read(min(length, _HEADER))
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from error
  if length > _HEADER:  # that of ResNet-12 has 10 kB
    raise InputError(
      f"{path} cannot be read as a safetensors file: its header is larger "
      f"than {_HEADER} bytes"
    )
  try:
    with safetensors.safe_open(path, "numpy"):
      pass  # this checks that the header is valid and fits the rest of the file
    content = np.memmap(path, np.uint8, "r")
    return {
      name: np.ndarray(
        entry["shape"],
        _DTYPES[entry["dtype"]],
        content,
        8 + length + entry["data_offsets"][0],
      )
      for name, entry in json.loads(header).items()
      if name != "__metadata__"
    }
  except KeyError as error:
    raise InputError(
      f"{path} has numbers of type {error}, which cannot be read"
    ) from error
  except (OSError, safetensors.SafetensorError, ValueError) as error:
    raise InputError(
      f"{path} is not a safetensors file, or is damaged ({error!s:.80})"
    ) from error


def _read_by_torch(path) -> Any:
  if importlib.util.find_spec("torch") is None:
    raise InputError(
      "PyTorch is not installed; leave --reader=torch out, or pip install torch"
    )
  import torch

  try:
    found = torch.load(path, map_location="cpu", weights_only=True)
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from error
  except Exception as error:  # unpicklers raise errors of nearly every type
    reason = str(error).split("\n", 1)[0]
    raise InputError(f"PyTorch refuses {path} ({reason:.120})") from error
  return _to_numpy(found)


def _to_numpy(found):
  if isinstance(found, Mapping):
    return {key: _to_numpy(value) for key, value in found.items()}
  if not hasattr(found, "detach"):
    return found
  # NumPy has no bfloat16; float32 can represent all of its numbers.
  found = found.detach()
  if str(found.dtype) == "torch.bfloat16":
    found = found.float()
  return found.numpy()
