"""Rankings of an image set and their metrics."""

import dataclasses
from typing import Any

import numpy as np

from deepemd_jax.config.settings import RetrieveSettings
from deepemd_jax.evaluation import statistics

CHOSEN_BY = "MAP@R"
GLOBAL, EMD = "global", "EMD"  # the two rankings
# {metric: percent, for each query [q] or on average}
Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
  """The rankings of an image set by one encoder.

  Attributes:
    queries: int [q], the rows of the queries.
    rows: int [q, L], the ranked rows of each query by cosine, most similar
      first.
    emd: float32 [q, K], 1 - EMD / number of nodes for the first K images.
    seconds: the times of "encoding", "global" and "EMD".
    milliseconds: {k: time per query of re-ranking k images}; empty if it was
      not measured.
  """

  queries: np.ndarray
  rows: np.ndarray
  emd: np.ndarray
  seconds: dict[str, float]
  milliseconds: dict[int, float]

  def order(self, method: str, depth: int) -> np.ndarray:
    """Returns the ranked rows, int [q, L]; "EMD" re-ranks the first `depth`."""
    if method != EMD:
      return self.rows
    return statistics.reordered(self.rows, self.emd[:, :depth])


def metrics(
  spec: RetrieveSettings, labels: np.ndarray, ranking: Ranking, rows: np.ndarray
) -> dict[str, np.ndarray]:
  """Computes the metrics of each query.

  Args:
    spec: the settings with the K of each Recall@K.
    labels: int [N], the classes of the gallery's images.
    ranking: has the queries.
    rows: int [q, L], the ranked rows of each query.

  Returns:
    {"Recall@1": [q], ..., "R-Precision": [q], "MAP@R": [q]}, in percent.
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
  """Chooses for each ranking the stage whose encoder has the best MAP@R.

  Args:
    spec: the settings of retrieval.
    labels: int [N], the classes of the validation images.
    tried: {stage: rankings of the validation images}.

  Returns:
    {"global": stage, "EMD": stage}; and {method: {stage: {metric: mean
    percent}}}.
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
