"""Stage retrieve: pooled descriptors find, the EMD puts in order.

Leave-one-out: the images of the test classes are gallery and queries at once.
Every other image is ranked by the cosine of pooled descriptors; the first K are
then put in order by EMD, and the rest follows as it was. Both rankings get the
trained stage's encoder that suits them best on the validation classes, by
MAP@R; the test classes are looked at with those.

References:
  Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020
  (protocol and metrics).
"""

import functools
import pathlib
import time
from typing import Any

import numpy as np

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.config.settings import RetrieveSettings, Settings
from deepemd_jax.data.image_set import ImageSet
from deepemd_jax.data.sources import open_source
from deepemd_jax.distributed import runtime, sharding
from deepemd_jax.evaluation import figures, nearest
from deepemd_jax.evaluation.features import ImageSetEncoder, empty_or_memmap
from deepemd_jax.evaluation.protocol import Protocol
from deepemd_jax.evaluation.ranking import Ranking, choose
from deepemd_jax.evaluation.results import nodes_fields
from deepemd_jax.evaluation.retrieval_results import (
  Gallery,
  RetrievalResults,
  measure,
)
from deepemd_jax.utils.progress import Progress
from deepemd_jax.utils.random_streams import Stream, stream

STAGE = "retrieve"


def run(settings: Settings, workdir: pathlib.Path) -> None:
  """Runs the stage: ranks the test images for each query, and measures it.

  It prints a table, and writes retrieve.json and figures.

  Args:
    settings: of the run.
    workdir: the folder of the run, with the best encoder of each trained stage.

  Raises:
    InputError: there is no trained encoder, or no class has two images.
    StopRequested: a signal asked to stop.
  """
  began = time.monotonic()
  encoders = pretrained.best_encoders(workdir, settings.backbone)
  variables = {
    stage: sharding.replicate(best.variables)
    for stage, best in encoders.items()
  }
  rank = Ranker(settings)
  val = open_source(settings.data).load("val")
  tried = {
    stage: rank(val, own, f"val, {stage}") for stage, own in variables.items()
  }
  spec = settings.retrieve
  chosen, validation = choose(spec, val.labels, tried)
  images = open_source(settings.data, split="test").load("test")
  if spec.split == "val":
    images = val
  rankings = {
    stage: rank(images, variables[stage], spec.split, timed=True)
    for stage in dict.fromkeys(chosen.values())
  }
  results = RetrievalResults(
    split=spec.split,
    gallery=Gallery(len(images.labels), len(set(images.labels.tolist()))),
    measured=measure(spec, images.labels, chosen, rankings),
    chosen=chosen,
    validation=validation,
    encoders=encoders,
    nodes=nodes_fields(settings),
    protocol=Protocol.of(settings, workdir),
    seconds=time.monotonic() - began,
  )
  if runtime.is_main():
    print(results.table(), flush=True)  # first: the disk may be full
    results.save(workdir)
    figures.draw_retrieval(settings, workdir, images, chosen, rankings, results)


class Ranker:
  """Encodes an image set and ranks it; compiles once."""

  def __init__(self, settings: Settings) -> None:
    self._spec = settings.retrieve
    self._seed = settings.seed
    self._memory = settings.evaluate.memory
    self._encode = ImageSetEncoder.of(settings, STAGE)
    self._rerank = nearest.Reranker(settings.heads.solver)

  def __call__(
    self, images: ImageSet, variables, name: str, timed: bool = False
  ) -> Ranking:
    """Ranks the images that each query gets.

    Args:
      images: gallery and queries.
      variables: of the backbone, on every device.
      name: shown to people.
      timed: also time the re-ranking of each of the settings' depths.
    """
    spec = self._spec
    queries = choose_queries(images.labels, spec.queries, self._seed)
    began = time.monotonic()
    # Crops that are redrawn for each episode are refused by `validate`.
    nodes: Any = self._encode(variables, images)
    seconds = {"encoding": time.monotonic() - began}
    shape = len(nodes.array), nodes.array.shape[-1]
    gallery = nearest.describe(
      nodes.array, empty_or_memmap(shape, self._memory)
    )
    length, depth = lengths(spec, images.labels)
    rows, seconds["global"] = self._search(gallery, queries, length, name)
    milliseconds = {}
    if timed:
      milliseconds = self._time_depths(nodes, queries, rows, depth)
    rerank = functools.partial(
      self._rerank, nodes, queries, rows[:, :depth], spec.batch_size
    )
    scores, seconds["EMD"] = _with_progress(
      rerank, f"queries, EMD, {name}", len(queries)
    )
    return Ranking(queries, rows, scores, seconds, milliseconds)

  def _search(self, gallery, queries, length: int, name: str):
    """The global ranking [q, length], and the seconds that it took."""
    spec = self._spec
    find = functools.partial(
      nearest.top,
      gallery,
      k=length,
      batch_size=spec.search_batch_size,
      block=spec.block,
    )
    find(queries[: spec.search_batch_size])  # compiles
    (rows, _), seconds = _with_progress(
      functools.partial(find, queries), f"queries, {name}", len(queries)
    )
    return rows, seconds

  def _time_depths(self, nodes, queries, rows, depth: int) -> dict:
    """{k: milliseconds a query of re-ranking k images}."""
    size = self._spec.batch_size
    few = queries[: 4 * size]
    milliseconds = {}
    for k in sorted({min(k, depth) for k in self._spec.depths}):
      first = rows[: len(few), :k]
      self._rerank(nodes, few[:size], first[:size], size)  # compiles
      start = time.monotonic()
      self._rerank(nodes, few, first, size)
      milliseconds[k] = 1e3 * (time.monotonic() - start) / len(few)
    return milliseconds


def _with_progress(work, what: str, total: int):
  """Runs `work(progress=...)`; what it returns, and the seconds it took."""
  began = time.monotonic()
  with Progress() as shown:

    def progress(done: int) -> None:
      runtime.raise_if_stopping(STAGE)
      shown(what, done, total)

    result = work(progress=progress)
  return result, time.monotonic() - began


def choose_queries(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Returns the rows of the queries, int [queries], ascending.

  A query is an image whose class has another one. If `count` is not 0, at most
  so many are drawn, by the seed. `labels` is int [N].
  """
  able = np.flatnonzero(np.bincount(labels)[labels] > 1)
  if not count or count >= len(able):
    return able
  return np.sort(stream(seed, Stream.QUERIES).permutation(able)[:count])


def lengths(spec: RetrieveSettings, labels: np.ndarray) -> tuple[int, int]:
  """Returns how many images are ranked for a query, and how many re-ranked.

  So many are ranked that every metric is exact. `labels` is int [N].
  """
  others = len(labels) - 1
  depth = max(spec.depths)
  # R-Precision and MAP@R look at as many as the class has.
  wanted = max(depth, *spec.recalls, np.bincount(labels).max() - 1)
  return min(int(wanted), others), min(depth, others)
