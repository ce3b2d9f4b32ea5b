"""Draws the figures of a finished run into `workdir/figures`."""

import pathlib
from typing import NamedTuple

import jax
import numpy as np

from deepemd_jax import emd
from deepemd_jax.config.settings import Settings
from deepemd_jax.config.stages import TRAINING_STAGES
from deepemd_jax.data.boxes import to_stored
from deepemd_jax.data.episodes import Episode
from deepemd_jax.data.image_set import ImageSet
from deepemd_jax.data.views import (
  evaluation_boxes,
  evaluation_side,
  evaluation_view,
)
from deepemd_jax.evaluation import curves, metric_rows, plots
from deepemd_jax.evaluation.features import Features
from deepemd_jax.evaluation.ranking import EMD, GLOBAL, Ranking
from deepemd_jax.evaluation.results import EpisodeResults, FewShotResults
from deepemd_jax.evaluation.retrieval_results import RetrievalResults
from deepemd_jax.models import heads, matching
from deepemd_jax.utils.random_streams import Stream, stream


def draw(
  settings: Settings,
  workdir: pathlib.Path,
  images: ImageSet,
  episode: Episode,
  variables,
  results: FewShotResults,
) -> None:
  """Writes the figures of a few-shot test.

  They are learning_curves.png, matched_regions.png and, if variants were
  tested, clutter.png.

  Args:
    settings: the run's settings.
    workdir: the run's folder.
    images: the test images.
    episode: the test episode to show.
    variables: the variables of DeepEMD's encoder.
    results: the results of the test.
  """
  folder = workdir / "figures"
  stages = {
    stage: metric_rows.read(workdir / stage / "metrics.jsonl")
    for stage in TRAINING_STAGES
    if (workdir / stage / "metrics.jsonl").exists()
  }
  if stages:
    plots.save(curves.learning_curves(stages), folder / "learning_curves.png")
  if settings.evaluate.pictures:
    pairs = matched_pairs(settings, images, episode, variables)
    plots.save(plots.matched_regions(pairs), folder / "matched_regions.png")
  panels = clutter_panels(results.variants)
  if panels:
    figure = curves.robustness_curves(panels, "distractors")
    plots.save(figure, folder / "clutter.png")


def draw_retrieval(
  settings: Settings,
  workdir: pathlib.Path,
  images: ImageSet,
  chosen: dict[str, str],
  rankings: dict[str, Ranking],
  results: RetrievalResults,
) -> None:
  """Writes the figures of a retrieval test.

  retrieval.png shows quality and time against the number of images that EMD
  re-ranks. retrieved.png shows the first images for some queries.

  Args:
    settings: the run's settings.
    workdir: the run's folder.
    images: the images of the gallery.
    chosen: {ranking: the stage of its encoder}.
    rankings: {stage: the rankings with its encoder}.
    results: the results of the test.
  """
  folder = workdir / "figures"
  measured = results.measured
  panels = {
    metric: {
      method: [(x.depth, x.methods[method][metric]) for x in measured.curve]
      for method in measured.methods
    }
    for metric in (f"Recall@{min(settings.retrieve.recalls)}", "MAP@R")
  }
  times = [(x.depth, x.ms_per_query) for x in measured.curve]
  figure = curves.retrieval_curves(panels, times)
  plots.save(figure, folder / "retrieval.png")
  last = rankings[chosen[EMD]]
  orders = {
    GLOBAL: rankings[chosen[GLOBAL]].rows,
    EMD: last.order(EMD, last.emd.shape[1]),
  }
  shown = retrieved(settings, images, last.queries, orders)
  if shown:
    plots.save(curves.retrieved(shown), folder / "retrieved.png")


def retrieved(
  settings: Settings,
  images: ImageSet,
  queries: np.ndarray,
  orders: dict[str, np.ndarray],
  count: int = 5,
) -> list[curves.Retrieved]:
  """Returns the first images in both rankings for some queries.

  The seed selects among the queries for which the two rankings have different
  numbers of correct images.

  Args:
    settings: the run's settings.
    images: the images of the gallery.
    queries: int [q], the rows of the queries.
    orders: {ranking: int [q, L], the ranked rows}.
    count: number of images to show of each ranking.
  """
  own = images.labels[queries][:, None]
  right = {
    name: images.labels[rows[:, :count]] == own for name, rows in orders.items()
  }
  counts = [hits.sum(1) for hits in right.values()]
  differing = np.flatnonzero(counts[0] != counts[1])
  rng = stream(settings.seed, Stream.PICTURES)
  chosen = rng.permutation(differing)[: settings.retrieve.pictures]
  side = evaluation_side(settings.view)
  return [
    curves.Retrieved(
      query=images.whole(queries[i : i + 1], side)[0],
      title=images.class_names[images.labels[queries[i]]],
      found={
        name: (images.whole(rows[i, :count], side), right[name][i])
        for name, rows in orders.items()
      },
    )
    for i in np.sort(chosen)
  ]


