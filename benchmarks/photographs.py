"""What matching is worth on photographs, with a frozen encoder.

    python -m deepemd_jax data prepare grocery --from CHECKOUT
    python -m benchmarks.photographs                           # validation
    python -m benchmarks.photographs --split test              # look once
    python -m benchmarks.photographs --smoke                   # small, for CI

All heads see the same nodes in the same episodes. Nodes are as they are, or
centered by the examples of the episode, or by photographs without labels of
classes that are not tested. The fair rival is the prototype of the same nodes.
"""

import argparse
import dataclasses
import tempfile

import jax
import numpy as np

from benchmarks import measuring
from deepemd_jax.checkpoints import pretrained
from deepemd_jax.data.episodes import AmongRows, EpisodeSampler, EpisodeShape
from deepemd_jax.data.sources import open_source
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation.episodes import EpisodeScorer
from deepemd_jax.evaluation.features import DeviceNodes, ImageSetEncoder
from deepemd_jax.evaluation.results import Estimate
from deepemd_jax.inference import centering
from deepemd_jax.models import heads

HEADS = ("deepemd", "deepemd_equal_weights", "chamfer", "prototype")
# Whose photographs may center the nodes of a split.
OTHERS = {"val": ("train",), "test": ("train", "val")}


class Photographs:
  """Images of a data set, encoded by a frozen encoder."""

  def __init__(self, options: argparse.Namespace) -> None:
    trained = pretrained.load(options.backbone)
    settings, variables = trained.settings, trained.encoder.variables
    if options.smoke:
      backbone = measuring.tiny_backbone()
      view = dataclasses.replace(settings.view, size=32)
      settings = dataclasses.replace(settings, backbone=backbone, view=view)
      variables = backbone.init(jax.random.key(0))
    self._data = dataclasses.replace(
      settings.data, name=options.data, directory=options.directory
    )
    self._encode = ImageSetEncoder.of(settings, "benchmark")
    self._variables = sharding.replicate(variables)
    self.heads = settings.heads

  def images(self, split: str):
    """The images of a split."""
    return open_source(self._data, split=split).load(split)

  def nodes(self, images, rows: np.ndarray) -> np.ndarray:
    """[rows, n, c]."""
    return np.asarray(self._encode(self._variables, images, rows).array)


def episodes_of(photographs: Photographs, options: argparse.Namespace):
  """Nodes of the images that episodes use, and {way: the episodes}."""
  images = photographs.images(options.split)
  samplers = {
    way: EpisodeSampler(
      images.labels,
      EpisodeShape(way=way, shot=options.shot, query=options.query),
      class_names=images.class_names,
      seed=options.seed,
      split=options.split,
    )
    for way in options.way
  }
  used = [AmongRows.of(x, options.episodes).rows for x in samplers.values()]
  rows = np.unique(np.concatenate(used))
  nodes = photographs.nodes(images, rows)
  return nodes, {way: AmongRows(x, rows) for way, x in samplers.items()}


def center_of_others(photographs: Photographs, options: argparse.Namespace):
  """The center of some photographs of classes that are not tested."""
  batches, rng = [], np.random.default_rng(options.seed)
  others = OTHERS[options.split]
  for split in others:
    images = photographs.images(split)
    count = min(options.photographs // len(others), len(images.labels))
    rows = np.sort(rng.choice(len(images.labels), count, replace=False))
    batches.append(photographs.nodes(images, rows))
  return centering.Center.of_nodes(batches)


def centered_by_support(scorer: heads.Scorer) -> heads.Scorer:
  """The head, on nodes that are centered by the support images."""

  def score(query, support, key):
    center = centering.Center.of_support(support)
    return scorer(center(query), center(support), key)

  return score


def measure(options: argparse.Namespace) -> list[dict]:
  """Returns a row for each way, centering and head."""
  photographs = Photographs(options)
  nodes, episodes = episodes_of(photographs, options)
  others = center_of_others(photographs, options)
  rows = []
  for way, among in episodes.items():
    for center in ("none", "support", "photographs"):
      settings = photographs.heads
      if center != "none":
        settings = centering.adapt(settings)
      own = others(nodes) if center == "photographs" else nodes
      stored = DeviceNodes(sharding.replicate(own))
      values = {}
      for head in HEADS:
        scorer = heads.bind(head, settings)
        if center == "support":
          scorer = centered_by_support(scorer)
        score = EpisodeScorer(scorer, options.seed)
        values[head] = score(stored, among, options.episodes, 10)
      rows += _rows({"way": way, "center": center}, values)
  return rows


def _rows(facts: dict, values: dict[str, np.ndarray]) -> list[dict]:
  """A row for each head."""
  return [
    facts
    | {
      "head": head,
      "accuracy": dataclasses.asdict(Estimate.of(found)),
      "lead": dataclasses.asdict(Estimate.of(values["deepemd"] - found)),
    }
    for head, found in values.items()
  ]


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", default="grocery", help="a data set")
  parser.add_argument("--directory", default="", help="of prepared data sets")
  parser.add_argument(
    "--backbone",
    default="efficientnet_lite0",
    help="as --checkpoint of classify takes it",
  )
  parser.add_argument("--split", choices=OTHERS, default="val")
  parser.add_argument("--way", type=int, nargs="+", default=[5])
  parser.add_argument("--shot", type=int, default=1)
  parser.add_argument("--query", type=int, default=15)
  parser.add_argument("--episodes", type=int, default=600)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--photographs",
    type=int,
    default=300,
    help="that the nodes are centered by",
  )
  parser.add_argument("--json", help="also write the rows to this file")
  parser.add_argument("--smoke", action="store_true")
  options = parser.parse_args()
  if options.smoke:
    options.data, options.way, options.query = "glyph_clutter", [2], 1
    options.episodes, options.photographs = 1, 2
  return options


def main() -> None:
  """Prints the table."""
  options = _parse()
  with tempfile.TemporaryDirectory() as directory:
    if options.smoke:  # its data set is made, and goes again
      options.directory = directory
    rows = measure(options)
  print(
    f"{options.data}, split {options.split}: {options.shot}-shot, "
    f"{options.query} queries a class, {options.episodes} episodes, seed "
    f"{options.seed}; {options.backbone}\n"
  )
  print(
    f"{'way':>3}  {'centered by':<13}{'head':<28}{'accuracy %':>15}"
    f"{'DeepEMD leads by':>20}"
  )
  for row in rows:
    accuracy, lead = (
      f"{x['mean']:.2f} +- {x['ci95']:.2f}"
      for x in (row["accuracy"], row["lead"])
    )
    title = heads.title(row["head"], options.shot)
    lead = "" if row["head"] == "deepemd" else lead
    print(
      f"{row['way']:>3}  {row['center']:<13}{title:<28}{accuracy:>15}{lead:>20}"
    )
  measuring.write_json(options.json, rows)


if __name__ == "__main__":
  main()
