"""The reader of PyTorch files gets hostile files."""

import concurrent.futures
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import torch_files
from paths import GOLDEN, ROOT

from deepemd_jax.checkpoints import inert_pickle, torch_file
from deepemd_jax.errors import InputError


@pytest.mark.parametrize(
  ("processes", "files"),
  [(1, 500), pytest.param(20, 2500, marks=pytest.mark.soak)],
)
def test_state_dicts_that_were_tampered_with(processes, files):
  """The reader does no harm; `hostile_state_dicts.py` says what is checked."""

  def attack(seed):
    return subprocess.run(
      [sys.executable, "tests/hostile_state_dicts.py", str(seed), str(files)],
      **{"cwd": ROOT, "capture_output": True, "text": True},
      env=os.environ | {"PYTHONPATH": str(ROOT)},
    )

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for ended in pool.map(attack, range(processes)):
      assert ended.returncode == 0, ended.stderr[-3000:]
      read, refused = map(int, re.findall(r"\d+", ended.stdout))
      assert read > files / 20 and refused > files / 2


def test_what_it_holds_cannot_be_called():
  """Names and calls in a pickle become inert objects."""
  names = frozenset({"os.system"})
  named = b"\x80\x02cos\nsystem\n"
  value, end = inert_pickle.read(named + b".rest", names, frozenset())
  assert value == inert_pickle.Global("os.system") and not callable(value)
  assert end == len(named) + 1
  called = named + b"X\x02\x00\x00\x00id\x85R."
  value, _ = inert_pickle.read(called, names, names)
  assert value == inert_pickle.Call("os.system", ("id",))
  assert not callable(value)
  with pytest.raises(inert_pickle.RefusedError, match="calls 'os.system'.*21"):
    inert_pickle.read(called, names, frozenset())
  with pytest.raises(inert_pickle.RefusedError, match="names 'os.system'.*2"):
    inert_pickle.read(called, frozenset(), frozenset())


OTHERS = {  # Python's unpickler reads these, and ours refuses them
  "an object": b"c__main__\nX\n)\x81.",
  "an object of old": b"(i__main__\nX\n.",
  "an extension": b"\x82\x01.",
  "a buffer": b"\x97.",
  "a number in words": b"I1\n.",
  "a set": b"\x8f.",
  "bytes": b"C\x01x.",
  "a string beyond the end": b"X\xff\x00\x00\x00x.",
  "a long string": b"X\x00\x20\x00\x00" + b"x" * 0x2000 + b".",
  "a large number": b"\x8a\x0b" + b"\xff" * 11 + b".",
  "a number larger yet": b"\x8b\x00\x00\x00\x01.",
  "a list in itself": b"]q\x00h\x00a.",
  "deep lists": b"]" * 40 + b"a" * 39 + b".",
  "nothing": b"",
  "no end": b"N",
  "no mark": b"t.",
  "a list as a key": b"}]Ns.",
  "a key alone": b"}(Nu.",
  "something to a number": b"NNa.",
  "half a name": b"cos",
  "no protocol that is known": b"\x80\x09N.",
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_is_refused(name):
  with pytest.raises(inert_pickle.RefusedError, match=r"at byte \d+"):
    inert_pickle.read(OTHERS[name], frozenset(), frozenset())


def test_a_checksum_comes_first(tmp_path):
  """If the checksum of a file is wrong, its pickle is not read."""
  path = tmp_path / "x.pth"
  path.write_bytes(b"cos\nsystem\n.")
  with pytest.raises(InputError, match="SHA-256 is .* should be 00"):
    torch_file.load(path, sha256="00" * 32)


def test_only_regular_files_are_opened(tmp_path):
  os.mkfifo(tmp_path / "pipe.pth")
  for path in (tmp_path / "pipe.pth", tmp_path, "/dev/zero"):
    with pytest.raises(InputError, match="cannot read"):
      torch_file.load(path)


@pytest.mark.parametrize("old", [False, True])
def test_tensors_of_one_storage_share_its_memory(old, tmp_path, torch):
  tensor = torch_files.Tensor(np.arange(6, dtype=np.float32))
  path = tmp_path / "x.pth"
  torch_files.save(path, {"a": tensor, "b": [tensor]}, old)
  found = torch_file.load(path)
  assert np.shares_memory(found["a"], found["b"][0])
  with pytest.raises(ValueError, match="read-only"):
    found["a"][0] = 1


def test_a_stride_of_zero_makes_no_terabytes(tmp_path, torch):
  array = np.arange(6, dtype=np.float32)
  wide = torch_files.Tensor(array, 0, (10**6, 10**6), (0, 0))
  torch_files.save(tmp_path / "x.pth", [wide])
  with pytest.raises(InputError, match="more tensors than"):
    torch_file.load(tmp_path / "x.pth")


def test_what_takes_for_ever_to_hash_is_refused(tmp_path):
  """These are keys of nested tuples, and numbers that have the same hash."""
  deep = b")q\x00" + b"".join(
    b"(" + b"h" + bytes([k]) + b"h" + bytes([k]) + b"tq" + bytes([k + 1])
    for k in range(14)
  )
  parts = torch_files.row(b"\x80\x02}.", [], [])
  keys = pickle.dumps([], protocol=2)
  assert parts.endswith(keys)
  path = tmp_path / "x.pth"
  path.write_bytes(parts.removesuffix(keys) + b"\x80\x02](" + deep + b"e.")
  with pytest.raises(InputError, match="not listed"):
    torch_file.load(path)
  number = (2**61 - 1).to_bytes(8, "little")
  with pytest.raises(inert_pickle.RefusedError, match="key .* too large"):
    inert_pickle.read(b"}\x8a\x08" + number + b"Ns.", frozenset(), frozenset())


def test_members_in_one_place_are_not_read(tmp_path, monkeypatch):
  path = tmp_path / "x.pth"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a/data.pkl", b"\x80\x02}.".ljust(1000))
    for k in range(3):
      archive.writestr(f"a/data/{k}", b"")
    first, *others = archive.infolist()
    for info in others:
      info.header_offset, info.CRC = first.header_offset, first.CRC
      info.file_size = info.compress_size = first.file_size
  monkeypatch.setattr(zlib, "crc32", None)
  with pytest.raises(InputError, match="members overlap"):
    torch_file.load(path)


def test_a_list_that_stands_at_many_depths_is_walked_so_often_only():
  large = b"](" + b"](Ne" * 60_000 + b"eq\x00"
  at_depths = b"](" * 12 + b"h\x00e" * 12
  with pytest.raises(inert_pickle.RefusedError, match="nested too deep"):
    inert_pickle.read(
      b"](" + large + at_depths + b"e.", frozenset(), frozenset()
    )


RECORDED = json.loads((GOLDEN / "torch" / "expected.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_files_of_pytorch_itself(name):
  """Every bit is the same; `golden/torch/record.py` made the files."""
  found = torch_file.load(GOLDEN / "torch" / f"{name}.pth")
  for key, (dtype, shape, content) in RECORDED[name].items():
    value = found[key] if isinstance(found, dict) else found[int(key)]
    assert str(value.dtype) == dtype and list(value.shape) == shape, key
    assert value.tobytes().hex() == content, key