class _Encoded(NamedTuple):
  """Images for a figure, with their nodes.

  Attributes:
    shown: uint8 [k, S, S, 3], the images to show.
    nodes: [k, n, c], their nodes.
    boxes: [k, n, 4], the box of each node in pixels of `shown`.
    mirrored: bool [k, n], whether the crop of each node is mirrored.
  """

  shown: np.ndarray
  nodes: jax.Array
  boxes: np.ndarray
  mirrored: np.ndarray


def matched_pairs(
  settings: Settings, images: ImageSet, episode: Episode, variables
) -> list[plots.MatchedPair]:
  """Returns the first query of the first classes with its predicted class."""
  way = len(episode.classes)
  count = min(settings.evaluate.pictures, way)
  # All images are encoded together, because each batch size is compiled.
  rows = np.concatenate([episode.support[:, 0], episode.query[:count, 0]])
  encoded = _encode_for_figure(settings, images, rows, variables)
  support = _Encoded._make(part[:way] for part in encoded)
  query = _Encoded._make(part[way:] for part in encoded)
  problem, flow, logits = _match(settings, query.nodes, support.nodes)
  names = [images.class_names[c] for c in episode.classes]
  pairs = []
  for i in range(count):
    j = int(logits[i].argmax())
    verdict = "right" if i == j else f"wrong, it is {names[i]}"
    pairs.append(
      plots.MatchedPair(
        support=support.shown[j],
        query=query.shown[i],
        support_boxes=support.boxes[j],
        query_boxes=query.boxes[i],
        support_weights=problem.class_weights[i, j],
        query_weights=problem.query_weights[i, j],
        similarity=problem.similarity[i, j],
        flow=flow[i, j],
        title=f"{names[j]} ({verdict}), logit {logits[i, j]:.1f}",
        support_mirrored=support.mirrored[j],
        query_mirrored=query.mirrored[i],
      )
    )
  return pairs


def _match(settings: Settings, query_nodes, support_nodes):
  """Returns the EMD problems, flows and logits of queries, in NumPy."""

  @jax.jit
  def match(query, support):
    problem = matching.match(query, support)
    plan = emd.solve(
      1.0 - problem.similarity,
      problem.query_weights,
      problem.class_weights,
      solver=settings.heads.solver,
    )
    logits = (problem.similarity * plan.flow).sum((-2, -1))
    scale = settings.heads.temperature / query.shape[1]
    return problem, plan.flow, scale * logits

  return jax.tree.map(np.asarray, match(query_nodes, support_nodes))


def _encode_for_figure(
  settings: Settings, images: ImageSet, rows: np.ndarray, variables
) -> _Encoded:
  features, view = Features.of(settings), settings.view
  shown = images.whole(rows, evaluation_side(view))
  if not view.is_whole:
    boxes, flip = evaluation_boxes(view, images, rows)
    pixels, on_pixels = images.extract_crops(rows, boxes, view.size)
    on_shown = to_stored(
      boxes.reshape(-1, 4),
      images.sizes[rows].repeat(boxes.shape[1], 0),
      shown.shape[1],
    )
    return _Encoded(
      shown,
      features.nodes_of_crops(variables, pixels, on_pixels, flip),
      on_shown.reshape(boxes.shape),
      flip,
    )
  pixels = np.asarray(evaluation_view(view, shown))
  boxes = features.node_boxes()
  return _Encoded(
    view.to_gray_levels(pixels),
    features.nodes(variables, pixels[:, None]),
    np.broadcast_to(boxes, (len(rows), *boxes.shape)),
    np.zeros((len(rows), len(boxes)), bool),
  )


def clutter_panels(variants: dict[str, EpisodeResults]) -> dict:
  """Returns {"plain background": {head: [(distractors, accuracy, ci95)]}}."""
  panels: dict = {}
  for name, results in variants.items():
    distractors, _, background = name.partition("_")
    panel = panels.setdefault(f"{background} background", {})
    for head, accuracy in results.accuracy.items():
      point = (int(distractors[1:]), accuracy.mean, accuracy.ci95)
      panel.setdefault(heads.title(head), []).append(point)
  return panels
