"""Draws the boxes of crops, on the host in NumPy.

A box is left, top, right, bottom in pixels of the original image.
"""

from collections.abc import Sequence

import numpy as np


def random_resized_crop(
  rng: np.random.Generator,
  sizes: np.ndarray,
  *,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
  """Draws one box per image as torchvision's RandomResizedCrop does.

  The share of the area is uniform in `scale`, and the aspect ratio is
  log-uniform in `ratio`. The first of ten tries that fits into the image is
  used. If none fits, the largest central box with an allowed ratio is used.

  Args:
    rng: the generator of all random numbers.
    sizes: int [N, 2], height and width of each image in pixels.
    scale: smallest and largest share of the area.
    ratio: smallest and largest width / height.

  Returns:
    float64 [N, 4], left, top, right, bottom in pixels, whole numbers.
  """
  height, width = np.asarray(sizes).T[:, :, None].astype(np.float64)
  tries = (len(height), 10)
  area = height * width * rng.uniform(scale[0], scale[1], tries)
  narrowest, widest = np.log(ratio)
  aspect = np.exp(rng.uniform(narrowest, widest, tries))
  w = np.round(np.sqrt(area * aspect))
  h = np.round(np.sqrt(area / aspect))
  fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
  first = fits.argmax(1)[:, None]
  w, h = (np.take_along_axis(x, first, 1) for x in (w, h))
  place = rng.random((2, len(height), 1))
  left = np.floor(place[0] * (width - w + 1))
  top = np.floor(place[1] * (height - h + 1))
  # The fallback is the whole image, cut to an allowed ratio.
  whole_w = np.clip(np.minimum(width, np.round(height * ratio[1])), 1, None)
  whole_h = np.clip(np.minimum(height, np.round(width / ratio[0])), 1, None)
  failed = ~fits.any(1, keepdims=True)
  w, h = np.where(failed, whole_w, w), np.where(failed, whole_h, h)
  left = np.where(failed, (width - w) // 2, left)
  top = np.where(failed, (height - h) // 2, top)
  return np.concatenate([left, top, left + w, top + h], 1)


def grid_boxes(
  sizes: np.ndarray, cells: Sequence[int], ratios: np.ndarray
) -> np.ndarray:
  """Returns the boxes of Grid: pyramid cells, each with some context.

  As in the official `get_grid_location`, lengths are truncated to whole pixels,
  and at the border a box is cut off, not shifted.

  Args:
    sizes: int [N, 2], height and width of each image in pixels.
    cells: number of cells along a side for each level; (2, 3) gives 4 + 9
      boxes.
    ratios: [N, levels], side of a box divided by the side of its cell.

  Returns:
    float64 [N, sum of cells^2, 4], left, top, right, bottom in pixels, whole
    numbers. The levels are in the given order, and each is in row-major order.
  """
  levels = []
  for count, ratio in zip(cells, np.asarray(ratios).T, strict=True):
    (top, bottom), (left, right) = (
      _spans(np.asarray(size), count, ratio) for size in np.asarray(sizes).T
    )
    shape = (len(left), count, count)
    sides = [left[:, None], top[..., None], right[:, None], bottom[..., None]]
    level = np.stack([np.broadcast_to(x, shape) for x in sides], -1)
    levels.append(level.reshape(len(left), count * count, 4))
  return np.concatenate(levels, 1)


def _spans(length: np.ndarray, count: int, ratio: np.ndarray):
  """Returns the starts and ends of `count` enlarged cells, each [N, count]."""
  cell = np.floor(length / count)
  reach = np.floor(length / count * ratio) // 2
  center = (cell // 2)[:, None] + np.arange(count) * cell[:, None]
  low = np.maximum(center - reach[:, None], 0)
  return low, np.minimum(center + reach[:, None], length[:, None])


def to_stored(boxes: np.ndarray, sizes: np.ndarray, side: int) -> np.ndarray:
  """Converts boxes on the originals to boxes on their squashed square copies.

  Args:
    boxes: [N, 4], left, top, right, bottom in pixels of the original.
    sizes: [N, 2], height and width of the originals in pixels.
    side: side of the stored copies in pixels.

  Returns:
    float [N, 4], left, top, right, bottom in pixels of the copies.
  """
  width_height = np.asarray(sizes)[:, ::-1]
  return boxes * (side / np.tile(width_height, (1, 2)))
