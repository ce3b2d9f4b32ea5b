"""Measures the gain of matching on photographs, by frozen or adapted encoders.

    git clone https://github.com/marcusklasson/GroceryStoreDataset
    python -m benchmarks.photographs GroceryStoreDataset       # validation
    python -m benchmarks.photographs GroceryStoreDataset --split test
    python -m benchmarks.photographs --smoke                   # small, for CI

All heads see the same nodes in the same episodes. The fair baseline is the
prototype of the same nodes. Nodes are unchanged, or centered by the examples of
the episode, or centered by photographs without labels of classes that are not
tested. With `--checkpoint RUN`, they come from an adapted encoder, which has
learned through the EMD. With `--learn`, each head learns its own map as `adapt`
does, from photographs with labels of classes that are not tested.

There are two intervals. The interval over episodes shows the accuracy of the
measurement for these classes. The interval over classes shows the uncertainty
for other classes.
"""

import argparse
import dataclasses
import functools
import pathlib
import tempfile

import jax
import numpy as np

from benchmarks import grocery, measuring
from deepemd_jax.checkpoints import pretrained
from deepemd_jax.data.episodes import Episode
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation.episodes import EpisodeScorer
from deepemd_jax.evaluation.features import DeviceNodes
from deepemd_jax.evaluation.results import Estimate
from deepemd_jax.inference import centering, feature_cache, image_encoder
from deepemd_jax.models import heads
from deepemd_jax.training import projection
from deepemd_jax.utils.progress import Progress
from deepemd_jax.utils.random_streams import Stream, stream

HEADS = (
  *("deepemd", "deepemd_pooled", "deepemd_equal_weights"),
  *("chamfer", "prototype"),
  "logistic_regression",  # only with several shots
)
CENTERS = ("none", "support", "photographs")
_BATCH = 10  # episodes in one device call


class Encoder:
  """An encoder of images into nodes, from a checkpoint.

  For an adapted checkpoint, the original encoder encodes the images, and the
  nodes are mapped afterwards. The result is the same, and the cache serves both
  checkpoints.
  """

  def __init__(self, options: argparse.Namespace) -> None:
    trained = pretrained.load(options.checkpoint)
    self.heads = trained.settings.heads
    self._map = None
    if trained.settings.model.get("projection"):
      self._map = trained.encoder.variables["params"]["projection"]
      trained = pretrained.load(trained.settings.model["backbone"])
    settings = trained.settings
    if options.smoke:
      tiny = measuring.tiny_backbone()
      variables = tiny.init(jax.random.key(0))
      view = dataclasses.replace(settings.view, size=32)
      settings = dataclasses.replace(settings, backbone=tiny, view=view)
      encoder = dataclasses.replace(trained.encoder, variables=variables)
      trained = dataclasses.replace(trained, settings=settings, encoder=encoder)
    cache = options.cache and feature_cache.Cache(options.cache)
    self._encoder = image_encoder.ImageEncoder(trained, settings.view, cache)

  def __call__(self, images) -> np.ndarray:
    """Returns the nodes of images, [N, n, c]."""
    bad: dict[int, str] = {}
    with Progress() as progress:
      batches = self._encoder.batches(
        images,
        bad,
        lambda done: progress("images encoded", done, len(images)),
      )
      nodes = [encoded.nodes for _, encoded in batches]
    image_encoder.refuse(images, bad)
    found = np.concatenate(nodes)
    if self._map is None:
      return found
    return np.asarray(projection.mapped(found, self._map))


