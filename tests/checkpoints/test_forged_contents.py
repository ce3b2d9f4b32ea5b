"""A forged table of contents of a checkpoint cannot name files outside of it.

It can make TensorStore take much memory, as SECURITY.md says.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import tensorstore
from small_checkpoints import assert_equal, model

from deepemd_jax.checkpoints.manager import Checkpoints
from deepemd_jax.errors import InputError


def crc32c(content: bytes) -> int:
  """Computes the checksum of TensorStore's table of contents, slowly."""
  value = 0xFFFFFFFF
  for byte in content:
    value ^= byte
    for _ in range(8):
      value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
  return value ^ 0xFFFFFFFF


def store(part: pathlib.Path) -> tensorstore.KvStore:
  base = {"driver": "file", "path": f"{part}/"}
  # Without compression, the test can find the names of files.
  config = {"compression": None}
  spec = {"driver": "ocdbt", "base": base, "config": config}
  return tensorstore.KvStore.open(spec).result()


def write_again(part: pathlib.Path) -> bytes:
  """Writes the arrays of a part to one data file again; returns its name."""
  old = part.rename(part.with_name("old"))
  source = tensorstore.KvStore.open(
    {"driver": "ocdbt", "base": {"driver": "file", "path": f"{old}/"}}
  ).result()
  part.mkdir()
  with tensorstore.Transaction() as transaction:
    target = store(part).with_transaction(transaction)
    for key in source.list().result():
      target.write(key, source.read(key).result().value).result()
  shutil.rmtree(old)
  manifest = (part / "manifest.ocdbt").read_bytes()
  (name,) = set(re.findall(rb"d/[0-9a-f]{32}", manifest))
  return name


def forge(part: pathlib.Path, old: bytes, new: bytes) -> None:
  """Makes the table of contents name another file as the root of its tree."""
  path = part / "manifest.ocdbt"
  # Before a name are its length and two other numbers.
  before, after = bytes([len(old), 0, 0]) + old, bytes([len(new), 0, 0]) + new
  content = path.read_bytes()[:-4]
  assert content.count(before) == 1
  content = content.replace(before, after)
  length = (len(content) + 4).to_bytes(8, "little")
  content = content[:4] + length + content[12:]
  path.write_bytes(content + crc32c(content).to_bytes(4, "little"))


@pytest.mark.parametrize(
  "place, followed",
  [("d/copy", True), ("../../../outside", False), ("/{outside}", False)],
)
def test_only_files_of_the_checkpoint_are_read(four, place, followed):
  part, outside = four / "4" / "model", four.parent / "outside"
  name = write_again(part)
  for copy in (outside, part / "d" / "copy"):
    shutil.copy(part / name.decode(), copy)
  forge(part, name, place.format(outside=outside).encode())
  with Checkpoints(four, read_only=True) as saved:
    if followed:
      assert_equal(saved.restore(4, model=model()).model, model(4))
    else:
      with pytest.raises(InputError, match="4 is damaged: it cannot be read"):
        saved.restore(4, model=model())


def zstd(content: bytes, zeros: int) -> bytes:
  """Returns a frame of `content` and zeros: four bytes for 128 KiB of zeros."""
  most = 2**17
  sizes = [most] * (zeros // most) + [zeros % most]
  header = lambda size, kind: (size << 3 | kind << 1).to_bytes(3, "little")  # noqa: E731
  blocks = [header(len(content), 0) + content]
  blocks += [header(size, 1) + b"\0" for size in sizes]
  blocks += [(1).to_bytes(3, "little")]  # the last block is empty
  return b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(blocks)


def number(value: int) -> bytes:
  """Encodes a number as TensorStore does: seven bits a byte, lowest first."""
  rest = value >> 7
  return bytes([value & 127 | bool(rest) << 7]) + (
    number(rest) if rest else b""
  )


RESTORE = """
import re, sys
from small_checkpoints import model
from deepemd_jax.checkpoints.manager import Checkpoints
from deepemd_jax.errors import InputError

def memory():
  # The peak in MiB. ru_maxrss would count the process that started this one.
  status = open("/proc/self/status").read()
  return int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]) // 1024

with Checkpoints(sys.argv[1], read_only=True) as saved:
  before = memory()
  try:
    saved.restore(4, model=model())
  except InputError as error:
    print(memory() - before, error)
"""


@pytest.mark.soak
def test_the_memory_of_a_forged_table_is_not_bounded(four):
  """SECURITY.md warns of this. If the test fails, TensorStore has fixed it."""
  part = four / "4" / "model"
  name = write_again(part)
  path = part / "manifest.ocdbt"
  content = path.read_bytes()
  # The file has a magic number, length, version and compression, then settings,
  # and then the table of data files. The table has the number of files, which
  # is two here, and five more numbers before the names.
  settings = content[14 : content.index(name) - 6]
  assert content[14 + len(settings)] == 2
  files = 2**24  # three columns of zeros
  table = zstd(settings + number(files), 3 * files)
  content = content[:13] + b"\1" + table
  length = (len(content) + 4).to_bytes(8, "little")
  content = content[:4] + length + content[12:]
  path.write_bytes(content + crc32c(content).to_bytes(4, "little"))
  assert path.stat().st_size < 2500
  told = subprocess.run(
    [sys.executable, "-c", RESTORE, four],
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout
  grown, message = told.split(" ", 1)
  assert "4 is damaged: it cannot be read" in message
  assert int(grown) > 256  # MiB
