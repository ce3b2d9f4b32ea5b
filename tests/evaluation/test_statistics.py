"""Metrics agree with a slow version that takes one query at a time."""

import numpy as np
import pytest

from deepemd_jax.evaluation import statistics


@pytest.fixture(scope="module", params=range(4))
def rankings(request):
  """Makes (relevant [q, L], others [q]).

  All images of a class are in the gallery, but not all are among the first L.
  """
  rng = np.random.default_rng(request.param)
  count, length = 40, 12
  others = rng.integers(1, length + 1, count)
  relevant = np.zeros((count, length), bool)
  for row, total in zip(relevant, others, strict=True):
    found = rng.integers(0, total + 1)
    row[rng.permutation(length)[:found]] = True
  return relevant, others


def obvious(relevant, total):
  """Returns (R-Precision, MAP@R) of one query, as defined in the paper."""
  precisions = [
    sum(relevant[: i + 1]) / (i + 1) if relevant[i] else 0.0
    for i in range(total)
  ]
  return sum(relevant[:total]) / total, sum(precisions) / total


def test_metrics(rankings):
  relevant, others = rankings
  expected = [
    obvious(row.tolist(), int(n))
    for row, n in zip(relevant, others, strict=True)
  ]
  found = [
    f(relevant, others) for f in (statistics.r_precision, statistics.map_at_r)
  ]
  np.testing.assert_allclose(np.transpose(found) / 100, expected, atol=1e-12)
  for k in (1, 3, 12):
    right = [100.0 * (True in row[:k].tolist()) for row in relevant]
    np.testing.assert_array_equal(statistics.recall(relevant, k), right)


def test_the_place_of_the_right_ones_matters_to_one_of_them():
  """With R = 10, correct are the first, the first and the last, or all."""
  relevant = np.zeros((3, 10), bool)
  relevant[0, 0] = True
  relevant[1, [0, 9]] = True
  relevant[2] = True
  others = np.full(3, 10)
  np.testing.assert_allclose(
    statistics.r_precision(relevant, others), [10, 20, 100]
  )
  np.testing.assert_allclose(
    statistics.map_at_r(relevant, others), [10, 12, 100]
  )


def test_only_the_first_are_put_in_order():
  ranked = np.array([[7, 3, 5, 1, 2], [0, 1, 2, 3, 4]])
  scores = np.array([[0.1, 0.3, 0.2], [0.5, 0.5, 0.9]])
  np.testing.assert_array_equal(
    statistics.reordered(ranked, scores), [[3, 5, 7, 1, 2], [2, 0, 1, 3, 4]]
  )


def test_intervals_hold_what_they_promise():
  """Of 100 intervals, about 95 contain the true mean.

  If the errors of the queries of a class are correlated, only the intervals
  over classes do.
  """
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(40), 10)
  held = np.zeros((2, 2))
  for together in (0, 1):
    for _ in range(400):
      values = rng.standard_normal(400)
      values += together * rng.standard_normal(40)[labels]
      held[together] += [
        abs(values.mean()) < statistics.ci95(values),
        abs(values.mean()) < statistics.ci95_of_classes(values, labels),
      ]
  assert (held[:, 1] / 400 > 0.9).all() and held[0, 0] / 400 > 0.9
  assert held[1, 0] / 400 < 0.7
