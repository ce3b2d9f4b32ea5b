"""How good rankings are: Recall@K, R-Precision, MAP@R. NumPy alone.

Leave-one-out retrieval: each query ranks all other images of the gallery. A row
of `relevant` says, best first, which of the ranked images are of the query's
class; `others` is R, how many of that class there are besides the query. Values
are of single queries, percent, so that two rankings can be compared in pairs.

References:
  Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020,
  section 3.2: R-Precision and MAP@R.
  Jegou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search",
  TPAMI 2011: Recall@K as metric learning has it, 1 if any of the K is right.
"""

import numpy as np


def recall(relevant: np.ndarray, k: int) -> np.ndarray:
  """100 where any of the first k is relevant, else 0: [q, L] -> [q]; k <= L."""
  # pyrefly: ignore[bad-return]: the stubs do not know that an axis is left
  return 100.0 * relevant[:, :k].any(1)


def r_precision(relevant: np.ndarray, others: np.ndarray) -> np.ndarray:
  """The share of relevant images among the first R: [q, L], [q] -> [q].

  L is at least the largest R, and each R at least 1.
  """
  return 100.0 * (relevant & _first(relevant, others)).sum(1) / others


def map_at_r(relevant: np.ndarray, others: np.ndarray) -> np.ndarray:
  """1/R sum_{i <= R} relevant_i * precision at i: [q, L], [q] -> [q].

  As R-Precision, but it matters where among the first R the right ones stand.
  """
  hits = relevant & _first(relevant, others)
  precision = np.cumsum(hits, 1) / np.arange(1, hits.shape[1] + 1)
  return 100.0 * (hits * precision).sum(1) / others


def _first(relevant, others):
  """Which ranks are among the first R: [q, L]."""
  return np.arange(relevant.shape[1]) < others[:, None]


def reordered(ranked: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """The first k of each ranking by falling score, the rest as it was.

  Args:
    ranked: [q, L], best first.
    scores: [q, k], of the first k of them; equal ones keep their order.
  """
  k = scores.shape[1]
  order = np.argsort(-scores, 1, kind="stable")
  first = np.take_along_axis(ranked[:, :k], order, 1)
  return np.concatenate([first, ranked[:, k:]], 1)


def ci95(values: np.ndarray) -> float:
  """Half width of the 95% interval of the mean of values [n].

  It is 1.96 std / sqrt(n), which is right for independent values. Those of
  queries that share a class are not independent.
  """
  return float(1.96 * np.std(values) / np.sqrt(len(values)))


def ci95_of_classes(values: np.ndarray, labels: np.ndarray) -> float:
  """The same, where queries of one class may err together, but classes are
  independent: 1.96 sqrt(sum over classes of (sum of deviations)^2) / n.

  The queries of one class look for the same images, so this is the more careful
  of the two; it still takes the gallery as given.

  Args:
    values: [q].
    labels: int [q], the queries' classes.

  References:
    Liang, Zeger, "Longitudinal data analysis using generalized linear models",
    Biometrika 1986 (the cluster-robust variance, of a mean).
  """
  sums = np.bincount(labels, values - values.mean())
  return float(1.96 * np.sqrt((sums**2).sum()) / len(values))
