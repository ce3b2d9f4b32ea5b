"""Gives hostile files to the reader of PyTorch files. Run it as a process.

    python tests/hostile_state_dicts.py SEED COUNT

Every file is a state dict in which something was changed: bytes, instructions
of the pickle, types and sizes, or the archive around it. The process fails if
an error is not reported in one line, if a tensor has bytes that are not in the
file, if reading takes too long or too much memory, or if a signal ends it.
"""

import collections
import io
import pickletools
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile

import numpy as np
import torch_files

from deepemd_jax.checkpoints import torch_file
from deepemd_jax.errors import InputError

SECONDS = 5.0  # processor time for one file
MEMORY = 64 * 2**20  # bytes, in addition to three times the file
NUMBERS = [
  *(0, 1, -1, 2, 7, 255, 256, 65535, 2**31 - 1, -(2**31), 2**31, 2**32),
  *(2**48 - 1, 2**48, 2**62, 2**63 - 1, -(2**63), 2**63, 2**64 - 1),
]
NAMES = [
  *("os.system", "builtins.eval", "builtins.getattr", "posix.system"),
  *("torch.load", "torch.FloatStorage", "torch.LongStorage", "numpy.ndarray"),
  *("collections.OrderedDict", "torch._utils._rebuild_tensor_v2"),
  *("torch._utils._rebuild_parameter", "torch.Size", "builtins.memoryview"),
]


def main(seed: int, count: int) -> None:
  sys.modules.update(torch_files.fake_torch())
  rng = random.Random(seed)
  read = refused = 0
  with tempfile.NamedTemporaryFile(suffix=".pth") as file:
    for number in range(count):
      content = hostile(rng)
      file.seek(0)
      file.truncate()
      file.write(content)
      file.flush()
      began = time.process_time()
      with limited(3 * len(content) + MEMORY):
        try:
          found = torch_file.load(file.name)
          check(found, content)
          read += 1
        except InputError as error:
          refused += 1
          message = str(error)
          assert "\n" not in message, message
        except BaseException:
          print(f"seed {seed}, file {number}:", content[:2000], file=sys.stderr)
          raise
      assert time.process_time() - began < SECONDS, (seed, number)
  print(f"{read} read, {refused} refused")


class limited:
  """Limits the memory to so many bytes more than now."""

  def __init__(self, more):
    self.more = more

  def __enter__(self):
    with open("/proc/self/statm") as file:
      used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + self.more, -1))

  def __exit__(self, *unused):
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))


def check(found, content: bytes) -> None:
  """Asserts that every array has only bytes of the file."""
  total = 0
  for value in walk(found, set()):
    if not isinstance(value, np.ndarray):
      assert type(value) in (int, float, str, bool, type(None)), value
      continue
    total += 1
    if not value.size:
      continue
    assert not value.flags.writeable
    owner = value
    while isinstance(owner, np.ndarray):
      owner = owner.base
    whole = owner.obj if isinstance(owner, memoryview) else owner
    assert whole == content
    start = np.frombuffer(whole, np.uint8).ctypes.data
    low, high = np.lib.array_utils.byte_bounds(value)
    assert start <= low < high <= start + len(content)
    value.sum(dtype=np.float64)  # reads all of the array
  assert total <= 20_000


def walk(value, seen):
  if isinstance(value, dict | list | tuple):
    if id(value) in seen:
      return
    seen.add(id(value))
    for each in value.values() if isinstance(value, dict) else value:
      yield from walk(each, seen)
  else:
    yield value


def hostile(rng: random.Random) -> bytes:
  """Returns a file that was changed in one or several ways."""
  old = rng.random() < 0.4
  pickled, arrays = state_dict(rng, old)
  storages = [array.tobytes() for array in arrays]
  counts = [len(array) for array in arrays]
  for _ in range(rng.randrange(4)):
    change = rng.choice([instructions, instructions, numbers, flips])
    pickled = change(rng, pickled)
  if rng.random() < 0.01:
    pickled = laughs(rng)
  if rng.random() < 0.2 and storages:
    k = rng.randrange(len(storages))
    storages[k] = storages[k][: rng.randrange(len(storages[k]) + 1)]
  if rng.random() < 0.1:
    storages.append(storages[0] if storages else b"")
    counts.append(counts[0] if counts else rng.choice(NUMBERS[:8]))
  content = (
    row(pickled, storages, counts) if old else zipped(rng, pickled, storages)
  )
  if rng.random() < 0.3:
    content = flips(rng, content)
  return content


def row(pickled, storages, counts) -> bytes:
  """Makes a file of the older format, without storages if they do not fit."""
  try:
    return torch_files.row(pickled, storages, counts)
  except struct.error:
    return torch_files.row(pickled, [], [])


def state_dict(rng, old):
  """Returns a pickle, and the arrays of its storages."""
  state = collections.OrderedDict()
  for k in range(rng.randrange(1, 4)):
    array = np.arange(
      rng.choice([1, 6, 24]), dtype=rng.choice(["float32", "int64"])
    )
    shape = rng.choice([(len(array),), (1, len(array)), (len(array), 1)])
    state[f"layer{k}.weight"] = torch_files.Tensor(array.reshape(shape))
  if rng.random() < 0.5:
    state._metadata = collections.OrderedDict(version=1)
  found = {"params": state} if rng.random() < 0.5 else state
  if rng.random() < 0.3:
    found = {"state": found, "more": [1, 2.5, "x", (None, True)], "epoch": 3}
  file = io.BytesIO()
  pickler = torch_files.Pickler(file, old, rng.choice([2, 2, 3, 4]))
  pickler.dump(found)
  return file.getvalue(), pickler.storages


