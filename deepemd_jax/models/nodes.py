"""From encoder output to nodes: the local descriptors that are matched.

Everything after this file is `[..., n, c]`, whatever the variant: FCN, whose
nodes are the cells of one feature map, alone or under a pyramid of averages; or
Grid and Sampling, whose nodes are crops of the image, each encoded and pooled.

References:
  Zhang, Cai, Lin, Shen, "DeepEMD: Differentiable Earth Mover's Distance for
  Few-Shot Learning", TPAMI 2022, section 3.4.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def from_map(maps: jax.Array) -> jax.Array:
  """Cells of a feature map, row by row: [..., h, w, c] -> [..., h * w, c]."""
  *batch, height, width, channels = maps.shape
  return maps.reshape(*batch, height * width, channels)


def averaged(maps: jax.Array, cells: int) -> jax.Array:
  """A map with fewer cells.

  Args:
    maps: [..., h, w, c].
    cells: along a side, at most; 0 leaves the map as it is.

  Returns:
    [..., min(h, cells), min(w, cells), c]. Each is the mean over its part of
    the map; what lies in two of them is shared by area, so all weigh the same.
  """
  height, width = maps.shape[-3:-1]
  if not cells or max(height, width) <= cells:
    return maps
  rows, columns = (_shares(min(cells, x), x) for x in (height, width))
  return jnp.einsum("ih,jw,...hwc->...ijc", rows, columns, maps)


def _shares(size: int, length: int) -> np.ndarray:
  """[size, length] float32, which part of a cell each place is."""
  edges = np.arange(size + 1)[:, None] * (length / size)
  place = np.arange(length)
  shared = np.minimum(edges[1:], place + 1) - np.maximum(edges[:-1], place)
  return (shared.clip(0) * size / length).astype(np.float32)


def pyramid(maps: jax.Array, sizes: Sequence[int] = ()) -> jax.Array:
  """Averages of a map over ever finer grids, then the map itself.

  Args:
    maps: [..., h, w, c].
    sizes: cells along a side, one number per level; (2, 1) is the paper's best.

  Returns:
    [..., sum of sizes^2 + h w, c], the levels in the order given, each row by
    row. A grid that does not divide the map is cut as PyTorch's adaptive
    pooling does: cell i spans floor(i h / s) to ceil((i + 1) h / s).
  """
  height, width = maps.shape[-3:-1]
  levels = []
  for size in sizes:
    rows, columns = _averages(size, height), _averages(size, width)
    levels.append(
      from_map(jnp.einsum("ih,jw,...hwc->...ijc", rows, columns, maps))
    )
  return jnp.concatenate([*levels, from_map(maps)], -2)


def _averages(size: int, length: int) -> np.ndarray:
  """[size, length] float32, rows that average an adaptive pool's cells."""
  cells = np.arange(size)[:, None]
  start, stop = cells * length // size, -(-(cells + 1) * length // size)
  place = np.arange(length)
  inside = (place >= start) & (place < stop)
  return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def unit(nodes: jax.Array) -> jax.Array:
  """Nodes [..., c] of length 1; a node of zeros stays."""
  square = jnp.sum(nodes * nodes, -1, keepdims=True)
  return nodes * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def from_crops(maps: jax.Array) -> jax.Array:
  """One node per crop: [..., crops, h, w, c] -> [..., crops, c], pooled."""
  return maps.mean((-3, -2))


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
