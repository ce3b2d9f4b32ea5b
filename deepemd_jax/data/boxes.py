"""Boxes: which part of an image a crop shows. Drawn on the host, in NumPy.

Boxes are left, top, right, bottom in pixels of the original image.
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
  """Boxes of torchvision's RandomResizedCrop, one an image.

  Ten tries at an area share uniform in `scale` and an aspect ratio log-uniform
  in `ratio`; if none fits, the largest central box with an allowed ratio.

  Args:
    rng: draws all.
    sizes: int [N, 2], height and width of each image.
    scale: smallest and largest share of the area.
    ratio: smallest and largest width / height.

  Returns:
    float64 [N, 4] left, top, right, bottom: whole numbers.
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
  # The fallback: the whole image, cut to an allowed ratio.
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
  """Boxes of Grid: the cells of an image pyramid, each with some context.

  As official `get_grid_location`: lengths are truncated to whole pixels, and at
  the border a box is cut off, not shifted.

  Args:
    sizes: int [N, 2], height and width of each image.
    cells: along a side, one number per level; (2, 3) gives 4 + 9 boxes.
    ratios: [N, levels], side of a box over side of its cell.

  Returns:
    float64 [N, sum of cells^2, 4] left, top, right, bottom: whole numbers, the
    levels in the order given, each row by row.
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
  """Where `count` enlarged cells begin and end, each [N, count]."""
  cell = np.floor(length / count)
  reach = np.floor(length / count * ratio) // 2
  center = (cell // 2)[:, None] + np.arange(count) * cell[:, None]
  low = np.maximum(center - reach[:, None], 0)
  return low, np.minimum(center + reach[:, None], length[:, None])


def to_stored(boxes: np.ndarray, sizes: np.ndarray, side: int) -> np.ndarray:
  """Boxes on the originals as boxes on their squashed side x side copies.

  Args:
    boxes: [N, 4] left, top, right, bottom in pixels of the original.
    sizes: [N, 2], height and width of the originals.
    side: of the stored copies.
  """
  width_height = np.asarray(sizes)[:, ::-1]
  return boxes * (side / np.tile(width_height, (1, 2)))
