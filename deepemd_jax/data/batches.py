"""Where training batches are made: step number -> arrays of one step.

Batches are pure functions of the step, so that a resumed run, another number of
processes, or a worker process sees the same data. All are picklable.
"""

import dataclasses
import functools

import numpy as np

from deepemd_jax.data import episodes
from deepemd_jax.data.views import TrainingViews
from deepemd_jax.errors import InputError
from deepemd_jax.utils.random_streams import Stream, stream


@dataclasses.dataclass(frozen=True)
class ShuffledRows:
  """`rows(step)`: int32 [batch_size], shuffled anew in every epoch.

  The rows that do not fill a batch are left out of that epoch.

  Attributes:
    count: rows there are.
    batch_size: rows a step.
    seed: of the shuffles.

  Raises:
    InputError: there are fewer rows than a batch needs.
  """

  count: int
  batch_size: int
  seed: int

  def __post_init__(self):
    if self.count < self.batch_size:
      raise InputError(
        f"a batch takes {self.batch_size} images, but there are {self.count}; "
        f"lower config.pretrain.batch_size to {self.count} or less"
      )

  @property
  def steps_per_epoch(self) -> int:
    """Batches in an epoch."""
    return self.count // self.batch_size

  def __call__(self, step: int) -> np.ndarray:
    """The rows of step `step`, counted from 0 over all epochs."""
    epoch, index = divmod(step, self.steps_per_epoch)
    start = index * self.batch_size
    order = _permutation(self.count, self.seed, epoch)
    return order[start : start + self.batch_size].astype(np.int32)


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
  """Of one epoch; this and the next are asked for again and again."""
  return stream(seed, Stream.SHUFFLE, epoch).permutation(count)


@dataclasses.dataclass(frozen=True)
class ImageBatches:
  """Pre-training batches: views of images, and their labels.

  Attributes:
    rows: which images a step has.
    views: of the images.
    seed: of the crops.
    local: int [n], which of a batch this process makes.
  """

  rows: ShuffledRows
  views: TrainingViews
  seed: int
  local: np.ndarray

  def __call__(self, step: int) -> dict:
    """{"views": see `TrainingViews`, "labels": int [n]} of a step."""
    rows = self.rows(step)
    rng = stream(self.seed, Stream.PRETRAIN_CROPS, step)
    return {
      "views": self.views(rng, rows, self.local),
      "labels": self.views.images.labels[rows[self.local]],
    }


@dataclasses.dataclass(frozen=True)
class EpisodeBatches:
  """Meta-training batches: views of the images of one or more episodes.

  Attributes:
    sampler: of the episodes.
    views: of the images.
    batch_size: episodes a step.
    seed: of the crops.
    local: int [e], which of a step's episodes this process makes.
  """

  sampler: episodes.EpisodeSampler
  views: TrainingViews
  batch_size: int
  seed: int
  local: np.ndarray

  def __call__(self, step: int) -> dict:
    """{"support": views [e, way, shot, ...], "query": views [e, way, n_query,
    ...]} of a step."""
    first = step * self.batch_size
    batch = episodes.batch(self.sampler, range(first, first + self.batch_size))
    rng = stream(self.seed, Stream.METATRAIN_CROPS, step)
    return {
      "support": self.views(rng, batch.support, self.local),
      "query": self.views(rng, batch.query, self.local),
    }
