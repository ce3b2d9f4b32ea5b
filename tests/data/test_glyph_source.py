"""`glyph_clutter` as a source, whose counts agree with what it loads."""

import collections
import signal

import crashes
import forked
import numpy as np
import pytest

from deepemd_jax.data import glyph_clutter, glyph_source
from deepemd_jax.data.published import splits
from deepemd_jax.errors import InputError


def counted(images):
  names = [images.class_names[label] for label in images.labels]
  return dict(collections.Counter(names))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """All 5082 images."""
  source = glyph_source.GlyphClutterSource(str(tmp_path_factory.mktemp("all")))
  source.load("val")
  return source


@pytest.fixture
def few(few_prepared, monkeypatch):
  """A source of the images in one typeface, with lists that fit."""
  lists, typefaces, source = few_prepared
  monkeypatch.setattr(splits, "load", lambda name: lists)
  monkeypatch.setattr(glyph_clutter, "typefaces", lambda: typefaces)
  return source


@pytest.fixture(scope="module")
def few_prepared(tmp_path_factory):
  typefaces = glyph_clutter.typefaces()[:1]
  lists = {"splits": {}}
  for split, classes in splits.load("glyph_clutter")["splits"].items():
    lists["splits"][split] = {
      name: row | {"images": glyph_clutter.SCENES}
      for name, row in classes.items()
      if glyph_clutter.glyph(typefaces[0], row["character"])
    }
  source = glyph_source.GlyphClutterSource(str(tmp_path_factory.mktemp("few")))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(splits, "load", lambda name: lists)
    patch.setattr(glyph_clutter, "typefaces", lambda: typefaces)
    source.load("val")
  return lists, typefaces, source


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_prepared_glyphs_are_as_counted(few, split, capfd):
  check(few, split, capfd)


@pytest.mark.soak
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_all_glyphs_are_as_counted(whole, split, capfd):
  check(whole, split, capfd)


def check(glyphs, split, capfd):
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


def test_a_killed_preparation_is_made_again_by_one_of_two_processes(tmp_path):
  """Neither process loads TensorFlow or matplotlib."""
  where = str(tmp_path), "d1_plain", "test"
  code, *_ = forked.run(crashes.load_glyphs_until_killed, *where, 100)
  assert code == -signal.SIGKILL
  folder = tmp_path / "glyph_clutter" / "d1_plain"
  assert len(list(folder.glob("incomplete*"))) == 1
  pair = [forked.start(crashes.load_glyphs, *where) for _ in range(2)]
  codes, outputs, errors = zip(*(p.communicate() for p in pair), strict=True)
  assert codes == (0, 0), errors
  assert outputs == ("531 []\n", "531 []\n")
  written = "".join(errors)
  assert written.count("preparing glyph_clutter/d1_plain in ") == 1
  assert [p.name for p in folder.iterdir() if p.name != ".lock"] == ["1.0.0"]
  source = glyph_source.GlyphClutterSource(where[0], variant="d1_plain")
  assert counted(source.load("test")) == source.counts("test")


def test_a_set_of_another_size_is_not_taken(tmp_path, monkeypatch):
  """The size changes if the fonts in the matplotlib wheel change."""
  few = glyph_clutter.typefaces()[:1]
  monkeypatch.setattr(glyph_clutter, "typefaces", lambda: few)
  source = glyph_source.GlyphClutterSource(str(tmp_path), variant="d0_plain")
  with pytest.raises(InputError, match="delete that folder"):
    source.load("test")


def test_unknown_splits_and_variants_are_refused(tmp_path):
  def source(variant):
    return glyph_source.GlyphClutterSource(str(tmp_path), variant=variant)

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
  source = glyph_source.GlyphClutterSource(str(tmp_path / "file" / "below"))
  with pytest.raises(InputError, match="data.directory"):
    source.load("val")


def test_prepared_images_are_the_scenes(few):
  images = few.load("val")
  characters = {
    name: row["character"]
    for name, row in splits.load("glyph_clutter")["splits"]["val"].items()
  }
  rows = {row[0]: row for row in glyph_clutter.keys(characters, "default")}
  assert rows.keys() == set(images.keys)
  for i, key in enumerate(images.keys):
    _, _, character, path = rows[key]
    scene = glyph_clutter.scene(key, character, path)
    np.testing.assert_array_equal(images.images[i], np.asarray(scene))
