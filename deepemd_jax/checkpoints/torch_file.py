"""Reads the tensors of an untrusted PyTorch checkpoint without PyTorch.

A `.pth` file contains a pickle, which is a program. `inert_pickle` reads it
without running anything. It returns dictionaries, lists, numbers, strings, and
descriptions of tensors, which are checked before arrays are made from them.
Both formats are read: the zip archive of PyTorch 1.6 and later, and the older
row of pickles.

Arrays are views of the file's content, and those that share a storage share
memory, so that a file of n bytes takes about n bytes of memory.
"""

import hashlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from deepemd_jax.checkpoints import inert_pickle
from deepemd_jax.checkpoints.inert_pickle import Call, Global, Persistent
from deepemd_jax.errors import InputError
from deepemd_jax.utils import files

_MAGIC = 0x1950A86A20F9469CFC6C  # the first number of the older format
_DTYPES = {
  "torch.DoubleStorage": np.float64,
  "torch.FloatStorage": np.float32,
  "torch.HalfStorage": np.float16,
  "torch.BFloat16Storage": ml_dtypes.bfloat16,
  "torch.LongStorage": np.int64,
  "torch.IntStorage": np.int32,
  "torch.ShortStorage": np.int16,
  "torch.CharStorage": np.int8,
  "torch.ByteStorage": np.uint8,
  "torch.BoolStorage": np.bool_,
}
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_CALLS = frozenset({_TENSOR, _PARAMETER, "collections.OrderedDict"})
_NAMES = _CALLS | frozenset(_DTYPES)
_AXES = 16
_TENSORS = 20_000
_MEMBERS = 40_000
_SHORT = 1024  # bytes of a pickle before the tensors in an older file
# The elements of all tensors may take at most this multiple of the file's
# bytes. Several may share a storage, but a stride of zero could make terabytes.
_SHARED = 2
_LARGEST = 2**48  # the largest size or offset, in elements
_ZIP = b"PK\x03\x04"
# The errors of zipfile, struct, NumPy and this module for damaged files.
_DAMAGE = (
  *(ValueError, KeyError, OSError, OverflowError, RuntimeError, struct.error),
  *(zipfile.BadZipFile, zipfile.LargeZipFile),
)


class _Storage(NamedTuple):
  """The description of a storage in a pickle.

  Attributes:
    key: its name.
    dtype: the dtype of its elements.
    count: the number of its elements.
  """

  key: str
  dtype: np.dtype
  count: int

  @classmethod
  def of(cls, reference) -> "_Storage":
    """Makes a description from a reference to data outside of the pickle."""
    if not isinstance(reference, Persistent):
      raise ValueError("a tensor without storage")
    kind, named, key, _, count, *view = reference.key
    if kind != "storage" or not isinstance(named, Global):
      raise ValueError("an unknown kind of storage")
    if named.name not in _DTYPES or type(key) is not str:
      raise ValueError("an unknown kind of storage")
    if view not in ([], [None]):
      raise ValueError("a view of a storage")
    _check_whole(count)
    return cls(key, np.dtype(_DTYPES[named.name]), count)

  @property
  def size(self) -> int:
    """The size in bytes."""
    return self.count * self.dtype.itemsize


_Storages = Callable[[_Storage], memoryview]


