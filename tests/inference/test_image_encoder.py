"""Any number of encoders make nodes from images."""

import dataclasses

import jax
import numpy as np
import pytest

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.errors import InputError
from deepemd_jax.inference import feature_cache, image_encoder


def test_encoders_that_look_alike_share_a_program(run):
  """Cross-validation and each request of the demo make such encoders."""
  images = [np.full((40, 30, 3), level, np.uint8) for level in (50, 200)]

  def encode():
    loaded = pretrained.load(run)
    encoder = image_encoder.ImageEncoder(loaded, loaded.settings.view)
    return encoder.all(images).nodes

  first = encode()
  programs = image_encoder._encode._cache_size()
  np.testing.assert_array_equal(encode(), first)
  assert image_encoder._encode._cache_size() == programs


def test_numbers_that_are_not_finite_are_told(run):
  """Otherwise every query would get a meaningless answer."""
  loaded = pretrained.load(run)
  broken = jax.tree.map(lambda x: x * np.nan, loaded.encoder.variables)
  encoder = dataclasses.replace(loaded.encoder, variables=broken)
  loaded = dataclasses.replace(loaded, encoder=encoder)
  encoder = image_encoder.ImageEncoder(loaded, loaded.settings.view)
  with pytest.raises(InputError, match="not finite"):
    encoder.all([np.full((40, 30, 3), 90, np.uint8)])


def test_foreign_arrays_in_the_cache_are_made_again(run, tmp_path):
  """This holds for any arrays with the right name and a correct checksum."""
  loaded = pretrained.load(run)
  image = [np.full((40, 30, 3), 90, np.uint8)]

  def encode():
    cache = feature_cache.Cache(tmp_path)
    encoder = image_encoder.ImageEncoder(loaded, loaded.settings.view, cache)
    return encoder.all(image), encoder._model, cache

  first, model, cache = encode()
  (content,) = first.contents
  good = {name: getattr(first, name)[0] for name in image_encoder._ARRAYS}
  foreign = [
    {},
    {"other": np.zeros(3)},
    good | {"more": np.zeros(1)},
    good | {"nodes": good["nodes"][:-1]},
    good | {"nodes": good["nodes"].astype("U8")},
    good | {"mirrored": np.array(False)},
    good | {"sizes": np.array(["a", "b"])},
  ]
  for arrays in foreign:
    cache.put(model, content, **arrays)
    again, _, cache = encode()
    np.testing.assert_array_equal(again.nodes, first.nodes)
  kept = cache.get(model, content)  # the new arrays
  np.testing.assert_array_equal(kept["nodes"], first.nodes[0])
