"""The pictures of a finished run, into `workdir/figures`."""

import pathlib
from typing import NamedTuple

import jax
import numpy as np

from deepemd_jax import emd
from deepemd_jax.config import resolve
from deepemd_jax.data import views
from deepemd_jax.evaluation import plots
from deepemd_jax.models import matching, nodes, resnet12
from deepemd_jax.training import metric_log


def draw(config, workdir: pathlib.Path, images, drawn, variables, results):
  """Writes learning_curves.png, matched_regions.png and, when variants were
  tested, clutter.png.

  Args:
    config: of the run.
    workdir: of the run.
    images: the test `ImageSet`.
    drawn: one `Episode` of it, to show.
    variables: DeepEMD's encoder.
    results: as in results.json.
  """
  folder = workdir / "figures"
  stages = {
    stage: metric_log.read(workdir / stage / "metrics.jsonl")
    for stage in ("pretrain", "metatrain")
    if (workdir / stage / "metrics.jsonl").exists()
  }
  if stages:
    plots.save(plots.learning_curves(stages), folder / "learning_curves.png")
  if config.evaluate.pictures:
    pairs = matched_pairs(config, images, drawn, variables)
    plots.save(plots.matched_regions(pairs), folder / "matched_regions.png")
  panels = clutter_panels(results.get("variants", {}))
  if panels:
    figure = plots.robustness_curves(panels, "distractors")
    plots.save(figure, folder / "clutter.png")


def draw_retrieval(config, workdir: pathlib.Path, images, orders, results):
  """Writes retrieval.png (quality and time against the number of images that
  EMD puts in order) and retrieved.png (what some queries got).

  Args:
    config: of the run.
    workdir: of the run.
    images: the gallery, an `ImageSet`.
    orders: as `retrieve.orders`.
    results: as in retrieve.json.
  """
  folder = workdir / "figures"
  curve = results["curve"]
  panels = {
    metric: {
      method: [(row["depth"], row["methods"][method][metric]) for row in curve]
      for method in results["methods"]
    }
    for metric in (f"Recall@{min(config.retrieve.recalls)}", "MAP@R")
  }
  times = [(row["depth"], row["ms_per_query"]) for row in curve]
  figure = plots.retrieval_curves(panels, times)
  plots.save(figure, folder / "retrieval.png")
  shown = retrieved(config, images, orders)
  if shown:
    plots.save(plots.retrieved(shown), folder / "retrieved.png")


def retrieved(config, images, orders, count: int = 5) -> list:
  """Some of the queries whose first images are not equally many right in the
  two rankings, drawn by the seed: where there is something to see."""
  queries = orders["queries"]
  names = [name for name in orders if name != "queries"]
  right = {
    name: images.labels[orders[name][:, :count]]
    == images.labels[queries][:, None]
    for name in names
  }
  counts = [found.sum(1) for found in right.values()]
  differing = np.flatnonzero(counts[0] != counts[1])
  rng = np.random.default_rng([config.seed, 6])
  chosen = rng.permutation(differing)[: config.retrieve.pictures]
  side = resolve.evaluation_side(config)

  def of(rows):
    return images.whole(rows, side)

  return [
    plots.Retrieved(
      query=of(queries[i : i + 1])[0],
      title=images.class_names[images.labels[queries[i]]],
      found={
        name: (of(orders[name][i, :count]), right[name][i]) for name in names
      },
    )
    for i in np.sort(chosen)
  ]


