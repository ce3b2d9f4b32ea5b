"""Makes files like those of `torch.save`, without PyTorch.

There are two formats. Their pickles name classes by their place in PyTorch. The
module also makes `.safetensors` files.
"""

import collections
import io
import json
import pickle
import struct
import sys
import types
import zipfile

KINDS = {"float32": "FloatStorage", "int64": "LongStorage"}
MAGIC = 0x1950A86A20F9469CFC6C


def fake_torch() -> dict[str, types.ModuleType]:
  """Returns the modules of PyTorch that a pickle names, for `sys.modules`."""
  module, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
  for name in KINDS.values():
    setattr(module, name, type(name, (), {"__module__": "torch"}))

  def _rebuild_tensor_v2():
    pass

  _rebuild_tensor_v2.__module__ = "torch._utils"
  _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
  utils._rebuild_tensor_v2 = _rebuild_tensor_v2
  return {"torch": module, "torch._utils": utils}


class Storage:
  """The storage of an array's elements."""

  def __init__(self, array):
    self.array = array


class Tensor:
  """An array that is pickled as a tensor, with its strides."""

  def __init__(self, array, offset=0, shape=None, strides=None):
    self.arguments = (
      Storage(array.ravel()),
      offset,
      array.shape if shape is None else shape,
      tuple(s // array.itemsize for s in array.strides)
      if strides is None
      else strides,
      *(False, collections.OrderedDict()),
    )

  def __reduce__(self):
    return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
  """Writes storages as references, and keeps their arrays."""

  def __init__(self, file, old=False, protocol=2):
    super().__init__(file, protocol=protocol)
    self.old, self.storages = old, []

  def persistent_id(self, found):
    if not isinstance(found, Storage):
      return None
    self.storages.append(found.array)
    kind = getattr(sys.modules["torch"], KINDS[str(found.array.dtype)])
    key = str(len(self.storages) - 1)
    more = (None,) if self.old else ()
    return ("storage", kind, key, "cuda:0", len(found.array), *more)


def save(path, found, old=False) -> None:
  """Saves like `torch.save`; `fake_torch` must be in `sys.modules`."""
  data = io.BytesIO()
  pickler = Pickler(data, old)
  pickler.dump(found)
  storages = [array.tobytes() for array in pickler.storages]
  if old:
    counts = [len(array) for array in pickler.storages]
    content = row(data.getvalue(), storages, counts)
  else:
    content = archive(data.getvalue(), storages)
  with open(path, "wb") as file:
    file.write(content)


def archive(pickled: bytes, storages) -> bytes:
  """Makes a file of the zip format from a pickle and the bytes of storages."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as written:
    written.writestr("archive/data.pkl", pickled)
    for i, content in enumerate(storages):
      written.writestr(f"archive/data/{i}", content)
  return file.getvalue()


def row(pickled: bytes, storages, counts) -> bytes:
  """Makes a file of the older format."""
  sizes = {"short": 2, "int": 4, "long": 4}
  system = {"protocol_version": 1001, "little_endian": True}
  parts = [
    pickle.dumps(part, protocol=2)
    for part in (MAGIC, 1001, system | {"type_sizes": sizes})
  ]
  keys = [str(i) for i in range(len(storages))]
  parts += [pickled, pickle.dumps(keys, protocol=2)]
  for count, content in zip(counts, storages, strict=True):
    parts.append(struct.pack("<q", count) + content)
  return b"".join(parts)


def safetensors_of(state):
  """Returns a `.safetensors` file: a header, and little-endian numbers."""
  kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
  header, place = {}, 0
  for name, value in state.items():
    end = place + value.nbytes
    header[name] = {
      "dtype": kinds[str(value.dtype)],
      "shape": value.shape,
      "data_offsets": [place, end],
    }
    place = end
  text = json.dumps(header).encode()
  content = b"".join(value.tobytes() for value in state.values())
  return struct.pack("<Q", len(text)) + text + content
