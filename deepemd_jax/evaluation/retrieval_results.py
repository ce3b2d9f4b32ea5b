"""What retrieval found, as typed values; its JSON and its table."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from deepemd_jax.checkpoints.pretrained import BestEncoder
from deepemd_jax.config.settings import RetrieveSettings
from deepemd_jax.evaluation import statistics
from deepemd_jax.evaluation.protocol import Protocol
from deepemd_jax.evaluation.results import nodes_text, write_json

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
    labels: of the validation images.
    tried: the stages' rankings of them.

  Returns:
    {"global": stage, "EMD": stage}; and all that was looked at, mean percent by
    method, stage and metric.
  """
  depth = max(spec.depths)
  seen = {
    method: {
      stage: _means(
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


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
  return {name: float(np.mean(v)) for name, v in values.items()}


@dataclasses.dataclass(frozen=True)
class Difference:
  """A paired difference over queries.

  Attributes:
    mean: points of percent.
    ci95: half width of its interval, as if queries were independent.
    ci95_classes: the same as if only classes were.
  """

  mean: float
  ci95: float
  ci95_classes: float

  @classmethod
  def of(cls, values: np.ndarray, labels: np.ndarray) -> "Difference":
    """Of values [q] of queries with these labels [q]."""
    return cls(
      float(np.mean(values)),
      statistics.ci95(values),
      statistics.ci95_of_classes(values, labels),
    )


@dataclasses.dataclass(frozen=True)
class Depth:
  """A point of the curve of quality and time.

  Attributes:
    depth: images that the EMD puts in order.
    methods: ranking -> its mean metrics.
    ms_per_query: of the re-ranking.
  """

  depth: int
  methods: dict[str, Metrics]
  ms_per_query: float


@dataclasses.dataclass(frozen=True)
class Measured:
  """The numbers that follow from the rankings.

  Attributes:
    queries: how many asked.
    able: how many could have.
    depth: images that the EMD put in order.
    stages: ranking -> the stage of its encoder, the EMD's last.
    methods: ranking -> metric -> {"mean", "ci95"}.
    paired: "EMD - ranking" -> metric -> the difference.
    curve: all depths.
    timing: seconds of encoding, milliseconds a query of both rankings.
  """

  queries: int
  able: int
  depth: int
  stages: dict[str, str]
  methods: dict[str, dict[str, dict[str, float]]]
  paired: dict[str, dict[str, Difference]]
  curve: list[Depth]
  timing: dict[str, float]


def measure(
  spec: RetrieveSettings,
  labels: np.ndarray,
  chosen: dict[str, str],
  rankings: dict[str, Ranking],
) -> Measured:
  """Measures rankings whose depths were timed.

  Args:
    spec: of the run.
    labels: of the gallery.
    chosen: as `choose` says.
    rankings: of the chosen stages.
  """
  stages = _stages(chosen)
  last = rankings[chosen[EMD]]
  curve = []
  for depth, milliseconds in last.milliseconds.items():
    values = {
      name: metrics(
        spec, labels, rankings[stage], rankings[stage].order(name, depth)
      )
      for name, stage in stages.items()
    }
    means = {name: _means(v) for name, v in values.items()}
    curve.append(Depth(depth, means, round(milliseconds, 3)))
  # What follows is of the largest depth, which came last.
  count, own = len(last.queries), labels[last.queries]
  seconds = last.seconds
  return Measured(
    queries=count,
    able=int((np.bincount(labels)[labels] > 1).sum()),
    depth=depth,
    stages=stages,
    methods={
      name: {
        metric: {"mean": float(np.mean(v)), "ci95": statistics.ci95(v)}
        for metric, v in of_metrics.items()
      }
      for name, of_metrics in values.items()
    },
    paired={
      f"EMD - {name}": {
        metric: Difference.of(values[EMD][metric] - v, own)
        for metric, v in values[name].items()
      }
      for name in stages
      if name != EMD
    },
    curve=curve,
    timing={
      "encoding_seconds": round(seconds["encoding"], 2),
      "global_ms_per_query": round(1e3 * seconds["global"] / count, 3),
      "emd_ms_per_query": round(1e3 * seconds["EMD"] / count, 3),
    },
  )


def _stages(chosen: dict[str, str]) -> dict[str, str]:
  """Ranking -> stage of its encoder, the EMD's last."""
  stages = {GLOBAL: chosen[GLOBAL]}
  if chosen[EMD] != chosen[GLOBAL]:
    stages["global, EMD's encoder"] = chosen[EMD]
  return stages | {EMD: chosen[EMD]}


@dataclasses.dataclass(frozen=True)
class Gallery:
  """What is searched.

  Attributes:
    images: how many.
    classes: of how many classes.
  """

  images: int
  classes: int


@dataclasses.dataclass(frozen=True)
class RetrievalResults:
  """What stage retrieve found.

  Attributes:
    split: whose classes.
    gallery: its size.
    measured: the numbers.
    chosen: ranking -> the stage of its encoder.
    validation: what it was chosen by.
    encoders: of all trained stages.
    nodes: what was matched, for the record.
    protocol: of the test.
    seconds: what all of it took.
  """

  split: str
  gallery: Gallery
  measured: Measured
  chosen: dict[str, str]
  validation: dict
  encoders: dict[str, BestEncoder]
  nodes: dict[str, Any]
  protocol: Protocol
  seconds: float

  def to_json(self) -> dict:
    """As in retrieve.json."""
    measured = self.measured
    return {
      "split": self.split,
      "gallery": dataclasses.asdict(self.gallery),
      "queries": measured.queries,
      "of": measured.able,
      "depth": measured.depth,
      "methods": {
        name: {"stage": measured.stages[name], **values}
        for name, values in measured.methods.items()
      },
      "paired": {
        pair: {metric: dataclasses.asdict(x) for metric, x in row.items()}
        for pair, row in measured.paired.items()
      },
      "curve": [dataclasses.asdict(point) for point in measured.curve],
      "timing": measured.timing | {"seconds": round(self.seconds, 1)},
      "chosen": self.chosen | {"by": CHOSEN_BY, "on": self.validation},
      "encoders": {
        stage: {"step": best.step} for stage, best in self.encoders.items()
      },
      "nodes": self.nodes,
      **self.protocol.to_json(),
    }

  def save(self, workdir: pathlib.Path) -> None:
    """Writes retrieve.json."""
    write_json(workdir / "retrieve.json", self.to_json())

  def table(self) -> str:
    """For the terminal."""
    measured = self.measured
    names = list(next(iter(measured.paired.values())))
    lines = [
      self._title(),
      "",
      f"{'percent':<30}{'encoder':>15}{_cells(names)}",
    ]
    for method, values in measured.methods.items():
      stage = measured.stages[method]
      where = f"{stage} {self.encoders[stage].step}"
      cells = _cells(f"{values[n]['mean']:.2f}" for n in names)
      lines.append(f"{method:<30}{where:>15}{cells}")
    lines += [
      "",
      "paired differences over queries, +- 95% as if these were independent",
    ]
    for pair, row in measured.paired.items():
      cells = _cells(f"{row[n].mean:+.2f}+-{row[n].ci95:.2f}" for n in names)
      lines.append(f"{pair:<45}{cells}")
      cells = _cells(f"+-{row[n].ci95_classes:.2f}" for n in names)
      lines.append(f"{'    if only classes are':<45}{cells}")
    of_depths = ", ".join(
      f"{x.depth}: {x.ms_per_query:g}" for x in measured.curve
    )
    speed = measured.timing["global_ms_per_query"]
    lines += ["", f"ms a query: global {speed:g}; EMD of {of_depths}"]
    return "\n".join(lines)

  def _title(self) -> str:
    measured, gallery = self.measured, self.gallery
    asked = f"{measured.queries:,} of {measured.able:,} images are queries"
    if measured.queries == measured.able:
      asked = f"each of {measured.able:,} images a query"
    return (
      f"{self.protocol.data_title()}, {self.split} classes: "
      f"{gallery.images:,} images of {gallery.classes:,} classes, {asked}, "
      f"seed {self.protocol.seed}; nodes: {nodes_text(self.nodes)}; "
      f"EMD re-ranks {measured.depth}"
    )


def _cells(texts) -> str:
  return "".join(f"{text:>13}" for text in texts)
