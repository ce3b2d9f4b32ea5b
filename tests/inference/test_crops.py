"""The host cuts views from originals of all sizes."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from deepemd_jax.data import boxes as box_geometry
from deepemd_jax.data import crop_resize
from deepemd_jax.data.views import View
from deepemd_jax.inference import crops

VIEW = View(size=32, grid=(1, 2), test_patches=4, scale=(0.1, 1.0))


def extract(image, **changes):
  view = dataclasses.replace(VIEW, **changes)
  return crops.extract_crops(view, image)


@pytest.fixture
def image():
  rng = np.random.default_rng(0)
  return Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))


@pytest.mark.parametrize("crop", ["center", "whole"])
def test_whole_images_are_those_of_evaluation(crop, image):
  pixels, boxes, mirrored = extract(image, whole_crop=crop)
  assert not mirrored.any()
  stack = jnp.asarray(np.asarray(image))[None]
  if crop == "center":
    expected = crop_resize.evaluation_images(stack, 32)
    # The image is resized to 35 pixels. The crop has 32 of them, and leaves out
    # the first.
    np.testing.assert_allclose(
      boxes[0], [60 / 35, 40 / 35, 60 * 33 / 35, 40 * 33 / 35]
    )
  else:
    box = jnp.array([[0, 0, 60, 40]])
    expected = crop_resize.crop_resize(stack, box, jnp.zeros(1, bool), size=32)
    assert boxes[0].tolist() == [0, 0, 60, 40]
  np.testing.assert_array_equal(pixels, expected)


def test_grid(image):
  pixels, boxes, mirrored = extract(image, kind="grid")
  assert mirrored.tolist() == [False] * 5
  assert pixels.shape == (5, 32, 32, 3)
  np.testing.assert_array_equal(
    boxes,
    box_geometry.grid_boxes(np.array([[40, 60]]), (1, 2), np.full((1, 2), 2))[
      0
    ],
  )
  left, top, right, bottom = boxes[4].astype(int)
  part = np.asarray(image)[top:bottom, left:right]
  expected = Image.fromarray(part).resize((32, 32), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(pixels[4], expected)


def test_sampling_follows_from_the_pixels(image):
  sampling = functools.partial(extract, kind="sampling")
  first, again = sampling(image), sampling(image.copy())
  np.testing.assert_array_equal(first[0], again[0])
  assert len(np.unique(first[1], axis=0)) == 4
  changed = image.copy()
  changed.putpixel((3, 3), (0, 0, 0))
  assert (sampling(changed)[1] != first[1]).any()
  assert (sampling(image, seed=1)[1] != first[1]).any()


def test_sampling_says_which_crops_are_mirrored(image):
  pixels, boxes, mirrored = extract(image, kind="sampling", test_patches=9)
  assert 0 < mirrored.sum() < 9
  for found, box, flip in zip(pixels, boxes, mirrored, strict=True):
    part = np.asarray(
      image.crop(tuple(map(int, box))).resize(
        (32, 32), Image.Resampling.BILINEAR
      )
    )
    np.testing.assert_array_equal(found, part[:, ::-1] if flip else part)
  assert not extract(image, kind="sampling", flip=False)[2].any()


@pytest.mark.parametrize("kind", ["fcn", "grid", "sampling"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_images_of_a_few_pixels(kind, size):
  image = Image.new("RGB", size, (10, 20, 30))
  pixels, boxes, _ = extract(image, kind=kind, grid=(1, 2, 5))
  assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]
  width, height = size
  assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
  assert (boxes[:, 2:] <= [width, height]).all()
