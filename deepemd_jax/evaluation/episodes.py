"""Accuracies of heads on few-shot episodes, and validation during training.

Every image is encoded once, and an episode only selects rows of the nodes. All
heads see identical episodes, so their differences are paired.
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
  """Returns the sampler of a split's episodes, the same for all heads and runs.

  Args:
    settings: the run's settings. The split "test" has test episodes, and
      other splits have training episodes.
    images: the images of the split.
    split: the name of the split.
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
  """The accuracy of a head on episodes, compiled once for all image sets."""

  def __init__(self, head: heads.Scorer, seed: int) -> None:
    """Makes a scorer.

    Args:
      head: the result of `heads.bind`.
      seed: seeds the random draws of a head, with the episode's number.
    """
    self._head = head
    self._seed = seed
    self._score = on_nodes(jax.vmap(self._right), replicate=True)

  def _right(self, query_nodes, support_nodes, number):
    """Returns which queries of an episode are correct, bool [way, n_query]."""
    way, n_query = query_nodes.shape[:2]
    key = random_key(self._seed, Stream.SFC_ORDER, number)
    queries = query_nodes.reshape(way * n_query, *query_nodes.shape[2:])
    logits = self._head(queries, support_nodes, key)
    predicted = logits.argmax(-1).reshape(way, n_query)
    return predicted == jnp.arange(way)[:, None]

  def __call__(self, *arguments, **options) -> np.ndarray:
    """Returns the accuracies of episodes in percent, float32 [count].

    Args:
      *arguments: positional arguments of `right`.
      **options: keyword arguments of `right`.
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
    """Returns which queries of the episodes 0..count-1 are correct.

    The devices share the work. An episode's result depends neither on its batch
    nor on the number of devices.

    Args:
      nodes: the nodes of the images.
      sampler: the sampler of the episodes.
      count: number of episodes.
      batch_size: number of episodes in one device call.
      progress: called with the number of episodes done, before each call.

    Returns:
      bool [count, way, n_query].
    """
    results = []
    batch_size = sharding.pad_to_devices(batch_size)
    for start in range(0, count, batch_size):
      progress(start)
      # The last batch repeats early episodes, so that all batches have one
      # shape and there is one compilation.
      numbers = (start + sharding.local_indices(batch_size)) % count
      numbers = numbers.astype(np.int32)
      own = batch(sampler, map(int, numbers))
      rows = own.query, own.support
      right = self._score(nodes, rows, (numbers,), numbers)
      results.append(np.asarray(right))
    return np.concatenate(results)[:count]


class Validator:
  """A test of an encoder on validation episodes, during or after training."""

  def __init__(
    self, settings: Settings, images: ImageSet, count: int, stage: str
  ) -> None:
    """Makes a validator.

    Args:
      settings: the run's settings.
      images: the images of the validation split.
      count: number of episodes.
      stage: the name of the stage, for the message if a signal stops it.
    """
    self._images, self._count = images, count
    self._batch_size = settings.evaluate.batch_size
    self._encode = ImageSetEncoder.of(settings, stage)
    # A small number of episodes uses only some of the images.
    self._sampler = AmongRows.of(
      episode_sampler(settings, images, "val"), count
    )
    self._scorers = {
      name: EpisodeScorer(heads.bind(head, settings.heads), settings.seed)
      # Validation with the structured FC layer would take longer than training.
      for name, head in (
        ("accuracy", "deepemd_mean"),
        ("prototype", "prototype"),
      )
    }

  def __call__(self, variables) -> dict[str, float]:
    """Returns mean accuracies in percent.

    "accuracy" is that of DeepEMD without a structured FC layer, and "prototype"
    is that of pooled prototypes.

    Args:
      variables: the backbone's variables, on every device.

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
