"""Learns a linear map of nodes through a head, usually the EMD.

The backbone is frozen, so every image is encoded once, and a step takes
milliseconds. A step draws an episode, maps its nodes, matches them, and
propagates the gradient of the exact EMD back into the map.

References:
  Zhang, Cai, Lin, Shen, "DeepEMD", CVPR 2020, section 4.2: meta-training.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepemd_jax.data.episodes import EpisodeSampler, EpisodeShape
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation.episodes import EpisodeScorer
from deepemd_jax.evaluation.features import DeviceNodes
from deepemd_jax.evaluation.results import Estimate
from deepemd_jax.inference.centering import Center
from deepemd_jax.models import heads
from deepemd_jax.models import nodes as node_functions
from deepemd_jax.models.projection import linear
from deepemd_jax.utils.progress import Progress
from deepemd_jax.utils.random_streams import Stream, stream

# {"kernel": [c, channels], "bias": [channels]}
Projection = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The settings for learning a map.

  The defaults were chosen on validation classes of photographs.

  Attributes:
    channels: the number of channels after the map.
    steps: steps of Adam, with one episode each.
    learning_rate: the first learning rate; it falls to 0 as a cosine.
    dropout: share of the channels that an episode leaves out.
    episode: the shape of an episode, if there are enough classes and images.
  """

  channels: int = 512
  steps: int = 300
  learning_rate: float = 1e-3
  dropout: float = 0.2
  episode: EpisodeShape = EpisodeShape(way=10, shot=1, query=5)


_TEST = EpisodeShape(way=5, shot=1, query=15)
_TEST_EPISODES = 200  # in each fold


