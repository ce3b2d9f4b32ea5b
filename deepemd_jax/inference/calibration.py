"""How good predictions are. Pure functions on arrays."""

from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
  """Compares the probabilities of predictions with how often they were right.

  Predictions are sorted into bins by the probability of the predicted class.

  Attributes:
    edges: [bins + 1], the limits of the bins, from 0 to 1.
    counts: [bins], the number of predictions in each bin.
    confidence: [bins], the mean probability of the predicted class, 0 to 1; NaN
      in an empty bin.
    accuracy: [bins], the share of predictions that were right, 0 to 1; NaN in
      an empty bin.
    error: the expected calibration error, 0 to 1: the mean over all predictions
      of |accuracy - confidence| of their bins.
  """

  edges: np.ndarray
  counts: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray
  error: float


def confusion(labels: np.ndarray, predicted: np.ndarray, way: int):
  """int [way, way]: images of class i that were taken for class j."""
  counts = np.zeros((way, way), int)
  np.add.at(counts, (labels, predicted), 1)
  return counts


def calibration(
  probabilities: np.ndarray, labels: np.ndarray, bins: int = 10
) -> Calibration:
  """Calibration of the predicted class's probability.

  Args:
    probabilities: [N, way].
    labels: [N], the true columns.
    bins: of equal width.

  References:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
  """
  confidence = probabilities.max(1)
  right = probabilities.argmax(1) == labels
  edges = np.linspace(0, 1, bins + 1)
  # Right-closed, so that 1 belongs to the last.
  index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  counts = np.bincount(index, minlength=bins)
  sums = (np.bincount(index, x, bins) for x in (confidence, right))
  with np.errstate(invalid="ignore"):
    mean, accuracy = (x / counts for x in sums)
  gaps = np.abs(np.nan_to_num(accuracy - mean))
  error = float((gaps * counts).sum() / max(counts.sum(), 1))
  return Calibration(edges, counts, mean, accuracy, error)


def worst_first(probabilities: np.ndarray, labels=None) -> np.ndarray:
  """Order of predictions, [N]: those to look at first in front.

  Args:
    probabilities: [N, way].
    labels: [N], the true columns: the less probability the truth got, the
      worse. None if unknown: then the least certain come first.
  """
  if labels is None:
    key = probabilities.max(1)
  else:
    key = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
  return np.argsort(key, kind="stable")
