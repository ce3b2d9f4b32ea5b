"""A config describes the data and names their source."""

import os

import pytest

from deepemd_jax.config import defaults
from deepemd_jax.data import registry
from deepemd_jax.data.folder_source import FolderSource
from deepemd_jax.data.glyph_source import GlyphClutterSource
from deepemd_jax.data.published import catalogue
from deepemd_jax.data.published_source import PublishedSource
from deepemd_jax.data.sources import DataSpec, open_source
from deepemd_jax.errors import InputError


@pytest.mark.parametrize("name", registry.DATA_SETS)
def test_every_data_set_opens_and_says_what_it_is(name, tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "1.png").touch()
  spec = DataSpec(name, directory=str(tmp_path), folder=str(tmp_path))
  registry.check_name(name, 84)
  source = open_source(spec)
  assert source.protocol.partition(":")[0] == name
  assert source.title and "\n" not in source.title
  assert registry.DATA_SETS[name].title
  assert sum(map(sum, [source.counts(s).values() for s in ("train", "test")]))


def test_all_published_sets_are_there():
  assert registry.DATA_SETS.keys() == {
    *catalogue.BENCHMARKS,
    "folder",
    "glyph_clutter",
  }


def test_the_spec_says_what_the_source_is(tmp_path):
  kept = str(tmp_path)
  spec = DataSpec("cub:84", test_name="fc100", directory=kept)
  assert open_source(spec) == PublishedSource("cub:84", kept)
  assert open_source(spec, split="test") == PublishedSource("fc100", kept)
  assert open_source(spec, split="val") == PublishedSource("cub:84", kept)
  spec = DataSpec("glyph_clutter", directory=kept)
  for variant in ("default", "d1_busy"):
    opened = open_source(spec, variant=variant)
    assert opened == GlyphClutterSource(kept, variant)
  spec = DataSpec("folder", directory=kept, folder="x", csv="t", seed=3)
  assert open_source(spec) == FolderSource("x", kept, 160, csv="t", seed=3)


@pytest.mark.parametrize(
  ("name", "size", "side"),
  [
    ("folder", 84, 160),
    ("folder", 32, 61),
    ("folder:160", 32, 160),
    ("folder:original", 84, 0),
  ],
)
def test_the_side_of_copies_follows_the_images(name, size, side):
  source = open_source(DataSpec(name, folder="x", image_size=size))
  assert source.side == side == registry.folder_side(name, size)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("cup", "no data set 'cup'; did you mean cub"),
    ("glyph_cluter", "did you mean glyph_clutter"),
    ("glyph_clutter:64", "did you mean glyph_clutter"),
    ("folders", "did you mean folder"),
    ("", "no data set ''; use one of glyph_clutter, folder, cub"),
    ("cub:1", "'1' is not a size"),
    ("folder:0", "'0' is not a size.*such as folder:84"),
    ("folder:x", "'x' is not a size"),
    ("fc100:84", "32 pixels wide"),
  ],
)
def test_wrong_names_are_refused(name, message):
  with pytest.raises(InputError, match=message) as refused:
    registry.check_name(name, 84)
  assert "\n" not in str(refused.value)
  with pytest.raises(InputError, match=message):
    source = open_source(DataSpec(name, folder="x"))
    source.counts("train")


def test_only_glyphs_have_variants():
  for name in ("cub", "folder"):
    with pytest.raises(InputError, match="has no variant 'd1_busy'; set"):
      open_source(DataSpec(name, folder="x"), variant="d1_busy")


def test_the_directory_is_the_one_of_tensorflow_datasets(monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
  assert open_source(DataSpec("cub")).directory == "/somewhere"
  monkeypatch.delenv("TFDS_DATA_DIR")
  home = os.path.expanduser("~/tensorflow_datasets")
  assert open_source(DataSpec("cub")).directory == home
  for given in ("~/tensorflow_datasets", home + "/x/.."):
    assert open_source(DataSpec("cub", directory=given)).directory == home


def test_the_defaults_are_those_of_a_config():
  config, spec = defaults.get_config(), DataSpec("cub")
  assert spec.image_size == config.image.size
  for field in ("test_name", "directory", "folder", "csv", "workers"):
    assert getattr(spec, field) == config.data[field]
  assert spec.fractions == tuple(config.data.fractions)
