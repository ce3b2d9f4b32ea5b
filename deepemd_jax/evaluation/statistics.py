"""Metrics of rankings, in NumPy: Recall@K, R-Precision and MAP@R.

In leave-one-out retrieval, each query ranks all other images of the gallery. A
row of `relevant`, bool [q, L], says which of the ranked images have the query's
class, best first. `others`, int [q], is R, the number of images of that class
without the query. Values are percent and belong to single queries, so that two
rankings can be compared in pairs.

References:
  Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020,
  section 3.2: R-Precision and MAP@R.
  Jegou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search",
  TPAMI 2011: Recall@K as used in metric learning, 1 if any of the K is right.
"""

import numpy as np


def recall(relevant: np.ndarray, k: int) -> np.ndarray:
  """Returns Recall@k, 100 or 0 percent: [q, L] -> [q]; k is at most L."""
  # pyrefly: ignore[bad-return]: the stubs do not know that an axis remains
  return 100.0 * relevant[:, :k].any(1)


def r_precision(relevant: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Returns the percentage of relevant images among the first R.

  The shapes are [q, L], [q] -> [q]. L must be at least the largest R, and each
  R at least 1.
  """
  return 100.0 * (relevant & _first(relevant, others)).sum(1) / others


def map_at_r(relevant: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Returns 1/R sum_{i <= R} relevant_i * precision at i, in percent.

  The shapes are [q, L], [q] -> [q]. Unlike R-Precision, MAP@R depends on the
  ranks of the relevant images among the first R.
  """
  hits = relevant & _first(relevant, others)
  precision = np.cumsum(hits, 1) / np.arange(1, hits.shape[1] + 1)
  return 100.0 * (hits * precision).sum(1) / others


def _first(relevant, others):
  """Returns which ranks are among the first R, bool [q, L]."""
  return np.arange(relevant.shape[1]) < others[:, None]


def reordered(ranked: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Sorts the first k of each ranking by descending score, and keeps the rest.

  Args:
    ranked: [q, L], the rankings, best first.
    scores: [q, k], the scores of the first k; equal scores keep their order.

  Returns:
    [q, L], the new rankings.
  """
  k = scores.shape[1]
  order = np.argsort(-scores, 1, kind="stable")
  first = np.take_along_axis(ranked[:, :k], order, 1)
  return np.concatenate([first, ranked[:, k:]], 1)


def ci95(values: np.ndarray) -> float:
  """Returns the half width of the 95% interval of the mean of values [n].

  It is 1.96 std / sqrt(n), which is right for independent values. The values of
  queries that share a class are not independent.
  """
  return float(1.96 * np.std(values) / np.sqrt(len(values)))


def ci95_of_classes(values: np.ndarray, labels: np.ndarray) -> float:
  """Returns the half width of the 95% interval of a mean, clustered by class.

  It is 1.96 sqrt(sum over classes of (sum of deviations)^2) / n. Only classes
  are assumed to be independent. The queries of one class search for the same
  images, so this interval is more cautious than `ci95`. It still treats the
  gallery as fixed.

  Args:
    values: [q], the values of the queries.
    labels: int [q], the classes of the queries.

  References:
    Liang, Zeger, "Longitudinal data analysis using generalized linear models",
    Biometrika 1986 (the cluster-robust variance, here of a mean).
  """
  sums = np.bincount(labels, values - values.mean())
  return float(1.96 * np.sqrt((sums**2).sum()) / len(values))
