"""Few-shot episodes: which images play support and query. Pure NumPy.

Episode i is a pure function of (seed, split, i): it can be drawn in any order,
by any process, again after a restart, and for two methods alike.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from deepemd_jax.errors import InputError
from deepemd_jax.utils.random_streams import Stream, stream


@dataclasses.dataclass(frozen=True)
class Episode:
  """Rows of an image set; the first axis is the class.

  Attributes:
    support: int32 [way, shot].
    query: int32 [way, n_query]; shares no row with support.
    classes: int32 [way], labels of the classes.

  A batch of episodes has one more axis in front of each.
  """

  support: np.ndarray
  query: np.ndarray
  classes: np.ndarray


@dataclasses.dataclass(frozen=True)
class EpisodeShape:
  """How many of what an episode has.

  Attributes:
    way: classes.
    shot: support images a class.
    query: query images a class.
  """

  way: int = 5
  shot: int = 1
  query: int = 15


def check_feasible(
  counts: Mapping[str, int], shape: EpisodeShape, *, split: str
) -> None:
  """Refuses episodes that the classes cannot fill.

  Args:
    counts: images by class name.
    shape: of the episodes.
    split: for the message.

  Raises:
    InputError: it names what there is and what is needed.
  """
  if len(counts) < shape.way:
    raise InputError(
      f"{shape.way}-way episodes need {shape.way} classes, but split {split!r} "
      f"has {len(counts)}; lower config.episode.way, or add classes"
    )
  name = min(counts, key=counts.__getitem__)
  if counts[name] < shape.shot + shape.query:
    raise InputError(
      f"class {name!r} of split {split!r} has {counts[name]} images, but an "
      f"episode needs {shape.shot + shape.query} ({shape.shot} support and "
      f"{shape.query} query); lower "
      f"config.episode.shot or config.episode.query, or add images"
    )


class EpisodeSampler:
  """Draws episodes: `sampler(i) -> Episode`.

  Attributes:
    shape: of the episodes.
  """

  def __init__(
    self,
    labels: np.ndarray,
    shape: EpisodeShape,
    *,
    class_names: Sequence[str],
    seed: int,
    split: str,
  ) -> None:
    """Checks feasibility.

    Args:
      labels: int [N], the class of each row, indexing `class_names`.
      shape: of the episodes.
      class_names: for messages.
      seed: of all episodes.
      split: part of what an episode is a function of.

    Raises:
      InputError: see `check_feasible`.
    """
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=len(class_names))
    named = dict(zip(class_names, counts.tolist(), strict=True))
    check_feasible(named, shape, split=split)
    self._rows = np.split(order.astype(np.int32), np.cumsum(counts)[:-1])
    self.shape = shape
    self._seed, self._split = seed, zlib.crc32(split.encode())

  def __call__(self, index: int) -> Episode:
    """Episode `index` >= 0."""
    way, shot, query = dataclasses.astuple(self.shape)
    rng = stream(self._seed, Stream.EPISODE, self._split, index)
    classes = rng.choice(len(self._rows), way, replace=False)
    rows = np.stack(
      [rng.choice(self._rows[c], shot + query, replace=False) for c in classes]
    )
    return Episode(rows[:, :shot], rows[:, shot:], classes.astype(np.int32))


@dataclasses.dataclass(frozen=True, eq=False)
class AmongRows:
  """The first episodes of a sampler, of an image set that has nothing but the
  rows which they use.

  Attributes:
    sampler: the sampler.
    rows: int32 [k], the rows of the whole image set, ascending. An episode has
      places in this list.
  """

  sampler: EpisodeSampler
  rows: np.ndarray

  @classmethod
  def of(cls, sampler: EpisodeSampler, count: int) -> "AmongRows":
    """Of the episodes 0..count-1."""
    used = [sampler(i) for i in range(count)]
    parts = [part.ravel() for x in used for part in (x.support, x.query)]
    return cls(sampler, np.unique(np.concatenate(parts)))

  def __call__(self, index: int) -> Episode:
    """Episode `index`, one of the first `count`."""
    episode = self.sampler(index)
    support, query = (
      np.searchsorted(self.rows, part).astype(np.int32)
      for part in (episode.support, episode.query)
    )
    return dataclasses.replace(episode, support=support, query=query)


def batch(sampler: Callable[[int], Episode], indices: Iterable[int]) -> Episode:
  """Several episodes, stacked: [e, way, shot] and so on."""
  sampled = [sampler(i) for i in indices]
  return Episode(
    *(
      np.stack([getattr(episode, field.name) for episode in sampled])
      for field in dataclasses.fields(Episode)
    )
  )
