"""From encoder output to nodes: the local descriptors that are matched.

All later code works on nodes `[..., n, c]`, whatever the variant. In FCN, the
nodes are the cells of one feature map, with or without a pyramid of averages.
In Grid and Sampling, they are crops of the image, each encoded and pooled.

References:
  Zhang, Cai, Lin, Shen, "DeepEMD: Differentiable Earth Mover's Distance for
  Few-Shot Learning", TPAMI 2022, section 3.4.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def from_map(maps: jax.Array) -> jax.Array:
  """Flattens a map row by row: [..., h, w, c] -> [..., h * w, c]."""
  *batch, height, width, channels = maps.shape
  return maps.reshape(*batch, height * width, channels)


def averaged(maps: jax.Array, cells: int) -> jax.Array:
  """Averages a map to fewer cells.

  Args:
    maps: [..., h, w, c].
    cells: the largest number of cells along a side; 0 does not change the map.

  Returns:
    [..., min(h, cells), min(w, cells), c]. Each cell is the mean over its part
    of the map. An old cell that overlaps two parts is shared by area, so that
    all old cells have the same weight.
  """
  height, width = maps.shape[-3:-1]
  if not cells or max(height, width) <= cells:
    return maps
  rows, columns = (_shares(min(cells, x), x) for x in (height, width))
  return jnp.einsum("ih,jw,...hwc->...ijc", rows, columns, maps)


def _shares(size: int, length: int) -> np.ndarray:
  """Returns the weights of old cells in new cells, [size, length] float32."""
  edges = np.arange(size + 1)[:, None] * (length / size)
  place = np.arange(length)
  shared = np.minimum(edges[1:], place + 1) - np.maximum(edges[:-1], place)
  return (shared.clip(0) * size / length).astype(np.float32)


def pyramid(maps: jax.Array, sizes: Sequence[int] = ()) -> jax.Array:
  """Returns averages of a map over grids, followed by the map itself.

  Args:
    maps: [..., h, w, c].
    sizes: cells along a side, one number per level; (2, 1) is the best in the
      paper.

  Returns:
    [..., sum of sizes^2 + h w, c], the levels in the order given, each row by
    row. A grid that does not divide the map is cut as in PyTorch's adaptive
    pooling: cell i spans floor(i h / s) to ceil((i + 1) h / s).
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
  """Returns the weights of adaptive average pooling, [size, length] float32."""
  cells = np.arange(size)[:, None]
  start, stop = cells * length // size, -(-(cells + 1) * length // size)
  place = np.arange(length)
  inside = (place >= start) & (place < stop)
  return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def unit(nodes: jax.Array) -> jax.Array:
  """Scales nodes [..., c] to length 1; a node of zeros does not change."""
  square = jnp.sum(nodes * nodes, -1, keepdims=True)
  return nodes * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def from_crops(maps: jax.Array) -> jax.Array:
  """Pools each crop to one node: [..., crops, h, w, c] -> [..., crops, c]."""
  return maps.mean((-3, -2))


def cell_boxes(height: int, width: int, side: int) -> np.ndarray:
  """Returns the image region of each cell of a map.

  A cell's receptive field is larger. This region is its place on the image,
  which a picture of the matches draws.

  Args:
    height: rows of the map.
    width: columns of the map.
    side: side of the image in pixels.

  Returns:
    [h * w, 4] left, top, right, bottom in pixels of a side x side image, in the
    order of `from_map`.
  """
  top, left = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
  corners = np.stack([left, top, left + 1, top + 1], -1).reshape(-1, 4)
  return corners * np.array([side / width, side / height] * 2)
