"""From encoder output to nodes: the local descriptors that are matched.

Everything after this file is `[..., n, c]`, whatever the variant. Here is FCN,
the variant whose nodes are the cells of one feature map.
"""

import jax
import numpy as np


def from_map(maps: jax.Array) -> jax.Array:
  """Cells of a feature map, row by row: [..., h, w, c] -> [..., h * w, c]."""
  *batch, height, width, channels = maps.shape
  return maps.reshape(*batch, height * width, channels)


def cell_boxes(height: int, width: int, side: int) -> np.ndarray:
  """The image region that each cell of an h x w map stands for.

  A cell's receptive field is larger; this is its place on the image, which is
  what a picture of the matches draws.

  Returns:
    [h * w, 4] left, top, right, bottom in pixels of a side x side image, in the
    order of `from_map`.
  """
  top, left = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
  corners = np.stack([left, top, left + 1, top + 1], -1).reshape(-1, 4)
  return corners * np.array([side / width, side / height] * 2)
