"""`crop_resize` gives the same pixels as PIL."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import GOLDEN
from PIL import Image

from deepemd_jax.data import boxes as box_geometry
from deepemd_jax.data import crop_resize, views

GOLDEN_VIEWS = np.load(GOLDEN / "transforms.npz")


def pictures(rng, count, height, width):
  """Makes noise on smooth color, which is hard for a resizing filter."""
  coarse = rng.integers(0, 256, (count, 5, 5, 3), np.uint8)
  smooth = np.stack(
    [
      Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC)
      for c in coarse
    ]
  )
  noise = rng.integers(-40, 40, smooth.shape)
  return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def pil(image, box, flip, size, passes=2):
  """Resizes in two passes, in the order of Pillow 13, or in one pass."""
  crop = Image.fromarray(image).crop(tuple(int(v) for v in box))
  if passes == 2:
    tall = crop.height - size > max(0, 2 * (crop.width - size))
    first = (crop.width, size) if tall else (size, crop.height)
    crop = crop.resize(first, Image.Resampling.BILINEAR)
  pixels = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR))
  return pixels[:, ::-1] if flip else pixels


@pytest.mark.parametrize(
  ("height", "width", "size"),
  [
    *((126, 126, 84), (40, 70, 84), (150, 97, 32)),
    pytest.param(64, 64, 64, marks=pytest.mark.soak),
    pytest.param(84, 84, 84, marks=pytest.mark.soak),
  ],
)
def test_crop_resize_is_pil(height, width, size):
  rng = np.random.default_rng(height)
  images = pictures(rng, 48, height, width)
  corners = rng.integers(0, [[width], [height]], (48, 2, 2))
  low, high = corners.min(2), corners.max(2) + 1
  boxes = np.concatenate([low, high], 1)
  boxes[0] = 0, 0, width, height
  boxes[1] = 3, 5, 4, 6  # one pixel
  flip = rng.random(48) < 0.5
  found = crop_resize.crop_resize(images, boxes, flip, size=size)
  assert found.dtype == jnp.float32
  cases = list(zip(images, boxes, flip, strict=True))
  np.testing.assert_array_equal(found, [pil(*case, size) for case in cases])
  at_once = np.array([pil(*case, size, passes=1) for case in cases], int)
  assert np.abs(np.asarray(found) - at_once).max() <= 2


def test_views_is_where_others_find_it():
  assert views.crop_resize is crop_resize.crop_resize


def test_a_whole_image_of_the_right_size_is_itself():
  images = pictures(np.random.default_rng(0), 2, 64, 64)
  boxes = np.array([[0, 0, 64, 64]] * 2)
  found = crop_resize.crop_resize(
    images, boxes, np.array([False, True]), size=64
  )
  np.testing.assert_array_equal(found[0], images[0])
  np.testing.assert_array_equal(found[1], images[1][:, ::-1])


BOX = st.tuples(*[st.floats(0, 59)] * 2, *[st.floats(0.001, 60)] * 2).map(
  lambda b: (b[0], b[1], min(b[0] + b[2], 60), min(b[1] + b[3], 60))
)


@settings(deadline=None)
@given(box=BOX, flip=st.booleans())
def test_any_fractional_box_sees_what_lies_in_it(box, flip):
  """On a gray ramp, each result is right to a pixel.

  On a single color, each result is that color, however small the box is.
  """
  ramp = np.broadcast_to(4 * np.arange(60)[None, :, None], (60, 60, 3))
  images = np.stack([ramp, np.full((60, 60, 3), 77)]).astype(np.uint8)
  found = np.asarray(
    crop_resize.crop_resize(
      images, jnp.array([box] * 2), jnp.array([flip] * 2), size=16
    )
  )
  assert (found[1] == 77).all()
  left, _, right, _ = box
  centers = left + (np.arange(16) + 0.5) * (right - left) / 16
  centers = centers[::-1] if flip else centers
  assert np.abs(found[0][:, :, 0] / 4 - (centers - 0.5)).max() <= max(
    1.0, (right - left) / 16
  )


def test_evaluation_images_are_resized_and_cut():
  images = pictures(np.random.default_rng(1), 8, 97, 120)
  expected = []
  for image in images:
    large = Image.fromarray(image).resize((92, 92), Image.Resampling.BILINEAR)
    expected.append(np.asarray(large)[4:88, 4:88])
  np.testing.assert_array_equal(
    crop_resize.evaluation_images(images, 84), expected
  )


def test_a_crop_of_a_stored_copy_is_a_crop_of_the_original():
  """The picture is smooth, so the copy has lost no detail."""
  rng = np.random.default_rng(2)
  coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
  photo = coarse.resize((300, 200), Image.Resampling.BICUBIC)
  copy = photo.resize((126, 126), Image.Resampling.BILINEAR)
  sizes = np.array([[200, 300]])
  for _ in range(5):
    box = box_geometry.random_resized_crop(rng, sizes, scale=(0.2, 1))
    found = crop_resize.crop_resize(
      np.asarray(copy)[None],
      box_geometry.to_stored(box, sizes, 126),
      np.array([False]),
      size=84,
    )[0]
    expected = pil(np.asarray(photo), box[0], False, 84)
    assert np.abs(np.asarray(found) - expected).mean() < 1


@pytest.mark.parametrize("i", [0, 1, 3])
def test_views_of_the_official_data_sets(i):
  image = GOLDEN_VIEWS[f"im{i}_u8"][None]
  view = crop_resize.evaluation_images(jnp.asarray(image))[0]
  np.testing.assert_array_equal(view, GOLDEN_VIEWS[f"im{i}_fcn_eval_u8"])
  boxes = GOLDEN_VIEWS[f"im{i}_grid_boxes"].astype(float)
  crops = crop_resize.crop_resize(
    np.repeat(image, len(boxes), 0), boxes, np.zeros(len(boxes), bool)
  )
  np.testing.assert_array_equal(
    crops[:, ::6, ::6], GOLDEN_VIEWS[f"im{i}_grid_sub6_u8"]
  )
  here = GOLDEN_VIEWS["rrc_params"][:, 0] == i
  _, top, left, height, width = GOLDEN_VIEWS["rrc_params"][here].T
  boxes = np.stack([left, top, left + width, top + height], 1)
  flip = GOLDEN_VIEWS["rrc_flip"][here]
  crops = crop_resize.crop_resize(np.repeat(image, len(boxes), 0), boxes, flip)
  np.testing.assert_array_equal(
    crops[:, ::7, ::7], GOLDEN_VIEWS["rrc_sub7_u8"][here]
  )
