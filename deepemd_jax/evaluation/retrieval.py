"""The stage retrieve, which searches by pooled descriptors and re-ranks by EMD.

The test is leave-one-out: the images of the test classes are both gallery and
queries. All other images are ranked by the cosine of pooled descriptors. The
first K are then re-ranked by EMD, and the rest keeps its order. Each of the two
rankings uses the encoder of the trained stage that has the best MAP@R for it on
the validation classes.

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
  """Ranks the images for each query, and measures the rankings.

  It prints a table, and writes retrieve.json and figures.

  Args:
    settings: the run's settings.
    workdir: the run's folder, with the best encoder of each trained stage.

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
    print(results.table(), flush=True)  # before saving, as the disk may be full
    results.save(workdir)
    figures.draw_retrieval(settings, workdir, images, chosen, rankings, results)


class Ranker:
  """Encodes and ranks image sets; compiles once."""

  def __init__(self, settings: Settings) -> None:
    self._spec = settings.retrieve
    self._seed = settings.seed
    self._memory = settings.evaluate.memory
    self._encode = ImageSetEncoder.of(settings, STAGE)
    self._rerank = nearest.Reranker(settings.heads.solver)

  def __call__(
    self, images: ImageSet, variables, name: str, timed: bool = False
  ) -> Ranking:
    """Ranks the images for each query.

    Args:
      images: the images of the gallery and the queries.
      variables: the backbone's variables, on every device.
      name: the name of the image set in messages.
      timed: whether to time the re-ranking for each depth of the settings.
    """
    spec = self._spec
    queries = choose_queries(images.labels, spec.queries, self._seed)
    began = time.monotonic()
    # `validate` refuses crops that are redrawn for each episode.
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
    """Returns the global ranking, int32 [q, length], and its seconds."""
    spec = self._spec
    find = functools.partial(
      nearest.top,
      gallery,
      k=length,
      batch_size=spec.search_batch_size,
      block=spec.block,
    )
    find(queries[: spec.search_batch_size])  # compiles before the timing
    (rows, _), seconds = _with_progress(
      functools.partial(find, queries), f"queries, {name}", len(queries)
    )
    return rows, seconds

  def _time_depths(self, nodes, queries, rows, depth: int) -> dict:
    """Returns {k: milliseconds per query of re-ranking k images}."""
    size = self._spec.batch_size
    few = queries[: 4 * size]
    milliseconds = {}
    for k in sorted({min(k, depth) for k in self._spec.depths}):
      first = rows[: len(few), :k]
      self._rerank(nodes, few[:size], first[:size], size)  # compile first
      start = time.monotonic()
      self._rerank(nodes, few, first, size)
      milliseconds[k] = 1e3 * (time.monotonic() - start) / len(few)
    return milliseconds


def _with_progress(work, what: str, total: int):
  """Runs `work(progress=...)`; returns its result and its time in seconds."""
  began = time.monotonic()
  with Progress() as shown:

    def progress(done: int) -> None:
      runtime.raise_if_stopping(STAGE)
      shown(what, done, total)

    result = work(progress=progress)
  return result, time.monotonic() - began


def choose_queries(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Returns the ascending rows of the queries, int [queries].

  A query is an image whose class has another image. If `count` is not 0, the
  seed selects at most `count` of them. `labels` is int [N].
  """
  able = np.flatnonzero(np.bincount(labels)[labels] > 1)
  if not count or count >= len(able):
    return able
  return np.sort(stream(seed, Stream.QUERIES).permutation(able)[:count])


def lengths(spec: RetrieveSettings, labels: np.ndarray) -> tuple[int, int]:
  """Returns the numbers of images to rank and to re-rank for a query.

  The first number is large enough for every metric to be exact. `labels` is
  int [N].
  """
  others = len(labels) - 1
  depth = max(spec.depths)
  # R-Precision and MAP@R need as many images as the class has.
  wanted = max(depth, *spec.recalls, np.bincount(labels).max() - 1)
  return min(int(wanted), others), min(depth, others)
