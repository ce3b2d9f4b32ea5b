"""Reads the tensors of a PyTorch checkpoint without PyTorch, and without trust.

A `.pth` file is a pickle, and a pickle may call anything. Here it may only make
dictionaries, lists, numbers, strings and tensors; whatever else it names is
refused before it is called. Both formats are read: the zip archive of PyTorch
1.6 and later, and the older row of pickles.
"""

import collections
import io
import math
import pathlib
import pickle
import zipfile
from typing import Any, NamedTuple

import numpy as np

from deepemd_jax.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C  # of the older format
_DTYPES = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}


class _Storage(NamedTuple):
  dtype: type
  key: str


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple
  strides: tuple


def _tensor(storage, offset, shape, strides, *unused) -> _Tensor:
  if not isinstance(storage, _Storage):
    raise pickle.UnpicklingError("a tensor without storage")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor, *unused) -> _Tensor:
  return tensor


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str):
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _tensor
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
      return _parameter
    if module == "torch" and name in _DTYPES:
      return _DTYPES[name]
    raise _Refused(f"{module}.{name}")

  def persistent_load(self, pid) -> _Storage:
    kind, dtype, key = pid[:3]
    if kind != "storage" or dtype not in _DTYPES.values():
      raise pickle.UnpicklingError("an unknown kind of storage")
    if len(pid) > 5 and pid[5] is not None:
      raise pickle.UnpicklingError("a view of a storage")
    return _Storage(dtype, str(key))


class _Refused(Exception):
  """The pickle names something that is not a tensor's."""


def load(path) -> Any:
  """What `torch.save` saved, with NumPy arrays for tensors.

  Args:
    path: the file.

  Returns:
    Dictionaries, lists, tuples, numbers and strings, as saved.

  Raises:
    InputError: there is no such file, it is not a checkpoint or is damaged, or
      it asks for anything but tensors, which is refused.
  """
  path = pathlib.Path(path)
  try:
    content = path.read_bytes()
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from error
  try:
    if zipfile.is_zipfile(io.BytesIO(content)):
      found, storages = _archive(content)
    else:
      found, storages = _row(content)
    return _filled(found, storages)
  except _Refused as error:
    raise InputError(
      f"{path} is refused: it asks for {error}, which is not needed for "
      "tensors and could run anything; save its state dict alone"
    ) from error
  # Damaged pickles raise nearly everything.
  except Exception as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise InputError(
      f"{path} is not a PyTorch checkpoint, or is damaged ({reason:.80})"
    ) from error


def _archive(content: bytes):
  """The zip format: one pickle, and a file for each storage."""
  archive = zipfile.ZipFile(io.BytesIO(content))
  names = archive.namelist()
  (main,) = (n for n in names if n.split("/", 1)[-1] == "data.pkl")
  folder = main.removesuffix("data.pkl")
  if f"{folder}byteorder" in names:
    if archive.read(f"{folder}byteorder") != b"little":
      raise ValueError("it was saved on a big-endian machine")
  found = _Unpickler(io.BytesIO(archive.read(main))).load()
  return found, lambda s: np.frombuffer(
    archive.read(f"{folder}data/{s.key}"), s.dtype
  )


def _row(content: bytes):
  """The older format: five pickles, then the storages' sizes and bytes."""
  file = io.BytesIO(content)
  if _Unpickler(file).load() != _MAGIC:
    raise ValueError("it does not begin as one")
  _Unpickler(file).load()  # protocol version
  if not _Unpickler(file).load()["little_endian"]:
    raise ValueError("it was saved on a big-endian machine")
  reader = _Seen(file)
  found = reader.load()
  kept = {}
  for key in _Unpickler(file).load():
    dtype = reader.dtypes[str(key)]
    count = int(np.frombuffer(file.read(8), "<i8")[0])
    data = file.read(count * np.dtype(dtype).itemsize)
    kept[str(key)] = np.frombuffer(data, dtype, count)
  return found, lambda s: kept[s.key]


class _Seen(_Unpickler):
  """Remembers the storages' types, which their bytes do not tell."""

  def __init__(self, file):
    super().__init__(file)
    self.dtypes = {}

  def persistent_load(self, pid) -> _Storage:
    storage = super().persistent_load(pid)
    self.dtypes[storage.key] = storage.dtype
    return storage


def _filled(found, storages):
  """`found` with arrays for its tensors."""
  if isinstance(found, _Tensor):
    data = storages(found.storage)
    steps = [
      (n - 1) * s for n, s in zip(found.shape, found.strides, strict=True)
    ]
    least = min(found.offset, *found.shape, *found.strides, 0)
    last = found.offset + sum(steps)
    if least < 0 or (math.prod(found.shape) and last >= len(data)):
      raise ValueError("a tensor reaches beyond its storage")
    size = data.itemsize
    view = np.lib.stride_tricks.as_strided(
      data[found.offset :], found.shape, [s * size for s in found.strides]
    )
    return np.array(view)
  if isinstance(found, dict):
    return {key: _filled(value, storages) for key, value in found.items()}
  if isinstance(found, list | tuple):
    return type(found)(_filled(value, storages) for value in found)
  return found
