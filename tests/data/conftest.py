"""The embedded data set, prepared once for all tests of this room."""

import pytest

from deepemd_jax.data import datasets


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory):
  """A source whose data are prepared."""
  source = datasets.GlyphClutterSource(str(tmp_path_factory.mktemp("tfds")))
  source.load("val")
  return source