@dataclasses.dataclass(frozen=True, eq=False)
class Pools:
  """The images from which the support and queries of an episode are drawn.

  Attributes:
    nodes: [N, n, c], the nodes of all images.
    support: for each class, the rows of its support images.
    query: for each class, the rows of its queries.
    origin: int [N], the photograph of each row; an episode has none twice.
    queries: number of queries per class in an episode.
  """

  nodes: np.ndarray
  support: list[np.ndarray]
  query: list[np.ndarray]
  origin: np.ndarray
  queries: int

  def sampler(self, options: argparse.Namespace, way: int):
    """Returns a function from the number of an episode to its rows."""

    def sample(number: int) -> Episode:
      rng = stream(options.seed, Stream.EPISODE, way, number)
      classes = rng.permutation(len(self.support))[:way]
      support, query = [], []
      for k in classes:
        rows = rng.permutation(self.support[k])[: options.shot]
        taken = np.isin(self.origin[self.query[k]], self.origin[rows])
        support.append(rows)
        query.append(rng.permutation(self.query[k][~taken])[: self.queries])
      return Episode(np.stack(support), np.stack(query), classes)

    return sample


def pools_of(protocol: str, tested, others, encode, options) -> Pools:
  """Encodes the images of a protocol, with clutter from the other classes."""
  images, support, query, origin = grocery.arrange(
    protocol, tested, others, options.seed, options.composed
  )
  fewest = min(len(rows) for rows in query) - options.shot
  queries = min(options.query, fewest)
  return Pools(encode(images), support, query, origin, queries)


def centered_by_support(head: heads.Scorer) -> heads.Scorer:
  """Returns the head on nodes that are centered by the support images."""

  def score(query, support, key):
    center = centering.Center.of_support(support)
    return head(center(query), center(support), key)

  return score


@functools.cache
def _scorer(name: str, settings: heads.HeadSettings, by_support: bool, seed):
  head = heads.bind(name, settings)
  return EpisodeScorer(centered_by_support(head) if by_support else head, seed)


def scores(pools: Pools, way: int, settings, change, by_support, options):
  """Returns the accuracies of all heads.

  `change` is {head: function that is applied to the nodes}. The result is
  {head: percent correct for each class, [episodes, way]}, and the classes, int
  [episodes, way].
  """
  count, sampler = options.episodes, pools.sampler(options, way)
  found = {}
  with Progress() as progress:
    for name in options.heads:
      score = _scorer(name, settings, by_support, options.seed)
      right = score.right(
        DeviceNodes(sharding.replicate(change[name](pools.nodes))),
        sampler,
        count,
        _BATCH,
        lambda done, name=name: progress(f"{way}-way {name}", done, count),
      )
      found[name] = 100 * right.mean(2)
  return found, np.stack([sampler(i).classes for i in range(count)])


def over_classes(values: np.ndarray, classes: np.ndarray) -> Estimate:
  """Estimates the mean over classes, with the classes as the sample."""
  return Estimate.of(
    np.array([values[classes == k].mean() for k in np.unique(classes)])
  )


def measure(options: argparse.Namespace) -> list[dict]:
  """Returns a row for each protocol, way, centering and head."""
  encode = Encoder(options)
  of_split = grocery.classes(options.folder)
  tested = of_split[options.split]
  # The photographs for centers, maps and clutter are of classes that are not
  # tested.
  names = ("train",) if options.split == "val" else ("train", "val")
  others = [x for name in names for x in of_split[name]]
  changes = _changes(others, encode, options)
  rows = []
  for protocol in options.protocol:
    pools = pools_of(protocol, tested, others, encode, options)
    for way in options.way:
      for how, change in changes.items():
        settings, by_support = encode.heads, how == "support"
        if how != "none":
          settings = centering.adapt(settings)
        values, classes = scores(
          pools, way, settings, change, by_support, options
        )
        facts = {"protocol": protocol, "way": way, "center": how}
        rows += _rows(facts, values, classes, options.own)
  return rows


def _changes(others, encode, options) -> dict[str, dict]:
  """Returns {name of a treatment: {head: function of nodes}}."""
  same = dict.fromkeys(options.heads, lambda nodes: nodes)
  changes = {how: same for how in options.center}
  paths = [path for own in others for path in own.photographs]
  if "photographs" in options.center:
    rng = stream(options.seed, Stream.QUERIES)
    chosen = rng.permutation(len(paths))[: options.photographs]
    nodes = encode([paths[i] for i in np.sort(chosen)])
    center = centering.Center.of_nodes([nodes])
    changes["photographs"] = dict.fromkeys(options.heads, center)
  if options.learn:
    counts = [len(own.photographs) for own in others]
    labels = np.repeat(np.arange(len(others)), counts)
    names = tuple(own.name for own in others)
    images = projection.Labeled(encode(paths), labels, names)
    changes["learned"] = _learned(images, encode.heads, options)
  return changes


