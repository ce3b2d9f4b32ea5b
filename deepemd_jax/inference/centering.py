"""What the photographs of one place have in common, taken out of their nodes.

Photographs of one shop share its light, its shelves and its colors, and so do
their nodes. Without that share, what is left tells the classes apart. No labels
are needed: any photographs of the place will do.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from deepemd_jax.inference import image_encoder

# A step of gradient descent on class nodes of length 1.
SFC_LEARNING_RATE = 1.0
_FLOOR = 1e-3  # of a channel's spread, as a share of the mean spread


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
  ) -> "Center":
    """The center of some images.

    Args:
      encoder: of images; it must not center them.
      images: at least one.
      progress: called with the number of images done.

    Raises:
      InputError: some cannot be read; it names them.
    """
    bad: dict[int, str] = {}
    count, total, squares = 0, 0.0, 0.0
    for _, encoded in encoder.batches(images, bad, progress):
      nodes = encoded.nodes.reshape(-1, encoded.nodes.shape[-1])
      nodes = nodes.astype(np.float64)
      count += len(nodes)
      total, squares = total + nodes.sum(0), squares + (nodes**2).sum(0)
    image_encoder.refuse(images, bad)
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0))
    floor = max(_FLOOR * spread.mean(), np.finfo(np.float32).tiny)
    spread = np.maximum(spread, floor)
    return cls(*(x.astype(np.float32) for x in (mean, spread)), len(images))

  def __call__(self, nodes: np.ndarray) -> np.ndarray:
    """Nodes [..., c] less the mean, over the spread, of length 1."""
    nodes = (nodes - self.mean) / self.spread
    length = np.linalg.norm(nodes, axis=-1, keepdims=True)
    return nodes / np.maximum(length, np.finfo(np.float32).tiny)
