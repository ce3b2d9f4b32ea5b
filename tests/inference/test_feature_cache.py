"""Encodings are found by content; damage and full disks are harmless."""

import os
import pathlib
import time

import numpy as np
import pytest

from deepemd_jax.errors import InputError
from deepemd_jax.inference import feature_cache

MODEL, IMAGE = "ab" * 32, "cd" * 32


def files(root):
  return sorted(p for p in root.rglob("*") if p.is_file())


def test_what_is_put_is_found(tmp_path):
  kept = feature_cache.Cache(tmp_path)
  nodes = np.random.default_rng(0).random((3, 4), np.float32)
  assert kept.get(MODEL, IMAGE) is None
  kept.put(MODEL, IMAGE, nodes=nodes, sizes=np.arange(2))
  found = feature_cache.Cache(tmp_path).get(MODEL, IMAGE)
  np.testing.assert_array_equal(found["nodes"], nodes)
  np.testing.assert_array_equal(found["sizes"], [0, 1])
  assert kept.get("ef" * 32, IMAGE) is None
  assert kept.get(MODEL, "ef" * 32) is None
  assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.soak)])
def test_damage_counts_as_absence(every, tmp_path):
  """Any bit may be changed, and the file may end anywhere."""
  kept = feature_cache.Cache(tmp_path)
  kept.put(MODEL, IMAGE, nodes=np.arange(4, dtype=np.float32))
  (path,) = files(tmp_path)
  whole = path.read_bytes()
  for bit in range(0, 8 * len(whole), every):
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    assert kept.get(MODEL, IMAGE) is None, bit
  for end in range(0, len(whole), 7):
    path.write_bytes(whole[:end])
    assert kept.get(MODEL, IMAGE) is None
  kept.put(MODEL, IMAGE, nodes=np.arange(3))
  assert kept.get(MODEL, IMAGE)["nodes"].tolist() == [0, 1, 2]


def test_what_is_in_anothers_place_counts_as_absent(tmp_path):
  kept = feature_cache.Cache(tmp_path)
  kept.put(MODEL, IMAGE, nodes=np.arange(3))
  (path,) = files(tmp_path)
  other = tmp_path / MODEL[:32] / "ef" / f"{'ef' * 31}.npz"
  other.parent.mkdir()
  other.write_bytes(path.read_bytes())
  assert kept.get(MODEL, "ef" * 32) is None


def test_only_regular_files_are_entries(tmp_path):
  """A link to a file of the user is replaced, and not followed."""
  kept = feature_cache.Cache(tmp_path / "cache")
  kept.put(MODEL, IMAGE, nodes=np.arange(3))
  (path,) = files(tmp_path)
  path.unlink()
  os.mkfifo(path)
  assert kept.get(MODEL, IMAGE) is None
  path.unlink()
  (tmp_path / "mine").write_text("mine")
  path.symlink_to(tmp_path / "mine")
  assert kept.get(MODEL, IMAGE) is None
  kept.put(MODEL, IMAGE, nodes=np.arange(3))
  assert (tmp_path / "mine").read_text() == "mine"
  assert kept.get(MODEL, IMAGE)["nodes"].tolist() == [0, 1, 2]
  path.unlink()
  path.mkdir()
  assert kept.get(MODEL, IMAGE) is None
  kept.put(MODEL, IMAGE, nodes=np.arange(3))  # fails without an error


def test_pickles_are_not_loaded(tmp_path):
  kept = feature_cache.Cache(tmp_path)
  kept.put(MODEL, IMAGE, nodes=np.array([print], object))
  assert kept.get(MODEL, IMAGE) is None


def test_the_longest_unused_go(tmp_path):
  kept = feature_cache.Cache(tmp_path, limit=9000)
  for k in range(4):
    kept.put(MODEL, f"{k}" * 64, nodes=np.zeros(500))
    (path,) = (tmp_path / MODEL[:32] / f"{k}{k}").iterdir()
    os.utime(path, (k, k))
  kept.get(MODEL, "0" * 64)  # now the newest one
  kept.prune()
  left = [k for k in range(4) if kept.get(MODEL, f"{k}" * 64)]
  assert left == [0, 3]


def test_scratch_of_a_killed_run_goes_when_old(tmp_path):
  kept = feature_cache.Cache(tmp_path)
  kept.put(MODEL, IMAGE, nodes=np.zeros(1))
  old, new = tmp_path / "old.tmp", tmp_path / "new.tmp"
  for path in (old, new):
    path.touch()
  os.utime(old, (time.time() - 7200,) * 2)
  kept.prune()
  assert not old.exists() and new.exists()


def test_a_full_disk_is_not_an_error(tmp_path, monkeypatch):
  kept = feature_cache.Cache(tmp_path)

  def full(*unused, **unused_too):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  kept.put(MODEL, IMAGE, nodes=np.zeros(1))
  assert kept.get(MODEL, IMAGE) is None and not files(tmp_path)


def test_a_folder_that_cannot_be(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="cannot keep encodings"):
    feature_cache.Cache(tmp_path / "file" / "cache")


def test_nothing_is_written_through_a_linked_folder(tmp_path):
  kept = feature_cache.Cache(tmp_path / "cache")
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "cache" / MODEL[:32]).symlink_to(tmp_path / "elsewhere")
  kept.put(MODEL, IMAGE, nodes=np.arange(3))
  assert not files(tmp_path / "elsewhere")


@pytest.mark.parametrize("content", [b"PK", b"\x93NUMPY", b""])
def test_what_is_no_array_counts_as_absent(content, tmp_path):
  """This holds even if the digest is right."""
  kept = feature_cache.Cache(tmp_path, limit=0)
  kept.put(MODEL, IMAGE, nodes=np.arange(3))
  (path,) = files(tmp_path)
  digest = feature_cache._digest(MODEL, IMAGE, content)
  path.write_bytes(digest + content)
  assert kept.get(MODEL, IMAGE) is None
  path.with_name("folder.npz").mkdir()
  kept.prune()  # cannot delete it; no error