@dataclasses.dataclass(frozen=True, eq=False)
class Labeled:
  """Encoded images and their classes.

  Attributes:
    nodes: float32 [N, n, c].
    labels: int [N], the class number of each image.
    classes: the names of the classes; each class has two images or more.
  """

  nodes: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]

  def of(self, numbers: np.ndarray) -> "Labeled":
    """Returns the images of some classes; numbers is int [k], ascending."""
    rows = np.isin(self.labels, numbers)
    labels = np.searchsorted(numbers, self.labels[rows])
    names = tuple(self.classes[i] for i in numbers)
    return Labeled(self.nodes[rows], labels, names)

  def sampler(self, shape: EpisodeShape, seed: int, name: str):
    """Makes a sampler of episodes of this shape, or of a smaller one if there
    are too few classes or images."""
    spare = int(np.bincount(self.labels).min()) - shape.shot
    shape = dataclasses.replace(
      shape,
      way=min(shape.way, len(self.classes)),
      query=min(shape.query, spare),
    )
    return EpisodeSampler(
      self.labels, shape, class_names=self.classes, seed=seed, split=name
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The accuracy of maps on classes from which they were not learned.

  Intervals are over classes, so that they hold for other classes.

  Attributes:
    classes: the number of classes.
    folds: the number of parts of the classes; each part was held out once.
    way: the number of classes of an episode.
    before: accuracy without a map, percent.
    after: accuracy with a map, percent.
    gain: the difference on the same episodes, percentage points.
  """

  classes: int
  folds: int
  way: int
  before: Estimate
  after: Estimate
  gain: Estimate

  @property
  def helps(self) -> bool:
    """Whether the whole interval of the gain is above 0."""
    return self.gain.mean > self.gain.ci95

  def __str__(self) -> str:
    before, after = (
      f"{x.mean:.1f} +- {x.ci95:.1f}" for x in (self.before, self.after)
    )
    return (
      f"{self.way}-way 1-shot accuracy on held-out classes (each of the "
      f"{self.classes} classes once, in {self.folds} parts): {before} before, "
      f"{after} after, {self.gain.mean:+.1f} +- {self.gain.ci95:.1f}"
    )


def judge(
  images: Labeled,
  recipe: Recipe,
  head: heads.Scorer,
  seed: int,
  progress: Progress,
) -> Verdict:
  """Tests maps on classes from which they were not learned.

  Classes are divided into three or four parts, and each part is held out once.
  The baseline is the better one of two that learn nothing: the original nodes,
  and nodes centered by the images from which the map was learned.

  Args:
    images: images of at least six classes.
    recipe: settings for learning.
    head: the head through which the map is learned and judged.
    seed: seed of all random choices.
    progress: shows the progress.
  """
  count = len(images.classes)
  folds = 3 if count < 20 else 4
  way = min(_TEST.way, count // folds)
  order = stream(seed, Stream.CLASS_SPLIT).permutation(count)
  scorer = EpisodeScorer(head, seed)
  found = []  # for each fold, the accuracy of each class in three ways
  for k in range(folds):
    held_out = images.of(np.sort(order[k::folds]))
    rest = images.of(np.sort(np.delete(order, np.s_[k::folds])))
    learned = learn(rest, recipe, head, seed, progress)
    ways = (
      held_out.nodes,
      Center.of_nodes([rest.nodes])(held_out.nodes),
      mapped(held_out.nodes, learned),
    )
    sampler = held_out.sampler(
      dataclasses.replace(_TEST, way=way), seed, f"fold {k}"
    )
    found.append([_by_class(scorer, x, sampler, progress) for x in ways])
  plain, centered, after = np.concatenate(found, 1)
  before = max(plain, centered, key=np.mean)
  estimates = (Estimate.of(x) for x in (before, after, after - before))
  return Verdict(count, folds, way, *estimates)


def _by_class(scorer, nodes, sampler, progress) -> np.ndarray:
  """Returns the accuracy of each class's queries, percent, [classes]."""
  right = scorer.right(
    DeviceNodes(sharding.replicate(nodes)),
    sampler,
    _TEST_EPISODES,
    10,
    lambda done: progress("episodes", done, _TEST_EPISODES),
  ).mean(2)
  drawn = np.stack([sampler(i).classes for i in range(_TEST_EPISODES)])
  return np.array(
    [100 * right[drawn == k].mean() for k in range(drawn.max() + 1)]
  )


def learn(
  images: Labeled,
  recipe: Recipe,
  head: heads.Scorer,
  seed: int,
  progress: Progress,
) -> Projection:
  """Learns a map, starting from the principal components of the nodes.

  Args:
    images: the images to learn from.
    recipe: settings for learning.
    head: the head whose logits are trained.
    seed: seed of the episodes and of the channels that they leave out.
    progress: shows the progress.

  Returns:
    The map of the original nodes, kernel [c, channels] and bias [channels]. Its
    results must be scaled to length 1.
  """
  center = Center.of_nodes([images.nodes])
  # With scaled nodes, a step is equally large for all channels.
  nodes = center.scaled(images.nodes)
  projection = principal_components(nodes, recipe.channels)
  nodes = jnp.asarray(nodes)
  sampler = images.sampler(recipe.episode, seed, "train")
  state = _optimizer(recipe).init(projection)
  rng = stream(seed, Stream.ADAPT_CHANNELS)
  loss = None
  for number in range(recipe.steps):
    if loss is not None:  # the loss of the step before
      progress("steps", number, recipe.steps, loss=float(loss))
    kept = rng.random(nodes.shape[-1]) >= recipe.dropout
    own = sampler(number)
    projection, state, loss = _step(
      *(projection, state, nodes[own.support], nodes[own.query], kept),
      recipe=recipe,
      head=head,
    )
  kernel = np.asarray(projection["kernel"]) / center.spread[:, None]
  bias = np.asarray(projection["bias"]) - center.mean @ kernel
  return {"kernel": kernel, "bias": bias}


def mapped(nodes, projection: Projection):
  """Maps nodes [..., c] and scales them to length 1, as the heads need them."""
  return node_functions.unit(linear(nodes, projection))


def principal_components(nodes: np.ndarray, channels: int) -> Projection:
  """Returns the map onto the principal components of nodes [N, n, c], which are
  scaled to length 1 first, but not centered."""
  flat = nodes.reshape(-1, nodes.shape[-1])
  flat = flat / (np.linalg.norm(flat, axis=-1, keepdims=True) + 1e-12)
  _, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
  kernel = vectors[:, ::-1][:, :channels].astype(np.float32)
  return {"kernel": kernel, "bias": np.zeros(kernel.shape[1], np.float32)}


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
  rate = optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps)
  return optax.adam(rate)


@functools.partial(jax.jit, static_argnames=("recipe", "head"))
def _step(projection, state, support, query, kept, *, recipe, head):
  scale = kept / (1 - recipe.dropout)
  support, query = support * scale, query * scale

  def loss(projection):
    return _loss(projection, support, query, head)

  value, gradient = jax.value_and_grad(loss)(projection)
  updates, state = _optimizer(recipe).update(gradient, state, projection)
  return optax.apply_updates(projection, updates), state, value


def _loss(projection, support, query, head):
  """Computes the cross-entropy of an episode with support nodes [way, shot, n,
  c] and query nodes [way, q, n, c]."""
  way, count = query.shape[:2]
  support, query = (mapped(x, projection) for x in (support, query))
  queries = query.reshape(way * count, *query.shape[2:])
  logits = head(queries, support, jax.random.key(0))
  labels = jnp.repeat(jnp.arange(way), count)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
