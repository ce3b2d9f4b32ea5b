"""What the photographs of one place have in common, taken out of their nodes.

Photographs of one shop share its light, its shelves and its colors, and so do
their nodes. Without that share, what is left tells the classes apart. No labels
are needed: any photographs of the place will do. The examples themselves do as
well, if there are enough classes: of two or three, too little is left.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from deepemd_jax.data import folder, image_input
from deepemd_jax.errors import InputError
from deepemd_jax.inference import image_encoder
from deepemd_jax.models.heads import HeadSettings

SFC_LEARNING_RATE = 3.0  # for class nodes of length 1; chosen on validation
# A share of the mean spread that is added to each channel's, in squares.
_FLOOR = 0.3
_TINY = float(np.finfo(np.float32).tiny)
# By the examples of fewer classes it does harm.
_FEWEST_CLASSES = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Center:
  """Mean and spread of the nodes of some photographs.

  Attributes:
    mean: float32 [c].
    spread: float32 [c], standard deviations, above 0.
    photographs: how many there were.
  """

  mean: np.ndarray
  spread: np.ndarray
  photographs: int

  @classmethod
  def of(
    cls,
    encoder: image_encoder.ImageEncoder,
    images: Sequence,
    progress: Callable[[int], None] | None = None,
    *,
    skip_bad: bool = False,
  ) -> "Center":
    """The center of some images.

    Args:
      encoder: of images; it must not center them.
      images: at least one.
      progress: called with the number of images done.
      skip_bad: leave out those that cannot be read.

    Raises:
      InputError: some cannot be read; it names them.
    """
    bad: dict[int, str] = {}
    nodes = (x.nodes for _, x in encoder.batches(images, bad, progress))
    if (first := next(nodes, None)) is not None:
      center = cls.of_nodes(itertools.chain([first], nodes))
    if first is None or not skip_bad:
      image_encoder.refuse(images, bad)
    # pyrefly: ignore[unbound-name]: without one, something was refused
    return center

  @classmethod
  def of_nodes(cls, batches: Iterable[np.ndarray]) -> "Center":
    """The center of nodes [N, n, c], a batch at a time; at least one."""
    photographs, count = 0, 0
    total, squares = np.zeros(()), np.zeros(())
    for nodes in batches:
      photographs += len(nodes)
      nodes = nodes.reshape(-1, nodes.shape[-1]).astype(np.float64)
      count += len(nodes)
      total, squares = total + nodes.sum(0), squares + (nodes**2).sum(0)
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0))
    mean, spread = mean.astype(np.float32), spread.astype(np.float32)
    return cls(mean, _with_floor(spread), photographs)

  @classmethod
  def of_support(cls, nodes) -> "Center":
    """The center of nodes [..., n, c], NumPy's, JAX's, or traced."""
    flat = nodes.reshape(-1, nodes.shape[-1])
    photographs = len(flat) // nodes.shape[-2]
    return cls(flat.mean(0), _with_floor(flat.std(0)), photographs)

  def scaled(self, nodes):
    """Nodes [..., c] less the mean, over the spread."""
    return (nodes - self.mean) / self.spread

  def __call__(self, nodes):
    """The same, of length 1."""
    nodes = self.scaled(nodes)
    return nodes / ((nodes**2).sum(-1, keepdims=True) ** 0.5 + _TINY)


def _with_floor(spread):
  """A channel that hardly changes must not count more than all others."""
  return (spread**2 + (_FLOOR * spread.mean()) ** 2) ** 0.5 + _TINY


def find(
  given,
  encoder: image_encoder.ImageEncoder,
  support: np.ndarray,
  classes: int,
  published: bool,
) -> Center | None:
  """What nodes are centered by, if by anything.

  Args:
    given: as `FewShotClassifier` takes it: a folder, a list of images, a
      `Center`, "support", "none", or None.
    encoder: of images; it must not center them.
    support: nodes [N, n, c] of the examples.
    classes: how many there are.
    published: whether the encoder is a published one, and not a run's.

  Raises:
    InputError: there are no images, or some cannot be read.
  """
  if isinstance(given, Center):
    return given
  if given is None:
    enough = published and classes >= _FEWEST_CLASSES
    given = "support" if enough else "none"
  if isinstance(given, str) and given == "none":
    return None
  if isinstance(given, str) and given == "support":
    return Center.of_support(support)
  if isinstance(given, (str, os.PathLike)):
    given = folder.below(given)
  images = image_input.several(given)
  if not images:
    raise InputError("center has no images; give at least one")
  return Center.of(encoder, images)


def adapt(settings: HeadSettings) -> HeadSettings:
  """The settings of the heads, for nodes of length 1."""
  sfc = dataclasses.replace(settings.sfc, learning_rate=SFC_LEARNING_RATE)
  return dataclasses.replace(settings, sfc=sfc)
