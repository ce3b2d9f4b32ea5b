"""A crop is the same part of an image in cached and in encoded images."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from png_files import PngFiles

from deepemd_jax.data import boxes as box_geometry
from deepemd_jax.data import crop_resize
from deepemd_jax.data.image_set import CachedImages, EncodedImages

SIZES = np.array([(40, 56), (33, 20), (84, 84), (5, 3), (120, 90), (60, 60)])


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
ENCODED = EncodedImages(files=PngFiles(PIXELS), **known(SIZES))


def torchvision(pixels, box, size):
  """Cuts and resizes as RandomResizedCrop does after it has drawn a box."""
  image = Image.fromarray(pixels).crop(tuple(map(int, box)))
  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([16, 20]))
def test_crops_of_originals_are_those_of_torchvision(seed, size):
  """The device does not change them."""
  rng = np.random.default_rng(seed)
  rows = rng.integers(0, len(SIZES), (2, 3))
  boxes = box_geometry.random_resized_crop(rng, ENCODED.sizes[rows.ravel()])
  pixels, around = ENCODED.extract_crops(rows, boxes.reshape(2, 3, 4), size)
  assert pixels.shape == (2, 3, size, size, 3) and pixels.dtype == np.uint8
  assert around.shape == (2, 3, 4) and around.dtype == np.float32
  flat = pixels.reshape(-1, size, size, 3)
  for row, box, found in zip(rows.ravel(), boxes, flat, strict=True):
    np.testing.assert_array_equal(found, torchvision(PIXELS[row], box, size))
  on_device = crop_resize.crop_resize(
    flat, around.reshape(-1, 4), jnp.zeros(6, bool), size=size
  )
  np.testing.assert_array_equal(on_device, flat)


def draw_boxes(kind, rng, sizes):
  """Draws one box [N, 4] for each image, or several [N, crops, 4]."""
  if kind == "fcn":
    return box_geometry.random_resized_crop(rng, sizes)
  if kind == "grid":
    ratios = rng.uniform(0.9, 1.3, (len(sizes), 2))
    return box_geometry.grid_boxes(sizes, (2, 3), ratios)
  boxes = box_geometry.random_resized_crop(rng, sizes.repeat(3, 0))
  return boxes.reshape(len(sizes), 3, 4)


def crop_on_device(pixels, boxes, flip, size):
  """Cuts [N, S, S, 3] by boxes [N, crops, 4], or cuts [N, crops, S, S, 3]."""
  if flip.ndim > pixels.ndim - 3:
    pixels = np.broadcast_to(pixels[:, None], (*flip.shape, *pixels.shape[1:]))
  crops = crop_resize.crop_resize(
    pixels.reshape(-1, *pixels.shape[-3:]),
    boxes.reshape(-1, 4),
    flip.ravel(),
    size=size,
  )
  return np.asarray(crops).reshape(*flip.shape, size, size, 3)


@pytest.mark.parametrize("kind", ["grid", "sampling"])
def test_several_crops_of_an_original(kind):
  """They equal single crops, and the device only mirrors them."""
  rows, rng = np.array([4, 0, 3]), np.random.default_rng(0)
  boxes = draw_boxes(kind, rng, ENCODED.sizes[rows])
  flip = rng.random(boxes.shape[:2]) < 0.5
  pixels, around = ENCODED.extract_crops(rows, boxes, 16)
  assert pixels.shape == (*flip.shape, 16, 16, 3)
  on_device = crop_on_device(pixels, around, flip, 16)
  for i, row in enumerate(rows):
    for j in range(flip.shape[1]):
      left, top, right, bottom = boxes[i, j]
      # Cells of an image of 5 x 3 pixels may be empty.
      height, width = SIZES[row]
      left, top = min(left, width - 1), min(top, height - 1)
      box = left, top, max(right, left + 1), max(bottom, top + 1)
      alone = torchvision(PIXELS[row], box, 16)
      np.testing.assert_array_equal(pixels[i, j], alone)
      expected = alone[:, ::-1] if flip[i, j] else alone
      np.testing.assert_allclose(on_device[i, j], expected, atol=1e-3)


@pytest.mark.parametrize("crop", ["center", "whole"])
def test_whole_originals_are_seen_as_officially(crop):
  """They equal Resize((92, 92)) and CenterCrop(84) of torchvision exactly."""
  side = crop_resize.large_side(84) if crop == "center" else 84
  squashed = ENCODED.whole(np.arange(6), side)
  if crop == "center":
    shown = crop_resize.evaluation_images(squashed, 84)
  else:
    boxes = np.tile(np.array([0, 0, 84, 84], np.float32), (6, 1))
    shown = crop_resize.crop_resize(squashed, boxes, np.zeros(6, bool), size=84)
  for pixels, image in zip(PIXELS, np.asarray(shown), strict=True):
    expected = Image.fromarray(pixels)
    if crop == "center":
      expected = expected.resize((92, 92), Image.Resampling.BILINEAR)
      expected = expected.crop((4, 4, 88, 88))
    else:
      expected = expected.resize((84, 84), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image, np.asarray(expected))


def test_copies_get_the_boxes_of_the_originals():
  rng = np.random.default_rng(1)
  stored = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
  copies = CachedImages(images=stored, **known(SIZES))
  rows = np.array([[1, 4], [4, 0]])
  boxes = rng.random((2, 2, 3, 4))
  pixels, mapped = copies.extract_crops(rows, boxes, 84)
  np.testing.assert_array_equal(pixels, stored[rows])
  np.testing.assert_array_equal(copies.whole(rows[0], 84), stored[rows[0]])
  assert mapped.dtype == np.float32
  for i, j, k in np.ndindex(2, 2, 3):
    height, width = SIZES[rows[i, j]]
    expected = boxes[i, j, k] * 32 / [width, height, width, height]
    np.testing.assert_allclose(mapped[i, j, k], expected, 1e-6)


@pytest.mark.parametrize("kind", ["fcn", "grid", "sampling"])
def test_copies_as_large_as_originals_give_the_same_crops(kind):
  """The copies of CIFAR are as large as the originals, so nothing is lost."""
  sizes = np.full((12, 2), 32)
  pixels = random_pixels(sizes)
  rows = np.array([7, 0, 11, 3])
  crops = []
  for images in (
    CachedImages(images=np.stack(pixels), **known(sizes)),
    EncodedImages(files=PngFiles(pixels), **known(sizes)),
  ):
    rng = np.random.default_rng(7)
    boxes = draw_boxes(kind, rng, images.sizes[rows])
    flip = rng.random(boxes.shape[:-1]) < 0.5
    seen, boxes = images.extract_crops(rows, boxes, 16)
    crops.append(crop_on_device(seen, boxes, flip, 16))
  np.testing.assert_array_equal(*crops)


def test_originals_travel():
  again = pickle.loads(pickle.dumps(ENCODED))
  rows = np.array([2, 1])
  np.testing.assert_array_equal(again.whole(rows, 9), ENCODED.whole(rows, 9))