def matched_pairs(config, images, drawn, variables) -> list:
  """The first query of the first classes, against the class it was given to."""
  count = min(config.evaluate.pictures, len(drawn.classes))
  # Together, because every number of images is compiled.
  rows = np.concatenate([drawn.support[:, 0], drawn.query[:count, 0]])
  way = len(drawn.classes)
  seen = _looked_at(config, images, rows, variables)
  support, query = (
    _Looked(*(x[:way] for x in seen)),
    _Looked(*(x[way:] for x in seen)),
  )

  @jax.jit
  def matched(query, support):
    problem = matching.match(query, support)
    plan = emd.solve(
      1.0 - problem.similarity,
      problem.query_weights,
      problem.class_weights,
      solver=resolve.solver(config),
    )
    logits = (problem.similarity * plan.flow).sum((-2, -1))
    scale = config.emd.temperature / query.shape[1]
    return problem, plan.flow, scale * logits

  problem, flow, logits = jax.tree.map(
    np.asarray, matched(query.nodes, support.nodes)
  )
  names = [images.class_names[c] for c in drawn.classes]
  pairs = []
  for i in range(count):
    j = int(logits[i].argmax())
    verdict = "right" if i == j else f"wrong, is {names[i]}"
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


class _Looked(NamedTuple):
  """What is shown (uint8 [k, S, S, 3]), its nodes [k, n, c], where on the
  picture each of them is [k, n, 4], and which are mirrored [k, n]."""

  shown: np.ndarray
  nodes: jax.Array
  boxes: np.ndarray
  mirrored: np.ndarray


def _looked_at(config, images, rows, variables) -> _Looked:
  side, precision = config.image.size, config.model.precision
  shown = images.whole(rows, resolve.evaluation_side(config))
  if config.nodes.kind != "fcn":
    boxes, flip = resolve.evaluation_crops(config, images)(rows)
    pixels, cut_out = images.cut(rows, boxes, side)
    crops = resolve.crop(config, side)(
      {"images": pixels, "boxes": cut_out, "flip": flip}
    )
    crops = crops.reshape(-1, *crops.shape[2:])
    maps = resnet12.encode(variables, crops, precision)
    maps = maps.reshape(*flip.shape, *maps.shape[1:])
    count = boxes.shape[1]
    on_shown = views.to_stored(
      boxes.reshape(-1, 4), images.sizes[rows].repeat(count, 0), shown.shape[1]
    )
    return _Looked(
      shown, nodes.from_crops(maps), on_shown.reshape(boxes.shape), flip
    )
  pixels = np.asarray(resolve.evaluation_view(config)(shown))
  maps = resnet12.encode(variables, pixels, precision)
  grids = [(cells, cells) for cells in config.nodes.pyramid]
  grids.append(maps.shape[1:3])
  boxes = np.concatenate([nodes.cell_boxes(*g, side) for g in grids])
  return _Looked(
    _to_gray_levels(config, pixels),
    nodes.pyramid(maps, tuple(config.nodes.pyramid)),
    np.broadcast_to(boxes, (len(rows), *boxes.shape)),
    np.zeros((len(rows), len(boxes)), bool),
  )


def _to_gray_levels(config, pixels):
  levels = pixels * np.array(config.image.std) + np.array(config.image.mean)
  return np.clip(np.round(levels), 0, 255).astype(np.uint8)


def clutter_panels(variants: dict) -> dict:
  """{"background: plain": {head: [(distractors, accuracy, ci95)]}}."""
  panels: dict = {}
  for name, measured in variants.items():
    distractors, _, background = name.partition("_")
    panel = panels.setdefault(f"{background} background", {})
    for head, row in measured["heads"].items():
      point = (int(distractors[1:]), row["accuracy"], row["ci95"])
      panel.setdefault(results_title(head), []).append(point)
  return panels


def results_title(head: str, shot: int = 1) -> str:
  """A head's name for people."""
  return {
    "deepemd": "DeepEMD" if shot == 1 else "DeepEMD, SFC",
    "deepemd_equal_weights": "DeepEMD, equal weights",
    "deepemd_l2": "DeepEMD, l2",
    "deepemd_sinkhorn": "DeepEMD, Sinkhorn",
    "deepemd_qp": "DeepEMD, QP",
    "deepemd_mean": "DeepEMD, mean nodes",
    "deepemd_nearest": "DeepEMD, nearest shot",
    "prototype": "Prototype (pooled, cosine)",
    "chamfer": "Chamfer (nearest node)",
  }[head]
