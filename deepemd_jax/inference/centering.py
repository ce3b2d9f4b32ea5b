"""Centers nodes by removing the features that all photographs of a place share.

Photographs of one shop share its light, its shelves and its colors, and so do
their nodes. Without this shared part, nodes distinguish the classes better. Any
photographs of the place can be used, and they need no labels. The examples can
be used as well if there are enough classes. With two or three classes,
centering by the examples would remove too much.
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
from deepemd_jax.utils import terminal

SFC_LEARNING_RATE = 3.0  # for class nodes of length 1; chosen on validation
# This share of the mean spread is added to each channel's spread, in squares.
_FLOOR = 0.3
_TINY = float(np.finfo(np.float32).tiny)
# With fewer classes, centering by the examples reduces the accuracy.
_FEWEST_CLASSES = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Center:
  """The mean and the spread of the nodes of some photographs.

  Attributes:
    mean: float32 [c], means of the channels.
    spread: float32 [c], standard deviations of the channels, above 0.
    photographs: number of photographs.
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
    """Computes the center of some images.

    Args:
      encoder: an encoder of images without a center.
      images: at least one image.
      progress: called with the number of images done.
      skip_bad: whether to omit unreadable images, and name them on stderr.

    Raises:
      InputError: an image cannot be read, or none can with `skip_bad`; the
        message names the images.
    """
    bad: dict[int, str] = {}
    nodes = (x.nodes for _, x in encoder.batches(images, bad, progress))
    if (first := next(nodes, None)) is not None:
      center = cls.of_nodes(itertools.chain([first], nodes))
    if first is None or not skip_bad:
      image_encoder.refuse(images, bad)
    for i in sorted(bad):
      terminal.note(f"left out for centering {str(images[i])!r}: {bad[i]}")
    # pyrefly: ignore[unbound-name]: if it is unbound, `refuse` has raised
    return center

  @classmethod
  def of_nodes(cls, batches: Iterable[np.ndarray]) -> "Center":
    """Computes the center of batches of nodes [N, n, c], at least one batch."""
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
    """Computes the center of nodes [..., n, c], of NumPy or JAX."""
    flat = nodes.reshape(-1, nodes.shape[-1])
    photographs = len(flat) // nodes.shape[-2]
    return cls(flat.mean(0), _with_floor(flat.std(0)), photographs)

  def scaled(self, nodes):
    """Subtracts the mean from nodes [..., c] and divides by the spread."""
    return (nodes - self.mean) / self.spread

  def __call__(self, nodes):
    """Scales nodes [..., c] with `scaled` and then to length 1."""
    nodes = self.scaled(nodes)
    return nodes / ((nodes**2).sum(-1, keepdims=True) ** 0.5 + _TINY)


def _with_floor(spread):
  """Raises small spreads, so that no channel dominates after the division."""
  return (spread**2 + (_FLOOR * spread.mean()) ** 2) ** 0.5 + _TINY


def find(
  given,
  encoder: image_encoder.ImageEncoder,
  support: np.ndarray,
  classes: int,
  published: bool,
) -> Center | None:
  """Returns the center for the argument `center`, or None for no centering.

  Args:
    given: the argument of `FewShotClassifier`: a folder, a list of images, a
      `Center`, "support", "none", or None.
    encoder: an encoder of images without a center.
    support: [N, n, c], the nodes of the examples.
    classes: number of classes.
    published: whether the encoder is a published one and not from a run.

  Raises:
    InputError: there are no images, or some cannot be read.
  """
  if isinstance(given, Center):
    return given
  if given is None:
    given = usual(classes) if published else "none"
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


def usual(classes: int) -> str:
  """Returns the better of "support" and "none" for a number of classes."""
  return "support" if classes >= _FEWEST_CLASSES else "none"


def adapt(settings: HeadSettings) -> HeadSettings:
  """Returns the settings of the heads for nodes of length 1."""
  sfc = dataclasses.replace(settings.sfc, learning_rate=SFC_LEARNING_RATE)
  return dataclasses.replace(settings, sfc=sfc)
