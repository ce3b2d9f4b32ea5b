"""The images of one split, as the host hands them to the device.

Two kinds with the same two methods: `Copies`, squares decoded once, of which
the device cuts the crops, and `Originals`, decoded when asked for, of which the
host cuts them. Either way a crop is drawn in pixels of the original. Both are
cheap to pickle, so worker processes may have them.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from deepemd_jax.data import boxes as box_geometry
from deepemd_jax.data import image_io

# How copies are made. Crops of bicubic ones are nearer to crops of the original
# (1.6 gray levels on average at 160 pixels) than of bilinear ones (2.1), which
# have lost more of the detail; `benchmarks/data.py` measures it.
COPIED = Image.Resampling.BICUBIC
_SEEN = Image.Resampling.BILINEAR  # torchvision's, in every view


class Files(Protocol):
  """Encoded images by row."""

  def read(self, rows: Sequence[int]) -> list[bytes | str]:
    """The file of each row: its content, or its path."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
  """What both kinds know.

  Attributes:
    labels: int32 [N], indexing `class_names`.
    class_names: of this split.
    keys: a name for each image.
    sizes: int32 [N, 2], original height and width.
  """

  labels: np.ndarray
  class_names: tuple[str, ...]
  keys: tuple[str, ...]
  sizes: np.ndarray

  def cut(
    self, rows: np.ndarray, boxes: np.ndarray, size: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Images, and boxes on them from which the device makes size x size crops.

    Args:
      rows: int [...], which images.
      boxes: [..., 4] or, for several crops of each image, [..., crops, 4]:
        left, top, right, bottom in pixels of the originals, whole numbers.
      size: side of the crops.

    Returns:
      uint8 images [..., S, S, 3], or, where the host cuts crops,
      [..., crops, size, size, 3]; and float32 boxes on these.
    """
    raise NotImplementedError

  def whole(self, rows: np.ndarray, size: int) -> np.ndarray:
    """Whole images, squashed: uint8 [k, S, S, 3].

    Args:
      rows: int [k].
      size: side that the device will resize them to: S, if there is a choice.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Copies(ImageSet):
  """Decoded copies, squashed to squares of one side.

  Attributes:
    images: uint8 [N, S, S, 3], in memory or a `stored.PixelMap`.
  """

  images: np.ndarray

  def cut(self, rows, boxes, size):
    """See `ImageSet`: the copies as they are."""
    del size
    crops = boxes.size // (4 * max(rows.size, 1))
    sizes = self.sizes[rows.ravel()].repeat(crops, 0)
    mapped = box_geometry.to_stored(
      boxes.reshape(-1, 4), sizes, self.images.shape[1]
    )
    return self.images[rows], mapped.reshape(boxes.shape).astype(np.float32)

  def whole(self, rows, size):
    """See `ImageSet`: the copies as they are."""
    del size
    return self.images[rows]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Originals(ImageSet):
  """Encoded images, decoded and cut by Pillow when asked for.

  The pixels are those of torchvision's transforms; what the device does to them
  afterwards changes nothing.

  Attributes:
    files: the images.
  """

  files: Files

  def cut(self, rows, boxes, size):
    """See `ImageSet`: crops made by the host, boxes around all of them."""
    rows = rows.ravel()
    crops = _decoders().map(
      functools.partial(_crops, size=size),
      self.files.read(rows),
      boxes.reshape(len(rows), -1, 4),
    )
    shape = (*boxes.shape[:-1], size, size, 3)
    around = np.array([0, 0, size, size], np.float32)
    return (
      np.stack(list(crops)).reshape(shape),
      np.broadcast_to(around, boxes.shape),
    )

  def whole(self, rows, size):
    """See `ImageSet`: resized by the host."""
    resized = functools.partial(_whole, size=size)
    return np.stack(list(_decoders().map(resized, self.files.read(rows))))


@functools.cache
def _decoders() -> concurrent.futures.Executor:
  """Threads of this process: Pillow decodes without Python's lock."""
  return concurrent.futures.ThreadPoolExecutor(os.cpu_count())


def _decoded(file: bytes | str) -> Image.Image:
  with image_io.open_image(file) as image:
    return image_io.to_rgb(image)


def copied(file: bytes | str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
  """A copy to store, uint8 [side, side, 3]; the original height and width.

  Raises:
    Nearly anything: it is no picture; see `pictures.reason`.
  """
  image = _decoded(file)
  small = np.asarray(image.resize((side, side), COPIED))
  return small, (image.height, image.width)


def _whole(file: bytes | str, size: int) -> np.ndarray:
  return np.asarray(_decoded(file).resize((size, size), _SEEN))


def _crops(file: bytes | str, boxes: np.ndarray, size: int) -> np.ndarray:
  """uint8 [crops, size, size, 3]."""
  image = _decoded(file)
  cut = []
  for left, top, right, bottom in boxes.astype(int).tolist():
    # Grid's boxes on an image of a few pixels may be empty.
    left, top = min(left, image.width - 1), min(top, image.height - 1)
    box = left, top, max(right, left + 1), max(bottom, top + 1)
    cut.append(np.asarray(image.crop(box).resize((size, size), _SEEN)))
  return np.stack(cut)
