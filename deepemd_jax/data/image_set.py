"""The images of one split, from which the host makes the input of the device.

There are two kinds. `CachedImages` are squares that were decoded once, and the
device cuts the crops. `EncodedImages` are decoded on demand, and the host cuts
the crops. Both take boxes in pixels of the original image. Both are small when
pickled, so they can be sent to worker processes.
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

# Crops of bicubic copies are closer to crops of the original (1.6 gray levels
# on average at 160 pixels) than crops of bilinear copies (2.1), which have lost
# more detail. `benchmarks/data.py` measures this.
COPY_FILTER = Image.Resampling.BICUBIC
_VIEW_FILTER = Image.Resampling.BILINEAR  # the filter of torchvision


class Files(Protocol):
  """Encoded images, indexed by row."""

  def read(self, rows: Sequence[int]) -> Sequence[bytes | str]:
    """Returns the content or the path of the file of each row."""


class Pixels(Protocol):
  """Decoded images, indexed by row: an array, or a `pixel_cache.PixelMap`."""

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape, (N, S, S, 3)."""

  def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
    """Returns the images of some rows: int [...] -> uint8 [..., S, S, 3]."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
  """The base class of both kinds of images.

  Attributes:
    labels: int32 [N], indices into `class_names`.
    class_names: the names of the classes of this split.
    keys: the name of each image.
    sizes: int32 [N, 2], original height and width in pixels.
  """

  labels: np.ndarray
  class_names: tuple[str, ...]
  keys: tuple[str, ...]
  sizes: np.ndarray

  def extract_crops(
    self, rows: np.ndarray, boxes: np.ndarray, size: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns images, and the boxes that the device cuts out of them.

    Args:
      rows: int [...], the rows of the images.
      boxes: [..., 4] or, for several crops of each image, [..., crops, 4]:
        left, top, right, bottom in pixels of the originals, whole numbers.
      size: side of the crops in pixels.

    Returns:
      The images, uint8 [..., S, S, 3] or, if the host cuts the crops,
      [..., crops, size, size, 3]; and boxes in pixels of these images, float32
      with the shape of `boxes`.
    """
    raise NotImplementedError

  def whole(self, rows: np.ndarray, size: int) -> np.ndarray:
    """Returns whole images, squashed to squares: uint8 [k, S, S, 3].

    Args:
      rows: int [k], the rows of the images.
      size: side in pixels that the device will resize them to. S equals it,
        unless the images are stored copies.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CachedImages(ImageSet):
  """Decoded copies, squashed to squares of one side.

  Attributes:
    images: uint8 [N, S, S, 3], in memory or a `pixel_cache.PixelMap`.
  """

  images: Pixels

  def extract_crops(self, rows, boxes, size):
    """Returns the copies as they are; see `ImageSet`."""
    del size
    crops = boxes.size // (4 * max(rows.size, 1))
    sizes = self.sizes[rows.ravel()].repeat(crops, 0)
    mapped = box_geometry.to_stored(
      boxes.reshape(-1, 4), sizes, self.images.shape[1]
    )
    return self.images[rows], mapped.reshape(boxes.shape).astype(np.float32)

  def whole(self, rows, size):
    """Returns the copies as they are; see `ImageSet`."""
    del size
    return self.images[rows]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EncodedImages(ImageSet):
  """Encoded images, which Pillow decodes and crops on demand.

  The pixels are those of torchvision's transforms. The later resizing on the
  device does not change them.

  Attributes:
    files: the encoded images.
  """

  files: Files

  def extract_crops(self, rows, boxes, size):
    """Returns crops cut on the host, and boxes that contain each whole crop."""
    rows = rows.ravel()
    crops = _decoders().map(
      functools.partial(_resized_crops, size=size),
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
    """Returns images resized on the host; see `ImageSet`."""
    resize = functools.partial(_resized_whole, size=size)
    return np.stack(list(_decoders().map(resize, self.files.read(rows))))


@functools.cache
def _decoders() -> concurrent.futures.Executor:
  """Returns this process's decoding threads; Pillow releases Python's lock."""
  return concurrent.futures.ThreadPoolExecutor(os.cpu_count())


def decode_copy(
  file: bytes | str, side: int
) -> tuple[np.ndarray, tuple[int, int]]:
  """Decodes a file to the copy that is cached.

  Returns:
    The copy, uint8 [side, side, 3], and the original height and width in
    pixels.

  Raises:
    Exception: the file is not an image; the type of the exception varies, see
      `image_io.reason`.
  """
  image, size = image_io.read_upright(file)
  return np.asarray(image.resize((side, side), COPY_FILTER)), size


def _resized_whole(file: bytes | str, size: int) -> np.ndarray:
  return np.asarray(image_io.read_rgb(file).resize((size, size), _VIEW_FILTER))


def _resized_crops(
  file: bytes | str, boxes: np.ndarray, size: int
) -> np.ndarray:
  """Returns the crops of one file, uint8 [crops, size, size, 3]."""
  image, (height, width) = image_io.read_upright(file)
  # A large image is decoded smaller than the original, which the boxes refer
  # to.
  boxes = boxes * (np.array([*image.size] * 2) / [width, height, width, height])
  crops = []
  for left, top, right, bottom in boxes.astype(int).tolist():
    # On an image of a few pixels, a cell of the grid may be empty.
    left, top = min(left, image.width - 1), min(top, image.height - 1)
    box = left, top, max(right, left + 1), max(bottom, top + 1)
    crop = image.crop(box).resize((size, size), _VIEW_FILTER)
    crops.append(np.asarray(crop))
  return np.stack(crops)
