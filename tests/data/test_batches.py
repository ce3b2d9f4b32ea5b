"""Shuffled batches have each image once an epoch, also after a restart."""

import pickle

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepemd_jax.data.batches import (
  EpisodeBatches,
  ImageBatches,
  ShuffledRows,
)
from deepemd_jax.data.episodes import EpisodeSampler, EpisodeShape
from deepemd_jax.data.image_set import CachedImages
from deepemd_jax.data.views import TrainingViews, View
from deepemd_jax.errors import InputError

SIZES = st.integers(1, 60).flatmap(
  lambda n: st.tuples(st.just(n), st.integers(1, n))
)


@given(sizes=SIZES, seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_an_epoch_takes_each_row_at_most_once(sizes, seed, epoch):
  n, size = sizes
  batches = ShuffledRows(n, size, seed)
  assert batches.steps_per_epoch == n // size
  first = epoch * batches.steps_per_epoch
  rows = [batches(first + i) for i in range(batches.steps_per_epoch)]
  assert all(r.shape == (size,) and r.dtype == np.int32 for r in rows)
  rows = np.concatenate(rows)
  assert len(np.unique(rows)) == len(rows) > n - size
  assert rows.min() >= 0 and rows.max() < n


@given(sizes=SIZES, steps=st.lists(st.integers(0, 500), min_size=1))
def test_a_batch_depends_on_its_step_alone(sizes, steps):
  batches = ShuffledRows(*sizes, 7)
  for step in steps:
    expected = ShuffledRows(*sizes, 7)(step)
    np.testing.assert_array_equal(batches(step), expected)


def test_epochs_and_seeds_differ():
  one, other = ShuffledRows(100, 100, 0), ShuffledRows(100, 100, 1)
  rows = [one(0), one(1), other(0), other(1)]
  for i in range(4):
    for j in range(i):
      assert (rows[i] != rows[j]).any()


def test_a_batch_larger_than_the_set_is_refused():
  with pytest.raises(InputError, match="takes 9 images, but there are 8"):
    ShuffledRows(8, 9, 0)


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return CachedImages(
    images=rng.integers(0, 256, (24, 16, 16, 3), np.uint8),
    labels=np.repeat(np.arange(4), 6).astype(np.int32),
    class_names=tuple("abcd"),
    keys=tuple(map(str, range(24))),
    sizes=np.full((24, 2), 16, np.int32),
  )


def image_batches(images, local):
  views = TrainingViews(images, View(size=16), 16)
  return ImageBatches(ShuffledRows(24, 8, 3), views, 3, local)


def episode_batches(images, local):
  sampler = EpisodeSampler(
    images.labels,
    EpisodeShape(3, 1, 2),
    class_names=images.class_names,
    seed=3,
    split="train",
  )
  views = TrainingViews(images, View(size=16), 16, of_episodes=True)
  return EpisodeBatches(sampler, views, 4, 3, local)


@pytest.mark.parametrize(
  ("make", "count"), [(image_batches, 8), (episode_batches, 4)]
)
def test_processes_share_a_batch_that_depends_on_its_step_alone(
  make, count, images
):
  whole = make(images, np.arange(count))
  step = whole(5)
  parts = [make(images, np.arange(start, count, 2))(5) for start in (0, 1)]
  copy = pickle.loads(pickle.dumps(whole))(5)
  others = whole(6)
  assert jax.tree.structure(step) == jax.tree.structure(copy)
  for leaf, again, *shares, other in zip(
    *map(jax.tree.leaves, (step, copy, *parts, others)), strict=True
  ):
    assert len(leaf) == count
    np.testing.assert_array_equal(leaf, again)
    for start, share in enumerate(shares):
      np.testing.assert_array_equal(share, leaf[start::2])
    assert leaf.shape == other.shape
  boxes = [jax.tree.leaves(batch)[0] for batch in (step, others)]
  assert (boxes[0] != boxes[1]).any()


def test_labels_and_images_are_of_the_same_rows(images):
  batches = image_batches(images, np.arange(8))
  rows = batches.rows(5)
  batch = batches(5)
  np.testing.assert_array_equal(batch["labels"], images.labels[rows])
  np.testing.assert_array_equal(batch["views"]["images"], images.images[rows])
  batches = episode_batches(images, np.arange(4))
  episode = batches.sampler(4 * 5 + 2)
  shown = batches(5)["query"]["images"][2]
  np.testing.assert_array_equal(shown, images.images[episode.query])
