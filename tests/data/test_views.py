"""A view says what the network sees; the host draws and the device cuts."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepemd_jax.data import boxes as box_geometry
from deepemd_jax.data import views
from deepemd_jax.data.image_set import CachedImages
from deepemd_jax.data.views import TrainingViews, View

VIEW = View(
  size=16,
  grid=(1, 2),
  patches=3,
  mean=(100.0, 110.0, 120.0),
  std=(50.0, 55.0, 60.0),
)
KINDS = {"fcn": (), "grid": (5,), "sampling": (3,)}


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return CachedImages(
    images=rng.integers(0, 256, (6, 24, 24, 3), np.uint8),
    labels=np.arange(6, dtype=np.int32),
    class_names=tuple("abcdef"),
    keys=tuple("abcdef"),
    sizes=rng.integers(30, 60, (6, 2)).astype(np.int32),
  )


def of(kind, **changes):
  return dataclasses.replace(VIEW, kind=kind, **changes)


def draw(training, rows, *local, seed=0):
  return training(np.random.default_rng(seed), rows, *local)


@pytest.mark.parametrize("kind", KINDS)
def test_training_views_of_episodes(kind, images):
  training = TrainingViews(images, of(kind), 16, of_episodes=True)
  rows = np.array([[0, 1], [2, 0]])
  drawn = draw(training, rows)
  shape = (2, 2, *KINDS[kind])
  assert drawn["boxes"].shape == (*shape, 4)
  assert drawn["flip"].shape == shape and drawn["flip"].any()
  assert (drawn["boxes"][0, 0] != drawn["boxes"][1, 1]).any()
  cut = views.crop_on_device(
    training.view, 16, jax.tree.map(jnp.asarray, drawn)
  )
  assert cut.shape == (*shape, 16, 16, 3)
  # Views of pre-training are random crops of whole images, whatever the kind.
  plain = dataclasses.replace(training, of_episodes=False)
  assert draw(plain, rows)["boxes"].shape == (2, 2, 4)
  assert not draw(dataclasses.replace(plain, view=of(kind, flip=False)), rows)[
    "flip"
  ].any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_does_not_depend_on_who_makes_it(kind, images):
  """Each process and each worker draws for all images, and reads its own."""
  training = TrainingViews(images, of(kind), 16, of_episodes=True)
  rows = np.array([[0, 1], [2, 0], [5, 4], [3, 3]])
  whole = draw(training, rows)
  local = np.array([2, 0])
  part = draw(training, rows, local)
  again = draw(pickle.loads(pickle.dumps(training)), rows)
  for name, values in whole.items():
    np.testing.assert_array_equal(part[name], values[local])
    np.testing.assert_array_equal(again[name], values)
  other = draw(training, rows, seed=1)
  assert (other["boxes"] != whole["boxes"]).any()


def test_the_device_cuts_normalizes_and_mirrors(images):
  view = of("fcn")
  box = np.array([[0, 0, 16, 16]] * 2, np.float32)
  drawn = {
    "images": images.images[:2],
    "boxes": box,
    "flip": np.array([False, True]),
  }
  cut = np.asarray(views.crop_on_device(view, 16, drawn))
  pixels = images.images[:2, :16, :16].astype(np.float32)
  expected = (pixels - np.array(view.mean)) / np.array(view.std)
  np.testing.assert_allclose(cut[0], expected[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(cut[1], expected[1][:, ::-1], rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(
    view.to_gray_levels(cut[0]), images.images[0, :16, :16]
  )


def test_a_grid_is_drawn_with_ratios_of_its_range(images):
  view = of("grid", train_ratio=(2.0, 2.0))
  training = TrainingViews(images, view, 16, of_episodes=True)
  rows = np.arange(6)
  expected = box_geometry.grid_boxes(
    images.sizes, view.grid, np.full((6, 2), 2.0)
  )
  drawn = draw(training, rows)["boxes"]
  stored = box_geometry.to_stored(
    expected.reshape(-1, 4), images.sizes.repeat(5, 0), 24
  )
  np.testing.assert_allclose(drawn.reshape(-1, 4), stored, rtol=1e-6)
  boxes, flip = views.evaluation_boxes(of("grid", ratio=2.0), images, rows)
  np.testing.assert_array_equal(boxes, expected)
  assert not flip.any()


@pytest.mark.parametrize(("crop", "side"), [("center", 18), ("whole", 16)])
def test_whole_images_at_test_time(crop, side, images):
  view = of("fcn", whole_crop=crop)
  assert views.evaluation_side(view) == side and view.crops_per_image == 1
  seen = views.evaluation_view(view, jnp.asarray(images.images))
  assert seen.shape == (6, 16, 16, 3)
  # An image that has this size already gives its middle or itself.
  image = images.images[:1, :side, :side]
  edge = (side - 16) // 2
  middle = image[:, edge : edge + 16, edge : edge + 16]
  seen = views.evaluation_view(view, jnp.asarray(image))
  np.testing.assert_array_equal(view.to_gray_levels(np.asarray(seen)), middle)
