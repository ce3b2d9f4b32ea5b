"""Copies and originals: a crop is the same part of the image in both."""

import io
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepemd_jax.config import defaults, resolve
from deepemd_jax.data import views
from deepemd_jax.data.image_set import Copies, Originals
from deepemd_jax.training import metatrain

SIZES = np.array([(40, 56), (33, 20), (84, 84), (5, 3), (120, 90), (60, 60)])


class Files:
  """PNGs in memory."""

  def __init__(self, pixels):
    self._files = []
    for each in pixels:
      file = io.BytesIO()
      Image.fromarray(each).save(file, "PNG")
      self._files.append(file.getvalue())

  def read(self, rows):
    return [self._files[row] for row in rows]


def known(sizes):
  return {
    "labels": np.arange(len(sizes), dtype=np.int32),
    "class_names": tuple(map(str, range(len(sizes)))),
    "keys": tuple(map(str, range(len(sizes)))),
    "sizes": sizes.astype(np.int32),
  }


def random_pixels(sizes):
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


PIXELS = random_pixels(SIZES)
ORIGINALS = Originals(files=Files(PIXELS), **known(SIZES))


def torchvision(pixels, box, size):
  """What RandomResizedCrop does after it has drawn its box."""
  image = Image.fromarray(pixels).crop(tuple(map(int, box)))
  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([16, 20]))
def test_crops_of_originals_are_those_of_torchvision(seed, size):
  """On the device nothing is left to do."""
  rng = np.random.default_rng(seed)
  rows = rng.integers(0, len(SIZES), (2, 3))
  boxes = views.random_resized_crop(rng, ORIGINALS.sizes[rows.ravel()])
  pixels, around = ORIGINALS.cut(rows, boxes.reshape(2, 3, 4), size)
  assert pixels.shape == (2, 3, size, size, 3) and pixels.dtype == np.uint8
  assert around.shape == (2, 3, 4) and around.dtype == np.float32
  flat = pixels.reshape(-1, size, size, 3)
  for row, box, found in zip(rows.ravel(), boxes, flat, strict=True):
    np.testing.assert_array_equal(found, torchvision(PIXELS[row], box, size))
  on_device = views.crop_resize(
    flat, around.reshape(-1, 4), jnp.zeros(6, bool), size=size
  )
  np.testing.assert_array_equal(on_device, flat)


@pytest.mark.parametrize("kind", ["grid", "sampling"])
def test_several_crops_of_an_original(kind):
  """The same as each alone, and as the network input they become."""
  config = defaults.get_config()
  config.image.size = 16
  config.nodes.kind = kind
  config.nodes.patches = 3
  rows = np.array([4, 0, 3])
  boxes, flip = resolve.evaluation_crops(config, ORIGINALS)(rows)
  pixels, around = ORIGINALS.cut(rows, boxes, 16)
  assert pixels.shape == (*flip.shape, 16, 16, 3)
  cut = resolve.crop(config, 16)(
    {"images": pixels, "boxes": around, "flip": jnp.asarray(flip)}
  )
  assert cut.shape == pixels.shape
  for i, row in enumerate(rows):
    for j in range(flip.shape[1]):
      left, top, right, bottom = boxes[i, j]
      box = left, top, max(right, left + 1), max(bottom, top + 1)
      alone = torchvision(PIXELS[row], box, 16)
      np.testing.assert_array_equal(pixels[i, j], alone)
      seen = alone[:, ::-1] if flip[i, j] else alone
      np.testing.assert_allclose(
        cut[i, j], resolve.normalize(config)(seen), 1e-5
      )


@pytest.mark.parametrize("crop", ["center", "whole"])
def test_whole_originals_are_seen_as_officially(crop):
  """Resize((92, 92)) and CenterCrop(84) of torchvision, to the last bit."""
  config = defaults.get_config()
  config.image.crop = crop
  config.image.mean, config.image.std = (0.0,) * 3, (1.0,) * 3
  side = resolve.evaluation_side(config)
  found = resolve.evaluation_view(config)(ORIGINALS.whole(np.arange(6), side))
  for pixels, seen in zip(PIXELS, found, strict=True):
    image = Image.fromarray(pixels)
    if crop == "center":
      image = image.resize((92, 92), Image.Resampling.BILINEAR)
      image = image.crop((4, 4, 88, 88))
    else:
      image = image.resize((84, 84), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(seen, np.asarray(image))


def test_copies_get_the_boxes_of_the_originals():
  rng = np.random.default_rng(1)
  stored = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
  copies = Copies(images=stored, **known(SIZES))
  rows = np.array([[1, 4], [4, 0]])
  boxes = rng.random((2, 2, 3, 4))
  pixels, mapped = copies.cut(rows, boxes, 84)
  np.testing.assert_array_equal(pixels, stored[rows])
  np.testing.assert_array_equal(copies.whole(rows[0], 84), stored[rows[0]])
  assert mapped.dtype == np.float32
  for i, j, k in np.ndindex(2, 2, 3):
    height, width = SIZES[rows[i, j]]
    expected = boxes[i, j, k] * 32 / [width, height, width, height]
    np.testing.assert_allclose(mapped[i, j, k], expected, 1e-6)


@pytest.mark.parametrize("kind", ["fcn", "grid", "sampling"])
def test_copies_as_large_as_originals_give_the_same_crops(kind):
  """As those of the CIFAR sets are: nothing is lost by storing them."""
  sizes = np.full((12, 2), 32)
  pixels = random_pixels(sizes)
  several = known(sizes) | {
    "labels": np.repeat(np.arange(4), 3).astype(np.int32),
    "class_names": tuple("abcd"),
  }
  config = defaults.get_config()
  config.image.size = 16
  config.nodes.kind = kind
  config.episode.way, config.episode.query = 2, 2
  found = []
  for images in (
    Copies(images=np.stack(pixels), **several),
    Originals(files=Files(pixels), **several),
  ):
    batch = metatrain._batches(config, images)(7)
    found.append(resolve.crop(config, 16)(batch["query"]))
  np.testing.assert_array_equal(*found)


def test_originals_travel():
  again = pickle.loads(pickle.dumps(ORIGINALS))
  rows = np.array([2, 1])
  np.testing.assert_array_equal(again.whole(rows, 9), ORIGINALS.whole(rows, 9))