def _learned(images: projection.Labeled, settings, options) -> dict:
  """Learns a map for each head; returns {head: function of nodes}."""
  recipe, maps = projection.Recipe(), {}
  if options.smoke:
    recipe = projection.Recipe(channels=8, steps=1)
  with Progress() as progress:
    for name in options.heads:
      head = heads.bind(name, settings)
      learned = projection.learn(images, recipe, head, options.seed, progress)
      maps[name] = functools.partial(projection.mapped, projection=learned)
  return maps


def _rows(facts: dict, values: dict, classes, own: str) -> list[dict]:
  """Returns a row for each head, with the lead of `own` over it."""
  rows = []
  for head, found in values.items():
    lead = values[own] - found
    estimates = {
      "accuracy": Estimate.of(found.mean(1)),
      "lead": Estimate.of(lead.mean(1)),
      "lead_over_classes": over_classes(lead, classes),
    }
    numbers = {k: dataclasses.asdict(x) for k, x in estimates.items()}
    rows.append(facts | {"head": head} | numbers)
  return rows


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", nargs="?", help="GroceryStoreDataset")
  parser.add_argument(
    "--checkpoint", default="efficientnet_lite0", help="as classify takes it"
  )
  parser.add_argument("--split", choices=("val", "test"), default="val")
  parser.add_argument(
    "--protocol", nargs="+", choices=grocery.PROTOCOLS, default=["any"]
  )
  parser.add_argument("--center", nargs="+", choices=CENTERS, default=CENTERS)
  parser.add_argument(
    "--learn", action="store_true", help="also a map for each head"
  )
  parser.add_argument(
    "--own", choices=HEADS, default="deepemd", help="the head that may lead"
  )
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
  parser.add_argument(
    "--composed", type=int, default=20, help="cluttered queries of a class"
  )
  parser.add_argument("--cache", help="folder for encodings")
  parser.add_argument("--json", help="also write the rows to this file")
  parser.add_argument("--smoke", action="store_true")
  options = parser.parse_args()
  options.heads = HEADS if options.shot > 1 else HEADS[:-1]
  if options.smoke:
    options.heads, options.learn = ("deepemd", "prototype"), True
    options.way, options.query, options.episodes = [2], 1, 1
    options.photographs, options.composed = 2, 2
    options.protocol, options.center = ["half"], ["photographs"]
  elif options.folder is None:
    parser.error("give the folder of GroceryStoreDataset")
  return options


def main() -> None:
  """Prints the table in Markdown."""
  options = _parse()
  with tempfile.TemporaryDirectory() as directory:
    if options.smoke:
      options.folder = grocery.paint(pathlib.Path(directory))
    rows = measure(options)
  print(
    f"grocery, split {options.split}: {options.shot}-shot, at most "
    f"{options.query} queries a class, {options.episodes} episodes, seed "
    f"{options.seed}; {options.checkpoint}\n"
  )
  columns = (
    *("protocol", "way", "centered by", "head", "accuracy"),
    *(f"{heads.title(options.own)} leads by", "over classes"),
  )
  print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
  for row in rows:
    accuracy, *leads = (
      f"{row[name]['mean']:{sign}.2f} ± {row[name]['ci95']:.2f}"
      for name, sign in (
        *(("accuracy", ""), ("lead", "+")),
        ("lead_over_classes", "+"),
      )
    )
    if row["head"] == options.own:
      leads = ["", ""]
    title = heads.title(row["head"], options.shot)
    cells = (row["protocol"], str(row["way"]), row["center"], title)
    print(f"| {' | '.join((*cells, accuracy, *leads))} |")
  measuring.write_json(options.json, rows)


if __name__ == "__main__":
  main()
