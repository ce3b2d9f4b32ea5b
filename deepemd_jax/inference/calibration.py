"""Measures of the quality of predictions, as pure functions of arrays."""

from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
  """A comparison of predicted probabilities with the share of correct ones.

  Predictions are sorted into bins by the probability of the predicted class.

  Attributes:
    edges: [bins + 1], the limits of the bins, from 0 to 1.
    counts: [bins], the number of predictions in each bin.
    confidence: [bins], the mean probability of the predicted class, 0 to 1; NaN
      in an empty bin.
    accuracy: [bins], the share of correct predictions, 0 to 1; NaN in an empty
      bin.
    error: the expected calibration error, 0 to 1: the mean over all predictions
      of |accuracy - confidence| of their bins.
  """

  edges: np.ndarray
  counts: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray
  error: float


def confusion(labels: np.ndarray, predicted: np.ndarray, way: int):
  """Returns int [way, way], the images of class i that were predicted as j.

  Args:
    labels: int [N], the true classes.
    predicted: int [N], the predicted classes.
    way: number of classes.
  """
  counts = np.zeros((way, way), int)
  np.add.at(counts, (labels, predicted), 1)
  return counts


def calibration(
  probabilities: np.ndarray, labels: np.ndarray, bins: int = 10
) -> Calibration:
  """Computes the calibration of the predicted class's probability.

  Args:
    probabilities: [N, way], 0 to 1.
    labels: int [N], the columns of the true classes.
    bins: number of bins of equal width.

  References:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
  """
  confidence = probabilities.max(1)
  right = probabilities.argmax(1) == labels
  edges = np.linspace(0, 1, bins + 1)
  # The bins are closed on the right, so that 1 belongs to the last bin.
  index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  counts = np.bincount(index, minlength=bins)
  sums = (np.bincount(index, x, bins) for x in (confidence, right))
  with np.errstate(invalid="ignore"):
    mean, accuracy = (x / counts for x in sums)
  gaps = np.abs(np.nan_to_num(accuracy - mean))
  error = float((gaps * counts).sum() / max(counts.sum(), 1))
  return Calibration(edges, counts, mean, accuracy, error)


def worst_first(probabilities: np.ndarray, labels=None) -> np.ndarray:
  """Returns the order of predictions, int [N], with the worst first.

  Args:
    probabilities: [N, way], 0 to 1.
    labels: int [N], the columns of the true classes. The prediction with the
      lowest probability of the true class is the worst. If None, the least
      certain prediction is the worst.
  """
  if labels is None:
    key = probabilities.max(1)
  else:
    key = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
  return np.argsort(key, kind="stable")
