"""Boxes are those of torchvision's random crops and of the official grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDEN

from deepemd_jax.data import boxes as box_geometry

GOLDEN_VIEWS = np.load(GOLDEN / "transforms.npz")


@given(
  sizes=st.lists(
    st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=5
  ),
  seed=st.integers(0, 999),
)
def test_random_crops_are_whole_pixels_inside_the_image(sizes, seed):
  boxes = box_geometry.random_resized_crop(np.random.default_rng(seed), sizes)
  again = box_geometry.random_resized_crop(np.random.default_rng(seed), sizes)
  np.testing.assert_array_equal(boxes, again)
  height, width = np.array(sizes).T
  left, top, right, bottom = boxes.T
  assert (boxes == np.round(boxes)).all()
  assert (left >= 0).all() and (right <= width).all() and (right > left).all()
  assert (top >= 0).all() and (bottom <= height).all() and (bottom > top).all()


@pytest.mark.parametrize(("height", "width"), [(333, 500), (84, 84), (60, 300)])
def test_random_crops_are_spread_as_torchvisions(height, width):
  """The quantiles agree with those of 20,000 draws of torchvision 0.28.

  They are the quantiles 1, 5, 25, 50, 75, 95 and 99 % of the share of the area,
  width / height, top, left, height and width.
  """
  golden = np.load(GOLDEN / "rrc_quantiles.npz")[f"w{width}h{height}"]
  sizes = np.tile([[height, width]], (20_000, 1))
  boxes = box_geometry.random_resized_crop(np.random.default_rng(0), sizes)
  left, top, right, bottom = boxes.T
  w, h = right - left, bottom - top
  share = w * h / (width * height)
  for values, expected in zip(
    (share, w / h, top, left, h, w), golden, strict=True
  ):
    # Both sides are samples. Their distribution functions differ by sampling
    # error, and by one step if values are whole numbers.
    for q, at in zip((1, 5, 25, 50, 75, 95, 99), expected, strict=True):
      below, upto = (values < at - 1e-9).mean(), (values <= at + 1e-9).mean()
      assert below - 0.02 <= q / 100 <= upto + 0.02


@pytest.mark.parametrize(
  ("size", "expected"),
  [((10, 1000), (493, 0, 506, 10)), ((1000, 10), (0, 493, 10, 506))],
)
def test_a_narrow_image_gets_its_largest_central_crop(size, expected):
  """No crop of these shares fits into the image. torchvision does the same."""
  boxes = box_geometry.random_resized_crop(
    np.random.default_rng(0), [size], scale=(0.5, 1.0)
  )
  np.testing.assert_array_equal(boxes, [expected])


def test_random_crops_reach_every_place():
  sizes = np.tile([[4, 4]], (3000, 1))
  boxes = box_geometry.random_resized_crop(np.random.default_rng(0), sizes)
  left, top, right, bottom = boxes.T.astype(int)
  for low, high in ((left, right), (top, bottom)):
    found = {size: set(low[high - low == size]) for size in (2, 3, 4)}
    assert found == {2: {0, 1, 2}, 3: {0, 1}, 4: {0}}


def test_boxes_move_to_the_stored_copies():
  sizes = np.array([[100, 200], [50, 50]])
  boxes = np.array([[0, 0, 200, 100], [10, 20, 30, 50]])
  stored = box_geometry.to_stored(boxes, sizes, 64)
  np.testing.assert_allclose(stored, [[0, 0, 64, 64], [12.8, 25.6, 38.4, 64]])


def test_grid_boxes_are_the_official_ones():
  for size, ratio, cells, *spans in GOLDEN_VIEWS["grid_location_table"]:
    cells = int(cells)
    boxes = box_geometry.grid_boxes([[size, size]], [cells], [[ratio]])[0]
    expected = np.reshape(spans[: 2 * cells], (cells, 2))
    grid = boxes.reshape(cells, cells, 4)
    np.testing.assert_array_equal(grid[0][:, [0, 2]], expected)
    np.testing.assert_array_equal(grid[:, 0][:, [1, 3]], expected)
  together = box_geometry.grid_boxes(
    GOLDEN_VIEWS["hw"], [2, 3], np.full((4, 2), 2.0)
  )
  for i in range(4):
    np.testing.assert_array_equal(
      together[i], GOLDEN_VIEWS[f"im{i}_grid_boxes"]
    )


def test_grid_ratios_are_each_images_and_levels_own():
  sizes = np.array([[90, 60], [60, 90]])
  boxes = box_geometry.grid_boxes(
    sizes, [2, 3], np.array([[1.0, 2.0], [3.0, 1.0]])
  )
  widths = boxes[..., 2] - boxes[..., 0]
  assert widths[0, :4].max() == 30 and widths[0, 4:].max() == 40
  assert widths[1, 0] == 89  # 22 + 67: cut at the left border
  assert widths[1, 4:].max() == 30
