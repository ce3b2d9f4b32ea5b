"""The results of retrieval as typed values, as JSON and as a table."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from deepemd_jax.checkpoints.pretrained import BestEncoder
from deepemd_jax.config.settings import RetrieveSettings
from deepemd_jax.evaluation import statistics
from deepemd_jax.evaluation.protocol import Protocol
from deepemd_jax.evaluation.ranking import (
  CHOSEN_BY,
  EMD,
  GLOBAL,
  Metrics,
  Ranking,
  means_of,
  metrics,
)
from deepemd_jax.evaluation.results import nodes_text, save, test_name


@dataclasses.dataclass(frozen=True)
class Difference:
  """A paired difference over queries, in percentage points.

  Attributes:
    mean: the mean difference.
    ci95: half width of the 95% interval if queries are independent.
    ci95_classes: half width of the 95% interval if only classes are
      independent.
  """

  mean: float
  ci95: float
  ci95_classes: float

  @classmethod
  def of(cls, values: np.ndarray, labels: np.ndarray) -> "Difference":
    """Returns the difference from values [q] of queries with labels int [q]."""
    return cls(
      float(np.mean(values)),
      statistics.ci95(values),
      statistics.ci95_of_classes(values, labels),
    )


@dataclasses.dataclass(frozen=True)
class Depth:
  """A point on the curve of quality and time.

  Attributes:
    depth: number of images that the EMD re-ranks.
    methods: {ranking: its mean metrics}.
    ms_per_query: time of the re-ranking per query, in milliseconds.
  """

  depth: int
  methods: dict[str, Metrics]
  ms_per_query: float


@dataclasses.dataclass(frozen=True)
class Measured:
  """The numbers that are computed from the rankings.

  Attributes:
    queries: number of queries.
    able: number of images that could be queries.
    depth: number of images that the EMD re-ranked.
    stages: {ranking: the stage of its encoder}, with the EMD last.
    methods: {ranking: {metric: {"mean", "ci95"}}}.
    paired: {"EMD - ranking": {metric: the difference}}.
    curve: the points of all depths.
    timing: seconds of encoding, and milliseconds per query of both rankings.
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
  """Computes the metrics of rankings whose depths were timed.

  Args:
    spec: the settings of retrieval.
    labels: int [N], the classes of the gallery's images.
    chosen: {ranking: stage}, from `choose`.
    rankings: {chosen stage: its rankings}.
  """
  stages = _stages(chosen)
  last = rankings[chosen[EMD]]
  curve, values = [], {}
  for depth, milliseconds in last.milliseconds.items():
    values = {
      name: metrics(
        spec, labels, rankings[stage], rankings[stage].order(name, depth)
      )
      for name, stage in stages.items()
    }
    means = {name: means_of(v) for name, v in values.items()}
    curve.append(Depth(depth, means, round(milliseconds, 3)))
  # The values below belong to the largest depth, which came last.
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
  """Returns {ranking: stage of its encoder}, with the EMD last."""
  stages = {GLOBAL: chosen[GLOBAL]}
  if chosen[EMD] != chosen[GLOBAL]:
    stages["global, EMD's encoder"] = chosen[EMD]
  return stages | {EMD: chosen[EMD]}


@dataclasses.dataclass(frozen=True)
class Gallery:
  """The size of the gallery.

  Attributes:
    images: number of images.
    classes: number of classes.
  """

  images: int
  classes: int


@dataclasses.dataclass(frozen=True)
class RetrievalResults:
  """The results of the stage retrieve.

  Attributes:
    split: the split whose classes were used.
    gallery: the size of the gallery.
    measured: the numbers computed from the rankings.
    chosen: {ranking: the stage of its encoder}.
    validation: the validation metrics that the choice is based on.
    encoders: {trained stage: its encoder}.
    nodes: the settings of the matched nodes.
    protocol: the conditions of the test.
    seconds: the time of the whole stage.
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
    """Returns the content of retrieve.json."""
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
        stage: {"step": best.step, "sha256": best.fingerprint}
        for stage, best in self.encoders.items()
      },
      "nodes": self.nodes,
      **self.protocol.to_json(),
    }

  def save(self, workdir: pathlib.Path) -> None:
    """Writes retrieve.json and a file in results/; see `results.save`."""
    measured = self.measured
    settings = {
      "nodes": self.nodes,
      "queries": measured.queries,
      "depths": [point.depth for point in measured.curve],
      "metrics": list(measured.methods[EMD]),
    }
    words = "retrieve", self.split, self.nodes["kind"]
    name = test_name(self.protocol, words, self.encoders, settings)
    save(workdir, "retrieve.json", name, self.to_json())

  def table(self) -> str:
    """Returns the table for the terminal."""
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
      "paired differences over queries, +- 95% if the queries are independent",
    ]
    for pair, row in measured.paired.items():
      cells = _cells(f"{row[n].mean:+.2f}+-{row[n].ci95:.2f}" for n in names)
      lines.append(f"{pair:<45}{cells}")
      cells = _cells(f"+-{row[n].ci95_classes:.2f}" for n in names)
      lines.append(f"{'    if only the classes are':<45}{cells}")
    of_depths = ", ".join(
      f"{x.depth}: {x.ms_per_query:g}" for x in measured.curve
    )
    speed = measured.timing["global_ms_per_query"]
    lines += ["", f"ms per query: global {speed:g}; EMD of {of_depths}"]
    return "\n".join(lines)

  def _title(self) -> str:
    measured, gallery = self.measured, self.gallery
    asked = f"{measured.queries:,} of {measured.able:,} images are queries"
    if measured.queries == measured.able:
      asked = f"each of {measured.able:,} images is a query"
    return (
      f"{self.protocol.data_title()}, {self.split} classes: "
      f"{gallery.images:,} images of {gallery.classes:,} classes, {asked}, "
      f"seed {self.protocol.seed}; nodes: {nodes_text(self.nodes)}; "
      f"EMD re-ranks {measured.depth}"
    )


def _cells(texts) -> str:
  return "".join(f"{text:>13}" for text in texts)
