"""A forged table of contents of a checkpoint leads to no file outside of it."""

import pathlib
import re
import shutil

import pytest
import tensorstore
from small_checkpoints import assert_equal, model

from deepemd_jax.checkpoints.manager import Checkpoints
from deepemd_jax.errors import InputError


def crc32c(content: bytes) -> int:
  """The checksum of TensorStore's table of contents; slow and obvious."""
  value = 0xFFFFFFFF
  for byte in content:
    value ^= byte
    for _ in range(8):
      value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
  return value ^ 0xFFFFFFFF


def store(part: pathlib.Path) -> tensorstore.KvStore:
  base = {"driver": "file", "path": f"{part}/"}
  # Names of files are hidden in what is compressed.
  config = {"compression": None}
  spec = {"driver": "ocdbt", "base": base, "config": config}
  return tensorstore.KvStore.open(spec).result()


def write_again(part: pathlib.Path) -> bytes:
  """Writes a part's arrays with one data file, and returns its name."""
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
  """Has the table of contents name another file for the root of its tree."""
  path = part / "manifest.ocdbt"
  # Its length and two others stand before a name.
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
