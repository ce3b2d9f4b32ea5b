"""From images to nodes, for any number of encoders."""

import numpy as np

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.inference import image_encoder


def test_encoders_that_look_alike_share_a_program(run):
  """As in cross-validation, and for each request of the demo."""
  images = [np.full((40, 30, 3), level, np.uint8) for level in (50, 200)]

  def encode():
    loaded = pretrained.load(run)
    encoder = image_encoder.ImageEncoder(loaded, loaded.settings.view)
    return encoder.all(images).nodes

  first = encode()
  programs = image_encoder._encode._cache_size()
  np.testing.assert_array_equal(encode(), first)
  assert image_encoder._encode._cache_size() == programs
