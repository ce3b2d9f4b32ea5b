"""The positions of patches for a vision transformer: a table that is added, or
rotations of queries and keys.

References:
  Keys, "Cubic Convolution Interpolation for Digital Image Processing", IEEE
  Transactions on Acoustics, Speech, and Signal Processing, 1981.
  Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding",
  2021, https://arxiv.org/abs/2104.09864.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def rotation(
  channels: int, rows: int, columns: int, *, base: float, before: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rotations of queries and keys for each token.

  Args:
    channels: channels of a head, a multiple of 4. Half of them encode the row,
      and half of them the column.
    rows: rows of patches.
    columns: columns of patches.
    base: base of the frequencies, which fall from one turn per half a side of
      the image to nearly 1 / base of that.
    before: number of tokens before those of the patches; they do not rotate.

  Returns:
    Cosines and sines, float32 [before + rows * columns, channels].
  """
  frequencies = base ** -np.arange(0, 1, 4 / channels)
  places = (
    2 * (np.arange(count) + 0.5) / count - 1 for count in (rows, columns)
  )
  grid = np.stack(np.meshgrid(*places, indexing="ij"), -1)
  angles = 2 * math.pi * grid[..., None] * frequencies
  angles = np.tile(angles.reshape(rows * columns, -1), 2)
  angles = np.pad(angles, ((before, 0), (0, 0)))
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotated(x: jax.Array, cosines, sines) -> jax.Array:
  """Rotates [..., n, c], whose channels i and i + c / 2 form a plane."""
  first, second = jnp.split(x, 2, -1)
  turned = jnp.concatenate([-second, first], -1)
  cosines, sines = (y.astype(x.dtype) for y in (cosines, sines))
  return x * cosines + turned * sines


def resized(
  table: jax.Array, rows: int, columns: int, antialias: bool
) -> jax.Array:
  """Interpolates a table [g, g, c] to [rows, columns, c].

  Args:
    table: [g, g, c], the positions.
    rows: rows of the map.
    columns: columns of the map.
    antialias: whether the table is averaged where it shrinks. Both values give
      PyTorch's bicubic interpolation.
  """
  if table.shape[:2] == (rows, columns):
    return table
  by_row, by_column = (
    _cubic(length, old, antialias)
    for length, old in zip((rows, columns), table.shape[:2], strict=True)
  )
  return jnp.einsum("ih,jw,hwc->ijc", by_row, by_column, table)


def _cubic(length: int, old: int, antialias: bool) -> np.ndarray:
  """Returns the weights of interpolation along a side, [length, old] float32.

  Without antialiasing, PyTorch's kernel has the parameter -0.75 and samples 4
  places; places beyond an edge are sampled at the edge. With antialiasing, the
  parameter is -0.5, and the kernel is as wide as it has to be and ends at the
  edge.
  """
  scale = old / length
  found = np.zeros((length, old))
  for i in range(length):
    center = (i + 0.5) * scale
    if antialias:
      wide = max(scale, 1.0)
      first = max(int(center - 2 * wide + 0.5), 0)
      places = np.arange(first, min(int(center + 2 * wide + 0.5), old))
      taps = _kernel((places + 0.5 - center) / wide, -0.5)
      found[i, places] = taps / taps.sum()
    else:
      places = math.floor(center - 0.5) + np.arange(-1, 3)
      taps = _kernel(places + 0.5 - center, -0.75)
      np.add.at(found[i], places.clip(0, old - 1), taps)
  return found.astype(np.float32)


def _kernel(x: np.ndarray, a: float) -> np.ndarray:
  """Evaluates Keys' cubic convolution kernel (1981)."""
  x = np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x <= 1, near, np.where(x < 2, far, 0))
