"""Shuffled batches: every image once an epoch, the same after a restart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepemd_jax.data.batches import ShuffledBatches
from deepemd_jax.errors import InputError

SIZES = st.integers(1, 60).flatmap(
  lambda n: st.tuples(st.just(n), st.integers(1, n))
)


@given(sizes=SIZES, seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_an_epoch_takes_each_row_at_most_once(sizes, seed, epoch):
  n, size = sizes
  batches = ShuffledBatches(n, size, seed)
  assert batches.steps_per_epoch == n // size
  first = epoch * batches.steps_per_epoch
  rows = [batches(first + i) for i in range(batches.steps_per_epoch)]
  assert all(r.shape == (size,) and r.dtype == np.int32 for r in rows)
  rows = np.concatenate(rows)
  assert len(np.unique(rows)) == len(rows) > n - size
  assert rows.min() >= 0 and rows.max() < n


@given(sizes=SIZES, steps=st.lists(st.integers(0, 500), min_size=1))
def test_a_batch_depends_on_its_step_alone(sizes, steps):
  batches = ShuffledBatches(*sizes, 7)
  for step in steps:
    expected = ShuffledBatches(*sizes, 7)(step)
    np.testing.assert_array_equal(batches(step), expected)


def test_epochs_and_seeds_differ():
  one, other = ShuffledBatches(100, 100, 0), ShuffledBatches(100, 100, 1)
  rows = [one(0), one(1), other(0), other(1)]
  for i in range(4):
    for j in range(i):
      assert (rows[i] != rows[j]).any()


def test_a_batch_larger_than_the_set_is_refused():
  with pytest.raises(InputError, match="takes 9 images, but there are 8"):
    ShuffledBatches(8, 9, 0)
