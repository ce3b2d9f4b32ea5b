"""Draws few-shot episodes, their support and query images, in pure NumPy.

Episode i is a pure function of (seed, split, i). So episodes are the same in
any order, in any process, after a restart, and for all methods.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from deepemd_jax.errors import InputError
from deepemd_jax.utils.random_streams import Stream, stream


@dataclasses.dataclass(frozen=True)
class Episode:
  """The rows of one episode in an image set.

  A batch of episodes has one more axis in front of each array.

  Attributes:
    support: int32 [way, shot], the rows of the support images.
    query: int32 [way, n_query], the rows of the query images, none of which is
      in `support`.
    classes: int32 [way], the labels of the classes.
  """

  support: np.ndarray
  query: np.ndarray
  classes: np.ndarray


@dataclasses.dataclass(frozen=True)
class EpisodeShape:
  """The size of an episode.

  Attributes:
    way: number of classes.
    shot: number of support images per class.
    query: number of query images per class.
  """

  way: int = 5
  shot: int = 1
  query: int = 15


def check_feasible(
  counts: Mapping[str, int], shape: EpisodeShape, *, split: str
) -> None:
  """Checks that a split has enough classes and images for its episodes.

  Args:
    counts: {class name: number of images}.
    shape: the size of the episodes.
    split: the name of the split, for the message.

  Raises:
    InputError: there are too few; the message gives both numbers.
  """
  section, or_else = "config.episode", ""
  if split != "test":
    section, or_else = "config.metatrain", " (or of config.episode if it is 0)"
  if len(counts) < shape.way:
    raise InputError(
      f"{shape.way}-way episodes need {shape.way} classes, but split {split!r} "
      f"has {len(counts)}; lower {section}.way{or_else}, or add classes"
    )
  name = min(counts, key=counts.__getitem__)
  if counts[name] < shape.shot + shape.query:
    raise InputError(
      f"class {name!r} of split {split!r} has {counts[name]} images, but an "
      f"episode needs {shape.shot + shape.query} ({shape.shot} support and "
      f"{shape.query} query); lower {section}.shot or {section}.query"
      f"{or_else}, or add images"
    )


class EpisodeSampler:
  """A sampler of episodes: `sampler(i) -> Episode`.

  Attributes:
    shape: the size of the episodes.
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
    """Checks that the classes suffice, and sorts the rows by class.

    Args:
      labels: int [N], the class of each row, an index into `class_names`.
      shape: the size of the episodes.
      class_names: the names of the classes, for messages.
      seed: seed of all episodes.
      split: the name of the split; episodes depend on it.

    Raises:
      InputError: `check_feasible` refuses the episodes.
    """
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=len(class_names))
    named = dict(zip(class_names, counts.tolist(), strict=True))
    check_feasible(named, shape, split=split)
    self._rows = np.split(order.astype(np.int32), np.cumsum(counts)[:-1])
    self.shape = shape
    self._seed, self._split = seed, zlib.crc32(split.encode())

  def __call__(self, index: int) -> Episode:
    """Draws episode `index`, an integer >= 0."""
    way, shot, query = dataclasses.astuple(self.shape)
    rng = stream(self._seed, Stream.EPISODE, self._split, index)
    classes = rng.choice(len(self._rows), way, replace=False)
    rows = np.stack(
      [rng.choice(self._rows[c], shot + query, replace=False) for c in classes]
    )
    return Episode(rows[:, :shot], rows[:, shot:], classes.astype(np.int32))


@dataclasses.dataclass(frozen=True, eq=False)
class AmongRows:
  """The first episodes of a sampler, for an image set with only their rows.

  Attributes:
    sampler: the sampler for the whole image set.
    rows: int32 [k], the ascending rows of the whole image set that the episodes
      use. An episode contains positions in this array.
  """

  sampler: EpisodeSampler
  rows: np.ndarray

  @classmethod
  def of(cls, sampler: EpisodeSampler, count: int) -> "AmongRows":
    """Returns the episodes 0..count-1 with the rows that they use."""
    used = [sampler(i) for i in range(count)]
    parts = [part.ravel() for x in used for part in (x.support, x.query)]
    return cls(sampler, np.unique(np.concatenate(parts)))

  def __call__(self, index: int) -> Episode:
    """Draws episode `index`, which must be one of the first `count`."""
    episode = self.sampler(index)
    support, query = (
      np.searchsorted(self.rows, part).astype(np.int32)
      for part in (episode.support, episode.query)
    )
    return dataclasses.replace(episode, support=support, query=query)


def batch(sampler: Callable[[int], Episode], indices: Iterable[int]) -> Episode:
  """Draws several episodes and stacks them: [e, way, shot] and so on."""
  sampled = [sampler(i) for i in indices]
  return Episode(
    *(
      np.stack([getattr(episode, field.name) for episode in sampled])
      for field in dataclasses.fields(Episode)
    )
  )
