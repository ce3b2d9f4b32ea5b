"""The two sources: what they count is what they load, whatever happens."""

import collections
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys

import fake
import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from deepemd_jax.data import __main__ as command
from deepemd_jax.data import glyph_clutter, pixel_cache, sources
from deepemd_jax.data.published import catalogue, prepare
from deepemd_jax.errors import InputError, MissingData


def counted(images):
  names = [images.class_names[label] for label in images.labels]
  return dict(collections.Counter(names))


def start(code, *arguments):
  return subprocess.Popen(
    [sys.executable, "-c", code, *arguments],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


LOAD = """
import sys
from deepemd_jax.data import datasets
images = datasets.GlyphClutterSource(sys.argv[1], variant=sys.argv[2]).load(
  sys.argv[3])
print(len(images.labels), [m for m in ("tensorflow", "matplotlib", "jax")
                           if m in sys.modules])
"""


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_prepared_glyphs_are_as_counted(glyphs, split, capfd):
  images = glyphs.load(split)
  assert counted(images) == glyphs.counts(split)
  assert list(images.class_names) == list(glyphs.counts(split))
  assert images.images.shape == (len(images.labels), 64, 64, 3)
  assert images.images.dtype == np.uint8
  assert images.labels.dtype == images.sizes.dtype == np.int32
  assert (images.sizes == 64).all() and len(set(images.keys)) == len(
    images.keys
  )
  for key, label in zip(images.keys, images.labels, strict=True):
    assert key.startswith(images.class_names[label] + "_")
  assert capfd.readouterr() == ("", "")  # nothing is prepared again


def test_neither_tensorflow_nor_matplotlib_is_loaded(glyphs):
  process = start(LOAD, glyphs.directory, "default", "val")
  out, errors = process.communicate()
  assert out.split(" ", 1) == [f"{sum(glyphs.counts('val').values())}", "[]\n"]
  assert errors == ""


def test_a_killed_preparation_is_made_again_and_leaves_nothing(tmp_path, capfd):
  code = """
import os, signal
from deepemd_jax.data import glyph_clutter
scene, made = glyph_clutter.scene, []
def until_killed(*arguments):
  made.append(1)
  if len(made) == 100:
    os.kill(os.getpid(), signal.SIGKILL)
  return scene(*arguments)
glyph_clutter.scene = until_killed
"""
  killed = start(code + LOAD, str(tmp_path), "d1_plain", "test")
  killed.communicate()
  assert killed.returncode == -signal.SIGKILL
  folder = tmp_path / "glyph_clutter" / "d1_plain"
  assert len(list(folder.glob("incomplete*"))) == 1
  source = sources.GlyphClutterSource(str(tmp_path), variant="d1_plain")
  assert counted(source.load("test")) == source.counts("test")
  assert [p.name for p in folder.iterdir() if p.name != ".lock"] == ["1.0.0"]
  out, errors = capfd.readouterr()
  assert out == "" and errors.startswith("preparing glyph_clutter/d1_plain in ")
  assert errors.count("\n") == 1


def test_two_processes_may_prepare_at_once(tmp_path):
  pair = [start(LOAD, str(tmp_path), "d0_plain", "test") for _ in range(2)]
  outputs, errors = zip(*(p.communicate() for p in pair), strict=True)
  assert [p.returncode for p in pair] == [0, 0], errors
  assert outputs[0] == outputs[1]
  assert "".join(errors).count("preparing") == 1


def test_a_set_of_another_size_is_not_taken(tmp_path, monkeypatch):
  """As after a change of the fonts in the matplotlib wheel."""
  few = glyph_clutter.typefaces()[:1]
  monkeypatch.setattr(glyph_clutter, "typefaces", lambda: few)
  source = sources.GlyphClutterSource(str(tmp_path), variant="d0_plain")
  with pytest.raises(InputError, match="delete that folder"):
    source.load("test")


def test_unknown_splits_and_variants_are_refused(tmp_path):
  def source(variant):
    return sources.GlyphClutterSource(str(tmp_path), variant=variant)

  for variant, split, message in (
    ("default", "dev", "no split 'dev'"),
    ("d1_busy", "train", "'d1_busy', has no split 'train'"),
    ("d9_busy", "test", "no variant 'd9_busy'"),
  ):
    for method in (source(variant).counts, source(variant).load):
      with pytest.raises(InputError, match=message):
        method(split)
  for variant in glyph_clutter.VARIANTS:
    assert sum(source(variant).counts("test").values()) == 531
  assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").write_text("in the way")
  source = sources.GlyphClutterSource(str(tmp_path / "file" / "below"))
  with pytest.raises(InputError, match="data.directory"):
    source.load("val")


def test_the_directory_is_the_one_of_tensorflow_datasets(monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
  assert sources.default_directory() == "/somewhere"
  monkeypatch.delenv("TFDS_DATA_DIR")
  assert sources.default_directory() == os.path.expanduser(
    "~/tensorflow_datasets"
  )


@pytest.fixture
def photos(tmp_path):
  """Six classes of 1 to 6 images, each of its own size and color."""
  root = tmp_path / "photos"
  for c in range(6):
    (root / f"class{c}").mkdir(parents=True)
    for i in range(c + 1):
      image = Image.new("RGB", (20 + c, 30 + i), (40 * c, 30 * i, 99))
      image.save(root / f"class{c}" / f"{i}.png")
  return root


def folder_source(photos, **settings):
  kept = str(photos.parent / "kept")
  return sources.FolderSource(str(photos), kept, **{"side": 16} | settings)


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
  """Whether opening the folder made copies again; they are right."""
  source = folder_source(photos, **settings)
  images = source.load("train")
  assert counted(images) == source.counts("train")
  errors = capfd.readouterr().err
  assert errors.count("\n") <= 1
  return "making them again" in errors


def test_a_folder_is_decoded_once(photos, capfd, monkeypatch):
  folder_source(photos).load("train")
  monkeypatch.setattr(
    pixel_cache, "_look", lambda *unused: pytest.fail("decoded")
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
  (place,) = kept.iterdir()  # nothing old is left
  assert sorted(os.listdir(place)) == [".16.lock", "16"]


def test_originals_of_a_folder(photos):
  """Nothing is stored but what they are called and how large they are."""
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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A small cub, prepared: {name: benchmark} and its directory."""
  root = tmp_path_factory.mktemp("published")
  small = {"cub": fake.small("cub", 4)}
  archive = fake.cub_archive(root / "CUB_200_2011.tgz", 4)
  prepare.prepare(small["cub"], str(root / "tfds"), source=archive)
  return small, root / "tfds"


@pytest.fixture
def cub(prepared, tmp_path, monkeypatch):
  """A directory of its own in which cub is prepared."""
  small, directory = prepared
  monkeypatch.setattr(catalogue, "BENCHMARKS", small)
  return pathlib.Path(shutil.copytree(directory, tmp_path / "tfds"))


def test_a_published_data_set_is_as_counted(cub, capfd):
  for name, side in (("cub", 160), ("cub:84", 84), ("cub:original", 0)):
    source = sources.BenchmarkSource(name, str(cub))
    source.check()
    assert source.protocol == f"cub:{side or 'original'}"
    assert "bounding boxes" in source.title
    assert source.title.endswith("made from CUB_200_2011.tgz")
    for split in ("train", "val", "test"):
      images = source.load(split)
      assert counted(images) == source.counts(split)
      assert list(source.counts(split)) == list(images.class_names)
      assert (images.sizes == (16, 20)).all()  # the boxes in the archive
      for key, label in zip(images.keys, images.labels, strict=True):
        assert images.class_names[label] in key
      place = (
        cub / "stored" / "cub" / "1.0.0" / (str(side) if side else "original")
      )
      assert ("pixels" in os.listdir(place / split)) == bool(side)
      images = pickle.loads(pickle.dumps(images))
      assert images.whole(np.array([1, 0]), 84).shape == (
        2,
        *[side or 84] * 2,
        3,
      )
  assert capfd.readouterr() == ("", "")


def test_copies_and_originals_are_of_the_same_images(cub):
  rows = np.arange(12)
  copies, originals = (
    sources.BenchmarkSource(name, str(cub)).load("val")
    for name in ("cub:84", "cub:original")
  )
  assert copies.keys == originals.keys
  np.testing.assert_array_equal(copies.labels, originals.labels)
  seen = [each.whole(rows, 84).astype(int) for each in (copies, originals)]
  assert np.abs(seen[0] - seen[1]).mean() < 3  # bicubic, bilinear
  assert np.abs(seen[0] - seen[1][::-1]).mean() > 20


def test_rows_do_not_depend_on_what_it_was_prepared_from(cub, tmp_path):
  """Else the same episode would hold other images on another machine."""
  files = fake.cub_files(4)
  backwards = dict(reversed(files.items()))
  archive = fake.tar(tmp_path / "backwards.tgz", backwards)
  small, other = catalogue.BENCHMARKS["cub"], str(tmp_path / "other")
  prepare.prepare(small, other, source=archive)
  for name in ("cub:84", "cub:original"):
    here, there = (
      sources.BenchmarkSource(name, place).load("val")
      for place in (str(cub), other)
    )
    assert here.keys == there.keys
    assert list(zip(here.labels, here.keys, strict=True)) == sorted(
      zip(here.labels, here.keys, strict=True)
    )
    rows = np.arange(len(here.keys))
    np.testing.assert_array_equal(here.whole(rows, 84), there.whole(rows, 84))


def test_what_is_not_prepared_is_explained(cub):
  empty = sources.BenchmarkSource("cub", str(cub / "empty"))
  published = catalogue.BENCHMARKS["cub"].counts("val")
  assert empty.counts("val") == published
  for method in (empty.check, lambda: empty.load("val")):
    with pytest.raises(MissingData, match="cub is not prepared") as refused:
      method()
    assert 2 < len(refused.value.lines) <= 8
  with pytest.raises(InputError, match="no split 'dev'"):
    empty.counts("dev")
  assert not (cub / "empty").exists()


def test_copies_of_another_preparation_are_made_again(cub, tmp_path, capfd):
  source = sources.BenchmarkSource("cub", str(cub))
  source.load("val")
  small = catalogue.BENCHMARKS["cub"]
  shutil.rmtree(prepare.place(small, str(cub)))
  name = f"{fake.names('cub', 'val')[0]}"
  files = fake.cub_files(4)
  broken = next(f for f in files if f"images/{name}" in f)
  archive = fake.tar(tmp_path / "bad.tgz", files | {broken: b"not an image"})
  prepare.prepare(small, str(cub), source=archive, skip_bad=True)
  capfd.readouterr()
  sources._open_records.cache_clear()
  images = source.load("val")
  assert counted(images) == source.counts("val") and len(images.keys) == 11
  assert source.title.endswith("made from bad.tgz; 1 bad images left out")
  errors = capfd.readouterr().err
  assert errors.count("\n") == 1 and "made from other images" in errors


def test_the_data_command_makes_the_copies(prepared, tmp_path, monkeypatch):
  """A run finds everything done."""
  monkeypatch.setattr(catalogue, "BENCHMARKS", prepared[0])
  archive = fake.cub_archive(tmp_path / "CUB_200_2011.tgz", 4)
  where = [f"--directory={tmp_path / 'tfds'}", f"--from={archive}"]
  assert command.main(["prepare", "cub:84", *where]) == 0
  monkeypatch.setattr(
    pixel_cache, "_look", lambda *unused: pytest.fail("decoded")
  )
  for split in ("train", "val", "test"):
    sources.BenchmarkSource("cub:84", str(tmp_path / "tfds")).load(split)
