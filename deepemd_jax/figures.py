"""The pictures of a finished run, into `workdir/figures`."""

import pathlib

import numpy as np

from deepemd_jax import build, emd, metrics, visualize
from deepemd_jax.models import matching, nodes, resnet


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
    stage: metrics.read(workdir / stage / "metrics.jsonl")
    for stage in ("pretrain", "metatrain")
    if (workdir / stage / "metrics.jsonl").exists()
  }
  if stages:
    visualize.save(
      visualize.learning_curves(stages), folder / "learning_curves.png"
    )
  if config.evaluate.pictures:
    pairs = matched_pairs(config, images, drawn, variables)
    visualize.save(
      visualize.matched_regions(pairs), folder / "matched_regions.png"
    )
  panels = clutter_panels(results.get("variants", {}))
  if panels:
    figure = visualize.robustness_curves(panels, "distractors")
    visualize.save(figure, folder / "clutter.png")


def matched_pairs(config, images, drawn, variables) -> list:
  """The first query of the first classes, against the class it was given to."""
  count = min(config.evaluate.pictures, len(drawn.classes))
  view = build.evaluation_view(config)
  rows = {
    "support": drawn.support[:, 0],
    "query": drawn.query[:count, 0],
  }
  pixels = {k: np.asarray(view(images.images[r])) for k, r in rows.items()}
  maps = {k: resnet.encode(variables, p) for k, p in pixels.items()}
  encoded = {k: nodes.from_map(m) for k, m in maps.items()}
  problem = matching.match(encoded["query"], encoded["support"])
  plan = emd.solve(
    1.0 - problem.similarity,
    problem.query_weights,
    problem.class_weights,
    solver=build.solver(config),
  )
  logits = np.asarray(
    matching.logits(
      encoded["query"],
      encoded["support"],
      build.solver(config),
      config.emd.temperature,
    )
  )
  names = [images.class_names[c] for c in drawn.classes]
  boxes = nodes.cell_boxes(*maps["query"].shape[1:3], config.image.size)
  shown = {k: _to_grey_levels(config, p) for k, p in pixels.items()}
  pairs = []
  for i in range(count):
    j = int(logits[i].argmax())
    verdict = "right" if i == j else f"wrong, is {names[i]}"
    pairs.append(
      visualize.MatchedPair(
        support=shown["support"][j],
        query=shown["query"][i],
        support_boxes=boxes,
        query_boxes=boxes,
        support_weights=np.asarray(problem.class_weights[i, j]),
        query_weights=np.asarray(problem.query_weights[i, j]),
        similarity=np.asarray(problem.similarity[i, j]),
        flow=np.asarray(plan.flow[i, j]),
        title=f"{names[j]} ({verdict}), logit {logits[i, j]:.1f}",
      )
    )
  return pairs


def _to_grey_levels(config, pixels):
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


def results_title(head: str) -> str:
  """A head's name for people."""
  return {
    "deepemd": "DeepEMD",
    "deepemd_equal_weights": "DeepEMD, equal weights",
    "prototype": "Prototype (pooled, cosine)",
  }[head]
