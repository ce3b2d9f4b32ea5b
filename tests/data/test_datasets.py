"""The two sources: what they count is what they load, whatever happens."""

import collections
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from deepemd_jax.data import datasets, glyph_clutter
from deepemd_jax.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent.parent


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
  source = datasets.GlyphClutterSource(str(tmp_path), variant="d1_plain")
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
  source = datasets.GlyphClutterSource(str(tmp_path), variant="d0_plain")
  with pytest.raises(InputError, match="delete that folder"):
    source.load("test")


def test_unknown_splits_and_variants_are_refused(tmp_path):
  def source(variant):
    return datasets.GlyphClutterSource(str(tmp_path), variant=variant)

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
  source = datasets.GlyphClutterSource(str(tmp_path / "file" / "below"))
  with pytest.raises(InputError, match="data.directory"):
    source.load("val")


def test_the_directory_is_the_one_of_tensorflow_datasets(monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
  assert datasets.default_directory() == "/somewhere"
  monkeypatch.delenv("TFDS_DATA_DIR")
  assert datasets.default_directory() == os.path.expanduser(
    "~/tensorflow_datasets"
  )


@pytest.fixture
def photos(tmp_path):
  """Six classes of 1 to 6 images, each of its own size and colour."""
  root = tmp_path / "photos"
  for c in range(6):
    (root / f"class{c}").mkdir(parents=True)
    for i in range(c + 1):
      image = Image.new("RGB", (20 + c, 30 + i), (40 * c, 30 * i, 99))
      image.save(root / f"class{c}" / f"{i}.png")
  return root


def folder_source(photos, **settings):
  kept = str(photos.parent / "kept")
  return datasets.FolderSource(str(photos), kept, **{"side": 16} | settings)


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
