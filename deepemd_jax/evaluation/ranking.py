"""Rankings of an image set: what they are, and how good."""

import dataclasses
from typing import Any

import numpy as np

from deepemd_jax.config.settings import RetrieveSettings
from deepemd_jax.evaluation import statistics

CHOSEN_BY = "MAP@R"
GLOBAL, EMD = "global", "EMD"  # the two rankings
# metric -> percent, of each query [q] or on average
Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
  """What one encoder makes of an image set.

  Attributes:
    queries: int [q], the rows that ask.
    rows: int [q, L], what they get, by cosine, most similar first.
    emd: float32 [q, K], 1 - EMD / number of nodes, of the first K.
    seconds: what "encoding", "global" and "EMD" took.
    milliseconds: {k: of re-ranking k images, a query}; empty if not asked for.
  """

  queries: np.ndarray
  rows: np.ndarray
  emd: np.ndarray
  seconds: dict[str, float]
  milliseconds: dict[int, float]

  def order(self, method: str, depth: int) -> np.ndarray:
    """Int [q, L]; with "EMD" the first `depth` are put in order."""
    if method != EMD:
      return self.rows
    return statistics.reordered(self.rows, self.emd[:, :depth])


def metrics(
  spec: RetrieveSettings, labels: np.ndarray, ranking: Ranking, rows: np.ndarray
) -> dict[str, np.ndarray]:
  """{"Recall@1": [q], ..., "R-Precision": [q], "MAP@R": [q]}, percent.

  Args:
    spec: says which recalls.
    labels: of the gallery.
    ranking: says who asks.
    rows: int [q, L], what they get.
  """
  own = labels[ranking.queries]
  relevant = labels[rows] == own[:, None]
  others = np.bincount(labels)[own] - 1
  length = relevant.shape[1]
  return {
    **{
      f"Recall@{k}": statistics.recall(relevant, min(k, length))
      for k in spec.recalls
    },
    "R-Precision": statistics.r_precision(relevant, others),
    "MAP@R": statistics.map_at_r(relevant, others),
  }


def choose(
  spec: RetrieveSettings, labels: np.ndarray, tried: dict[str, Ranking]
) -> tuple[dict[str, str], dict]:
  """The stage whose encoder suits each ranking best, by MAP@R.

  Args:
    spec: of the run.
    labels: int [N], the classes of the validation images.
    tried: the stages' rankings of them.

  Returns:
    {"global": stage, "EMD": stage}; and all that was looked at, mean percent by
    method, stage and metric.
  """
  depth = max(spec.depths)
  seen = {
    method: {
      stage: means_of(
        metrics(spec, labels, ranking, ranking.order(method, depth))
      )
      for stage, ranking in tried.items()
    }
    for method in (GLOBAL, EMD)
  }
  best = {
    method: max(means, key=lambda stage: means[stage][CHOSEN_BY])
    for method, means in seen.items()
  }
  return best, seen


def means_of(values: dict[str, np.ndarray]) -> dict[str, float]:
  """Averages metrics over queries: {metric: [queries]} -> {metric: mean}."""
  return {name: float(np.mean(v)) for name, v in values.items()}
