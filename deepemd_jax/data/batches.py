"""Makes training batches: step number -> arrays of one step.

A batch is a pure function of the step. So a resumed run, a run with another
number of processes and a worker process see the same data. All classes are
picklable.
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
  """The rows of each step, int32 [batch_size], reshuffled in every epoch.

  Rows that do not fill a batch are omitted in that epoch.

  Attributes:
    count: number of rows.
    batch_size: number of rows per step.
    seed: seed of the shuffles.

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
    """The number of batches in an epoch."""
    return self.count // self.batch_size

  def __call__(self, step: int) -> np.ndarray:
    """Returns the rows of a step, which is counted from 0 over all epochs."""
    epoch, index = divmod(step, self.steps_per_epoch)
    start = index * self.batch_size
    order = _permutation(self.count, self.seed, epoch)
    return order[start : start + self.batch_size].astype(np.int32)


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the order of an epoch; two are cached, for repeated calls."""
  return stream(seed, Stream.SHUFFLE, epoch).permutation(count)


@dataclasses.dataclass(frozen=True)
class ImageBatches:
  """Pre-training batches, with views of images and their labels.

  Attributes:
    rows: the rows of each step.
    views: draws the views of the images.
    seed: seed of the crops.
    local: int [n], the positions in a batch that this process makes.
  """

  rows: ShuffledRows
  views: TrainingViews
  seed: int
  local: np.ndarray

  def __call__(self, step: int) -> dict:
    """Returns {"views": of `TrainingViews`, "labels": int32 [n]} of a step."""
    rows = self.rows(step)
    rng = stream(self.seed, Stream.PRETRAIN_CROPS, step)
    return {
      "views": self.views(rng, rows, self.local),
      "labels": self.views.images.labels[rows[self.local]],
    }


@dataclasses.dataclass(frozen=True)
class EpisodeBatches:
  """Meta-training batches, with views of the images of one or more episodes.

  Attributes:
    sampler: draws the episodes.
    views: draws the views of the images.
    batch_size: number of episodes per step.
    seed: seed of the crops.
    local: int [e], the episodes of a step that this process makes.
  """

  sampler: episodes.EpisodeSampler
  views: TrainingViews
  batch_size: int
  seed: int
  local: np.ndarray

  def __call__(self, step: int) -> dict:
    """Returns the views of a step.

    The result is {"support": views [e, way, shot, ...], "query": views
    [e, way, n_query, ...]}; see `TrainingViews`.
    """
    first = step * self.batch_size
    batch = episodes.batch(self.sampler, range(first, first + self.batch_size))
    rng = stream(self.seed, Stream.METATRAIN_CROPS, step)
    return {
      "support": self.views(rng, batch.support, self.local),
      "query": self.views(rng, batch.query, self.local),
    }