def load(path, sha256: str | None = None) -> Any:
  """Reads what `torch.save` saved, with NumPy arrays in place of tensors.

  Args:
    path: the file.
    sha256: the file's checksum in hexadecimal, if it is known; it is compared
      before the content is parsed.

  Returns:
    Dictionaries, lists, tuples, numbers and strings, as saved. Arrays are
    read-only, and those of one storage share its memory.

  Raises:
    InputError: there is no such file, it is not a checkpoint or is damaged, has
      another checksum, or contains anything that a state dict does not need.
  """
  name = str(path)
  try:
    content = files.read_regular(path)
  except OSError as error:
    raise InputError(f"cannot read {name}: {error.strerror}") from error
  found = hashlib.sha256(content).hexdigest() if sha256 else ""
  if sha256 and found != sha256.lower():
    raise InputError(
      f"{name} is not the expected file: its SHA-256 is {found}, but "
      f"should be {sha256}"
    )
  try:
    is_zip = content.startswith(_ZIP)
    tree, storages = _archive(content) if is_zip else _row(content)
    return _Arrays(storages, _SHARED * len(content)).of(tree)
  except inert_pickle.RefusedError as error:
    raise InputError(
      f"{name} is refused ({error}): only what a state dict needs is read; "
      "save model.state_dict() alone, or as safetensors"
    ) from error
  except _DAMAGE as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise InputError(
      f"{name} is not a PyTorch checkpoint, or is damaged ({reason:.80})"
    ) from error


def _pickle(
  content, start: int = 0, longest: int = inert_pickle.LONGEST
) -> tuple[Any, int]:
  return inert_pickle.read(content, _NAMES, _CALLS, start, longest)


def _archive(content: bytes) -> tuple[Any, _Storages]:
  """Reads the zip format: one pickle, and a member for each storage."""
  members = _members(content)
  mains = [n for n in members if n.split("/", 1)[-1] == "data.pkl"]
  if len(mains) != 1:
    raise ValueError(f"{len(mains)} members are called data.pkl")
  folder = mains[0].removesuffix("data.pkl")
  if members.get(f"{folder}byteorder", b"little") != b"little":
    raise ValueError("it was saved on a big-endian machine")
  tree, _ = _pickle(members[mains[0]])
  # In this format, PyTorch 1.4 and 1.5 call the folder "tensors", not "data".
  places = {name.rsplit("/", 1)[0] for name in members} & {
    f"{folder}data",
    f"{folder}tensors",
  }
  place = min(places, default=folder)
  return tree, lambda storage: members[f"{place}/{storage.key}"]


def _members(content: bytes) -> dict[str, memoryview]:
  """Returns the members of an archive by name, as uncompressed parts of it."""
  members: dict[str, memoryview] = {}
  if content.count(b"PK\x01\x02") > _MEMBERS:  # one for each directory entry
    raise ValueError(f"more than {_MEMBERS} members")
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    listed = archive.infolist()
  # Check this before they are read, because all could be in the same place.
  if sum(member.file_size for member in listed) > len(content):
    raise ValueError("members overlap")
  for member in listed:
    if member.filename in members:
      raise ValueError("two members have the same name")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
      raise ValueError("a member is compressed or encrypted")
    members[member.filename] = _stored(memoryview(content), member)
  return members


def _stored(content: memoryview, member: zipfile.ZipInfo) -> memoryview:
  """Returns the bytes of a member, which follow its own header."""
  header = content[member.header_offset :][:30]
  if len(header) < 30 or header[:4] != _ZIP:
    raise ValueError("a member is not where the archive says")
  lengths = struct.unpack("<HH", header[26:])
  start = member.header_offset + len(header) + sum(lengths)
  part = content[start : start + member.file_size]
  if not len(part) == member.file_size == member.compress_size:
    raise ValueError("a member is cut off")
  if zlib.crc32(part) != member.CRC:
    raise ValueError("a member is damaged (checksum)")
  return part


def _row(content: bytes) -> tuple[Any, _Storages]:
  """Reads the older format: five pickles, then sizes and bytes of storages."""
  magic, at = _pickle(content, longest=_SHORT)
  if magic != _MAGIC:
    raise ValueError("it does not begin like one")
  _, at = _pickle(content, at, _SHORT)  # protocol version
  system, at = _pickle(content, at, _SHORT)
  if type(system) is not dict or system.get("little_endian") is not True:
    raise ValueError("it was saved on a big-endian machine")
  tree, at = _pickle(content, at)
  keys, at = _pickle(content, at)
  # Hashing a key of another kind could take forever.
  if type(keys) is not list or not {type(key) for key in keys} <= {str}:
    raise ValueError("the storages are not listed")
  storages = _all_storages(tree)
  kept: dict[str, memoryview] = {}
  for key in keys:
    size = int.from_bytes(content[at : at + 8], "little", signed=True)
    if size != storages[key].count:
      raise ValueError("a storage has two sizes")
    start = at + 8
    at = start + storages[key].size
    kept[key] = memoryview(content)[start:at]
  return tree, lambda storage: kept[storage.key]