def instructions(rng, pickled):
  """Removes, doubles, swaps or inserts instructions of the pickle."""
  try:
    parts = list(pickletools.genops(pickled))
  except Exception:  # the pickle was damaged before
    return flips(rng, pickled)
  starts = [place for _, _, place in parts] + [len(pickled)]
  pieces = [pickled[a:b] for a, b in zip(starts, starts[1:], strict=False)]
  for _ in range(rng.randrange(1, 4)):
    k = rng.randrange(len(pieces))
    kind = rng.randrange(5)
    if kind == 0:
      del pieces[k]
    elif kind == 1:
      pieces.insert(k, rng.choice(pieces))
    elif kind == 2:
      other = rng.randrange(len(pieces))
      pieces[k], pieces[other] = pieces[other], pieces[k]
    else:
      put = piece(rng)
      pieces[k : k + (kind == 3)] = [put]
    if not pieces:
      break
  return b"".join(pieces)


def piece(rng) -> bytes:
  """Returns a random instruction, of any kind."""
  code = rng.choice(pickletools.opcodes).code.encode("latin-1")
  kind = rng.randrange(6)
  if kind == 0:
    return b"c" + rng.choice(NAMES).replace(".", "\n", 1).encode() + b"\n"
  if kind == 1:
    return number(rng)
  if kind == 2:
    text = rng.choice(["x", "storage", "\x1b[2J", "a" * 5000, "é\n"]).encode()
    return b"X" + struct.pack("<I", len(text)) + text
  if kind == 3:
    return b"X" + struct.pack("<I", rng.choice([2**31, 2**32 - 1, 10**6]))
  return code + rng.randbytes(rng.choice([0, 0, 1, 2, 4, 8]))


def number(rng) -> bytes:
  """Returns an instruction that pushes a number or another small object."""
  value = rng.choice(NUMBERS)
  kind = rng.randrange(4)
  if kind == 0:
    return b"G" + struct.pack(">d", rng.choice([1.0, 1e300, float("nan")]))
  if kind == 1:
    return rng.choice([b"\x88", b"\x89", b"N", b")", b"]", b"}"])
  length = (value.bit_length() + 8) // 8
  return (
    b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
  )


def numbers(rng, pickled):
  """Replaces numbers by other numbers or other types."""
  try:
    parts = list(pickletools.genops(pickled))
  except Exception:
    return flips(rng, pickled)
  starts = [place for _, _, place in parts] + [len(pickled)]
  places = [
    k
    for k, (op, value, _) in enumerate(parts)
    if type(value) is int and "INT" in op.name
  ]
  if not places:
    return pickled
  pieces = [pickled[a:b] for a, b in zip(starts, starts[1:], strict=False)]
  for _ in range(rng.randrange(1, 4)):
    pieces[rng.choice(places)] = number(rng)
  return b"".join(pieces)


def laughs(rng):
  """Returns a small pickle that makes large objects.

  It has lists in lists that are doubled many times, a list that contains
  itself, or instructions of one byte that take more memory.
  """
  kind = rng.randrange(4)
  if kind == 0:
    body = b"]q\x00" + b"".join(
      b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1])
      for k in range(rng.choice([10, 14, 40]))
    )
  elif kind == 1:
    body = b"]q\x00(h\x00h\x00e"
  elif kind == 2:
    body = b"](" + rng.choice([b"]", b"}", b")", b"N"]) * 300_000 + b"e"
  else:
    body = b"(" * rng.choice([10, 300_000])
  return b"\x80\x02" + body + b"."


def flips(rng, content):
  """Changes, removes or doubles bytes."""
  content = bytearray(content)
  for _ in range(rng.randrange(1, 4)):
    if not content:
      break
    k = rng.randrange(len(content))
    kind = rng.randrange(4)
    if kind == 0:
      del content[k : k + rng.randrange(1, 20)]
    elif kind == 1:
      content[k:k] = content[rng.randrange(len(content)) :][:20]
    else:
      content[k] = rng.randrange(256)
  return bytes(content)


def zipped(rng, pickled, storages) -> bytes:
  """Makes a file of the zip format, sometimes with a faulty archive."""
  kind = rng.randrange(12)
  if kind > 4:
    return torch_files.archive(pickled, storages)
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about names that occur twice
    squeeze = zipfile.ZIP_DEFLATED if kind == 0 else zipfile.ZIP_STORED
    archive.writestr("archive/data.pkl", pickled, squeeze)
    if kind == 1:
      archive.writestr("other/data.pkl", pickled)
    if kind == 2:
      archive.writestr("archive/byteorder", rng.choice(["big", "little", ""]))
    for i, content in enumerate(storages):
      archive.writestr(f"archive/data/{i}", content)
      if kind == 3:
        archive.writestr(
          f"archive/data/{i}", bytes(10**6), zipfile.ZIP_DEFLATED
        )
      if kind == 4:  # change the sizes in the directory
        info = archive.infolist()[-1]
        info.file_size = rng.choice([0, 1, 2**31, 2**40, info.file_size + 1])
        if rng.random() < 0.5:
          info.compress_size = info.file_size
  return file.getvalue()


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]))
