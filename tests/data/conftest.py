"""The embedded data set, prepared once for all tests of this room."""

import fcntl
import os

import pytest

from deepemd_jax.data import sources


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory):
  """A source whose data are prepared."""
  place = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    place = place.parent  # which all workers have
  source = sources.GlyphClutterSource(str(place / "tfds"))
  with (place / "tfds.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    source.load("val")
  return source