def _all_storages(tree) -> dict[str, _Storage]:
  """Returns the storages that a value of `inert_pickle` names, by key."""
  found: dict[str, _Storage] = {}
  seen: set[int] = set()
  waiting = [tree]
  while waiting:
    value = waiting.pop()
    if id(value) in seen:
      continue
    seen.add(id(value))
    if isinstance(value, Persistent):
      storage = _Storage.of(value)
      if found.setdefault(storage.key, storage) != storage:
        raise ValueError("a storage is of two kinds")
    waiting += inert_pickle.parts(value)
  return found


class _Arrays:
  """A maker of arrays from the tensors in a value of `inert_pickle`."""

  def __init__(self, storages: _Storages, limit: int) -> None:
    """`limit` bounds the bytes of all arrays, as if they shared no memory."""
    self._storages = storages
    self._left = limit
    self._tensors = 0
    self._made: dict[int, Any] = {}  # an object in two places stays one object

  def of(self, value):
    """Returns `value` with arrays; changes its lists and dictionaries."""
    if isinstance(value, Global | Persistent):
      raise ValueError("something that is neither a value nor a tensor")
    if not isinstance(value, Call) and not inert_pickle.parts(value):
      return value
    if id(value) not in self._made:
      self._made[id(value)] = self._of(value)
    return self._made[id(value)]

  def _of(self, value):
    if isinstance(value, Call):
      return self._array(value)
    if isinstance(value, tuple):
      return tuple(self.of(each) for each in value)
    for key, each in (
      value.items() if isinstance(value, dict) else enumerate(value)
    ):
      value[key] = self.of(each)
    return value

  def _array(self, call: Call) -> np.ndarray:
    if call.name == _PARAMETER:
      tensor = call.arguments[0] if call.arguments else None
      if not isinstance(tensor, Call) or tensor.name != _TENSOR:
        raise ValueError("a parameter without a tensor")
      return self.of(tensor)
    if not 4 <= len(call.arguments) <= 7:
      raise ValueError("a tensor with too few or too many parts")
    reference, offset, shape, strides = call.arguments[:4]
    storage = _Storage.of(reference)
    _check_whole(offset)
    for sizes in (shape, strides):
      if type(sizes) is not tuple or len(sizes) > _AXES:
        raise ValueError("a tensor whose sizes are not a tuple")
      _check_whole(*sizes)
    data = self._storages(storage)
    if len(data) != storage.size:
      raise ValueError("a storage does not have its stated size")
    elements = math.prod(shape)
    last = offset + sum(
      (n - 1) * step for n, step in zip(shape, strides, strict=True)
    )
    if elements and last >= storage.count:
      raise ValueError("a tensor reaches beyond its storage")
    self._tensors += 1
    self._left -= elements * storage.dtype.itemsize
    if self._left < 0 or self._tensors > _TENSORS:
      raise ValueError("there are more tensors than such a file can hold")
    if not elements:
      empty = np.zeros(shape, storage.dtype)
      empty.flags.writeable = False
      return empty
    item = storage.dtype.itemsize
    steps = [  # the stride of an axis of length 1 is never used
      (step if n > 1 else 1) * item
      for n, step in zip(shape, strides, strict=True)
    ]
    # NumPy checks all this against the buffer once more.
    return np.ndarray(shape, storage.dtype, data, offset * item, steps)


def _check_whole(*numbers) -> None:
  for number in numbers:
    if type(number) is not int or not 0 <= number < _LARGEST:
      raise ValueError("a size or place that is not a whole number in range")
