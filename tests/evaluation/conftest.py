"""Fixtures of the tests of evaluation: a few images, a tiny encoder."""

import dataclasses

import numpy as np
import pytest
import recipes
import toy_backbone

from deepemd_jax.data.image_set import CachedImages

SIDE = 24


@pytest.fixture(scope="session")
def images():
  """Four classes of six images: square copies of originals of several sizes."""
  rng = np.random.default_rng(0)
  return CachedImages(
    images=rng.integers(0, 256, (24, SIDE, SIDE, 3), np.uint8),
    labels=np.repeat(np.arange(4), 6).astype(np.int32),
    class_names=tuple("abcd"),
    keys=tuple(str(i) for i in range(24)),
    sizes=rng.integers(30, 60, (24, 2)).astype(np.int32),
  )


@pytest.fixture(scope="session")
def variables():
  return toy_backbone.variables()


@pytest.fixture(scope="session")
def small():
  """`(kind, **sections) -> Settings` for 16 pixels, with the toy backbone."""

  def make(kind="fcn", **sections):
    fields = {
      "image.size": 16,
      "nodes.kind": kind,
      "nodes.grid": (1, 2),
      "nodes.patches": 3,
      "episode.way": 3,
      "episode.query": 2,
      "sfc.epochs": 2,
      "evaluate.batch_size": 4,
    }
    made = recipes.settings(fields, **sections)
    return dataclasses.replace(made, backbone=toy_backbone.create())

  return make
