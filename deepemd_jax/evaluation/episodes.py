"""Accuracies of heads on few-shot episodes, and the validation of training.

Every image is encoded once; an episode is then only a choice of rows. All heads
see identical episodes, so their differences are paired.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from deepemd_jax.config.settings import Settings
from deepemd_jax.data.episodes import (
  AmongRows,
  Episode,
  EpisodeSampler,
  batch,
)
from deepemd_jax.data.image_set import ImageSet
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation.features import ImageSetEncoder, Nodes, on_nodes
from deepemd_jax.models import heads
from deepemd_jax.utils.random_streams import Stream, random_key


def episode_sampler(
  settings: Settings, images: ImageSet, split: str
) -> EpisodeSampler:
  """The episodes of a split, those that every head and every run is judged on.

  Args:
    settings: of the run: test episodes for the split test, else those of
      training.
    images: of the split.
    split: its name.
  """
  testing = split == "test"
  shape = settings.episode if testing else settings.training_episode
  return EpisodeSampler(
    images.labels,
    shape,
    class_names=images.class_names,
    seed=settings.seed,
    split=split,
  )


class EpisodeScorer:
  """The accuracy of a head on episodes; compiles once, however many sets of
  images it looks at."""

  def __init__(self, head: heads.Scorer, seed: int) -> None:
    """Makes a scorer.

    Args:
      head: see `heads.bind`.
      seed: what is random in a head follows from it and the episode's number.
    """
    self._head = head
    self._seed = seed
    self._score = on_nodes(jax.vmap(self._right), replicate=True)

  def _right(self, query_nodes, support_nodes, number):
    """Which of one episode's queries get their class, [way, n_query]."""
    way, n_query = query_nodes.shape[:2]
    key = random_key(self._seed, Stream.SFC_ORDER, number)
    queries = query_nodes.reshape(way * n_query, *query_nodes.shape[2:])
    logits = self._head(queries, support_nodes, key)
    predicted = logits.argmax(-1).reshape(way, n_query)
    return predicted == jnp.arange(way)[:, None]

  def __call__(self, *arguments, **options) -> np.ndarray:
    """Accuracies of episodes, percent: float32 [count].

    Args:
      *arguments: as `right` takes them.
      **options: the same.
    """
    right = self.right(*arguments, **options)
    return 100 * right.mean((1, 2), dtype=np.float32)

  def right(
    self,
    nodes: Nodes,
    sampler: Callable[[int], Episode],
    count: int,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
  ) -> np.ndarray:
    """Which queries of the episodes 0..count-1 get their class.

    An episode's result does not depend on the batch that it is in, nor on the
    number of devices, which share the work.

    Args:
      nodes: of the images.
      sampler: of the episodes.
      count: of the episodes.
      batch_size: episodes in one device call.
      progress: called with the number of episodes done, before each call.

    Returns:
      bool [count, way, n_query].
    """
    results = []
    batch_size = sharding.pad_to_devices(batch_size)
    for start in range(0, count, batch_size):
      progress(start)
      # The last batch repeats early episodes, so that one shape compiles once.
      numbers = (start + sharding.local_indices(batch_size)) % count
      numbers = numbers.astype(np.int32)
      own = batch(sampler, map(int, numbers))
      rows = own.query, own.support
      right = self._score(nodes, rows, (numbers,), numbers)
      results.append(np.asarray(right))
    return np.concatenate(results)[:count]


class Validator:
  """Judges an encoder by validation episodes, while it is trained and after."""

  def __init__(
    self, settings: Settings, images: ImageSet, count: int, stage: str
  ) -> None:
    """Makes a validator.

    Args:
      settings: of the run.
      images: of the validation split.
      count: of episodes.
      stage: the name of the work that a signal stops.
    """
    self._images, self._count = images, count
    self._batch_size = settings.evaluate.batch_size
    self._encode = ImageSetEncoder.of(settings, stage)
    # Few episodes use but some of the images.
    self._sampler = AmongRows.of(
      episode_sampler(settings, images, "val"), count
    )
    self._scorers = {
      name: EpisodeScorer(heads.bind(head, settings.heads), settings.seed)
      # The structured FC layer would take longer than the training.
      for name, head in (
        ("accuracy", "deepemd_mean"),
        ("prototype", "prototype"),
      )
    }

  def __call__(self, variables) -> dict[str, float]:
    """Mean percent right of DeepEMD ("accuracy") and of pooled "prototype".

    Args:
      variables: of the backbone, on every device.

    Raises:
      StopRequested: a signal asked to stop.
    """
    nodes = self._encode(variables, self._images, self._sampler.rows)
    return {
      name: float(np.mean(self._accuracies(score, nodes)))
      for name, score in self._scorers.items()
    }

  def _accuracies(self, score: EpisodeScorer, nodes: Nodes) -> np.ndarray:
    return score(
      nodes,
      self._sampler,
      self._count,
      self._batch_size,
      lambda done: self._encode.check_stop(),
    )
