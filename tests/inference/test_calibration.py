"""Confusion, calibration and order agree with counts by hand."""

import numpy as np

from deepemd_jax.inference import calibration

P = np.array([[0.9, 0.1], [0.8, 0.2], [0.35, 0.65], [0.55, 0.45], [1.0, 0.0]])
TRUTH = np.array([0, 1, 1, 1, 0])


def test_confusion():
  counts = calibration.confusion(TRUTH, P.argmax(1), 2)
  assert counts.tolist() == [[2, 0], [2, 1]]


def test_calibration():
  found = calibration.calibration(P, TRUTH)
  assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
  # 0.9 is in the bin (0.8, 0.9].
  np.testing.assert_allclose(found.confidence[5:], [0.55, 0.65, 0.8, 0.9, 1])
  np.testing.assert_array_equal(found.accuracy[5:], [0, 1, 0, 1, 1])
  assert np.isnan(found.accuracy[:5]).all()
  np.testing.assert_allclose(found.error, (0.55 + 0.35 + 0.8 + 0.1) / 5)


def test_one_class_is_always_right():
  found = calibration.calibration(np.ones((3, 1)), np.zeros(3, int))
  assert found.error == 0 and found.counts[-1] == 3


def test_the_worst_come_first():
  assert calibration.worst_first(P, TRUTH).tolist() == [1, 3, 2, 0, 4]
  assert calibration.worst_first(P).tolist() == [3, 2, 1, 0, 4]
