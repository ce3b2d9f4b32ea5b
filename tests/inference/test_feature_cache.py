"""Encodings are found again by content; damage and full disks do no harm."""

import os
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


def test_damage_counts_as_absence(tmp_path):
  kept = feature_cache.Cache(tmp_path)
  kept.put(MODEL, IMAGE, nodes=np.arange(1000))
  (path,) = files(tmp_path)
  whole = path.read_bytes()
  middle = len(whole) // 2
  flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
  for content in (b"", whole[:middle], flipped, b"x" * 100):
    path.write_bytes(content)
    assert kept.get(MODEL, IMAGE) is None
  kept.put(MODEL, IMAGE, nodes=np.arange(3))
  assert kept.get(MODEL, IMAGE)["nodes"].tolist() == [0, 1, 2]


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
  kept.get(MODEL, "0" * 64)  # used: now the newest
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

  monkeypatch.setattr(np, "savez", full)
  kept.put(MODEL, IMAGE, nodes=np.zeros(1))
  assert kept.get(MODEL, IMAGE) is None and not files(tmp_path)


def test_a_folder_that_cannot_be(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="cannot keep encodings"):
    feature_cache.Cache(tmp_path / "file" / "cache")
