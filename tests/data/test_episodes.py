"""Episodes have the right classes and images, and depend only on the index."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deepemd_jax.data import episodes
from deepemd_jax.errors import InputError


def sampler(labels, *, seed=0, split="train", **shape):
  names = [f"class{i}" for i in range(max(labels) + 1)]
  return episodes.EpisodeSampler(
    np.asarray(labels),
    episodes.EpisodeShape(**shape),
    class_names=names,
    seed=seed,
    split=split,
  )


def same(first, second):
  return all(
    np.array_equal(getattr(first, field.name), getattr(second, field.name))
    for field in dataclasses.fields(episodes.Episode)
  )


@st.composite
def tasks(draw):
  """Draws labels in any order, and a shape of episodes that fits them."""
  way, shot, query = draw(
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))
  )
  counts = draw(
    st.lists(st.integers(shot + query, 20), min_size=way, max_size=10)
  )
  labels = np.repeat(np.arange(len(counts)), counts)
  order = np.random.default_rng(draw(st.integers(0, 99))).permutation(
    len(labels)
  )
  return labels[order], {"way": way, "shot": shot, "query": query}


@given(task=tasks(), index=st.integers(0, 10**9), seed=st.integers(0, 2**32))
def test_an_episode_is_what_it_says(task, index, seed):
  labels, shape = task
  episode = sampler(labels, seed=seed, **shape)(index)
  way, shot, query = shape.values()
  assert episode.support.shape == (way, shot)
  assert episode.query.shape == (way, query)
  for field in dataclasses.fields(episode):
    assert getattr(episode, field.name).dtype == np.int32
  assert len(set(episode.classes)) == way
  rows = np.concatenate([episode.support, episode.query], 1)
  assert (labels[rows] == episode.classes[:, None]).all()
  assert len(np.unique(rows)) == rows.size  # no image occurs twice


@given(task=tasks(), indices=st.lists(st.integers(0, 1000), min_size=1))
def test_an_episode_depends_on_its_index_alone(task, indices):
  """The order, the sampler and the batch do not matter."""
  labels, shape = task
  draw = sampler(labels, **shape)
  batch = episodes.batch(draw, indices)
  assert batch.support.shape[:2] == (len(indices), shape["way"])
  for i, index in reversed(list(enumerate(indices))):
    alone = sampler(labels, **shape)(index)
    assert same(alone, draw(index))
    for field in dataclasses.fields(alone):
      np.testing.assert_array_equal(
        getattr(batch, field.name)[i], getattr(alone, field.name)
      )


@given(
  first=st.tuples(
    st.integers(0, 99), st.sampled_from("abc"), st.integers(0, 99)
  ),
  second=st.tuples(
    st.integers(0, 99), st.sampled_from("abc"), st.integers(0, 99)
  ),
)
def test_another_seed_split_or_index_is_another_episode(first, second):
  assume(first != second)
  labels = np.arange(2000) % 20
  drawn = [
    sampler(labels, seed=seed, split=split, way=5, shot=5, query=15)(index)
    for seed, split, index in (first, second)
  ]
  assert not same(*drawn)


def test_all_classes_and_images_are_drawn_alike():
  """Each of the 12 images is in an episode with probability 1/2 * 2/3."""
  labels = np.arange(12) % 4
  draw = sampler(labels, way=2, shot=1, query=1)
  drawn = episodes.batch(draw, range(3000))
  for rows, share in ((drawn.support, 1 / 6), (drawn.query, 1 / 6)):
    found = np.bincount(rows.ravel(), minlength=12) / 3000
    # The limit is four standard deviations of a binomial distribution.
    assert abs(found - share).max() < 4 * np.sqrt(share * (1 - share) / 3000)


@pytest.mark.parametrize(
  ("counts", "message"),
  [
    ({"a": 9, "b": 9}, "3-way .* need 3 classes, but split 'val' has 2"),
    ({}, "but split 'val' has 0"),
    ({"a": 9, "b": 4, "c": 9}, "class 'b' .* has 4 images, .* needs 5"),
  ],
)
def test_what_cannot_be_drawn_is_refused(counts, message):
  with pytest.raises(InputError, match=message):
    episodes.check_feasible(counts, episodes.EpisodeShape(3, 1, 4), split="val")


def test_the_sampler_refuses_it_too():
  with pytest.raises(InputError, match="class 'class1' .* has 1 images"):
    sampler([0, 0, 1], way=2, shot=1, query=1)
