"""The user's images as a source, whose counts agree with what it loads."""

import collections
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from deepemd_jax.data import pixel_cache
from deepemd_jax.data.folder_source import FolderSource
from deepemd_jax.errors import InputError


def counted(images):
  names = [images.class_names[label] for label in images.labels]
  return dict(collections.Counter(names))


@pytest.fixture
def photos(tmp_path):
  """Six classes of 1 to 6 images, which differ in size and color."""
  root = tmp_path / "photos"
  for c in range(6):
    (root / f"class{c}").mkdir(parents=True)
    for i in range(c + 1):
      image = Image.new("RGB", (20 + c, 30 + i), (40 * c, 30 * i, 99))
      image.save(root / f"class{c}" / f"{i}.png")
  return root


def folder_source(photos, **settings):
  kept = str(photos.parent / "kept")
  return FolderSource(str(photos), kept, **{"side": 16} | settings)


def test_a_folder_is_as_counted(photos):
  source = folder_source(photos)
  seen = {}
  for split in ("train", "val", "test"):
    images = source.load(split)
    assert counted(images) == source.counts(split)
    assert images.images.shape[1:] == (16, 16, 3)
    for i, key in enumerate(images.keys):
      name, number = key.removesuffix(".png").split("/")
      c, number = int(name[-1]), int(number)
      assert images.class_names[images.labels[i]] == name
      assert images.sizes[i].tolist() == [30 + number, 20 + c]
      assert (images.images[i] == (40 * c, 30 * number, 99)).all()
    seen |= source.counts(split)
  assert seen == {f"class{c}": c + 1 for c in range(6)}


def test_a_bad_image_of_any_split_is_found_at_once(photos):
  source = folder_source(photos)
  name = next(iter(source.counts("test")))
  (photos / name / "0.png").write_bytes(b"")
  with pytest.raises(InputError, match=f"{name}/0.png"):
    source.load("train")


def test_a_split_without_classes_is_refused(photos):
  source = folder_source(photos, fractions=(1, 0, 0))
  with pytest.raises(InputError, match="'test'"):
    source.load("test")
  with pytest.raises(InputError, match="no split 'dev'"):
    source.counts("dev")


def remade(photos, capfd, **settings):
  """Returns whether copies were made again, and checks that they are right."""
  source = folder_source(photos, **settings)
  images = source.load("train")
  assert counted(images) == source.counts("train")
  errors = capfd.readouterr().err
  assert errors.count("\n") <= 1
  return "they are made again" in errors


def test_a_folder_is_decoded_once(photos, capfd, monkeypatch):
  folder_source(photos).load("train")
  monkeypatch.setattr(
    pixel_cache, "_copy", lambda *unused: pytest.fail("decoded")
  )
  folder_source(photos, seed=1).load("val")
  folder_source(photos, fractions=(1, 0, 0)).load("train")
  assert not remade(photos, capfd)


def test_a_changed_folder_is_decoded_again(photos, capfd):
  (first,) = {
    key.split("/")[0] for key in folder_source(photos).load("val").keys
  }
  assert not remade(photos, capfd)
  image = photos / first / "0.png"
  before = image.stat()
  Image.new("RGB", (9, 9), "red").save(image)
  assert remade(photos, capfd) and not remade(photos, capfd)
  images = folder_source(photos).load("val")
  row = images.keys.index(f"{first}/0.png")
  assert (images.whole(np.array([row]), 16) == (255, 0, 0)).all()
  image.rename(photos / first / "z.png")
  assert remade(photos, capfd) and not remade(photos, capfd)
  os.utime(photos / first / "z.png", ns=(before.st_atime_ns, 1))
  assert remade(photos, capfd) and not remade(photos, capfd)
  kept = photos.parent / "kept" / "stored" / "folder"
  (place,) = kept.iterdir()  # no old copies are left
  assert sorted(os.listdir(place)) == [".16.lock", "16"]


def test_originals_of_a_folder(photos):
  """Only the names and sizes of images are stored."""
  source = folder_source(photos, side=0)
  images, copies = source.load("train"), folder_source(photos).load("train")
  assert source.protocol == "folder:original"
  assert images.keys == copies.keys
  np.testing.assert_array_equal(images.sizes, copies.sizes)
  rows = np.arange(len(images.keys))
  np.testing.assert_array_equal(
    pickle.loads(pickle.dumps(images)).whole(rows, 16), copies.whole(rows, 16)
  )
  (place,) = (photos.parent / "kept" / "stored" / "folder").iterdir()
  assert os.listdir(place / "original") == ["index.json"]


def test_a_directory_that_cannot_be_written_is_refused(photos):
  (photos.parent / "kept").write_text("in the way")
  with pytest.raises(InputError, match="config.data.directory"):
    folder_source(photos).load("train")
