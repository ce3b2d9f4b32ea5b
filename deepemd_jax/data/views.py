"""Views: which part of an image the network sees, and cutting it out.

Every view is a box and a flip: the host draws them, `crop_resize` cuts them on
the device. It equals PIL's `crop().resize(BILINEAR)`, which the original and
all published numbers use; `jax.image.scale_and_translate` differs by up to 67
gray levels, because it looks outside the crop. PIL resizes in one direction,
rounds to 8 bit, and resizes in the other. Across comes first, but since Pillow
13 not where height shrinks by more than twice as many pixels as width (its pull
request 9549); older ones differ there by a gray level in some pixels.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_HIGHEST = jax.lax.Precision.HIGHEST
# The official evaluation resizes to 92 for a center crop of 84.
_MARGIN = 92 / 84


def _weights(side: int, size: int, start: jax.Array, stop: jax.Array):
  """[2, size, side] weights of PIL's antialiased bilinear filter on a crop.

  A triangle as wide as the scale, centered on each output pixel, cut off at the
  crop's border, renormalized and rounded to multiples of 2^-22, which many sums
  turn on (enlarging by 3/2 gives nothing but sixths, and halves of gray levels)
  and float32 has not the bits for: multiples of 2^-11, and what is left.
  """
  # In units of half a pixel over size, in which whole boxes have whole numbers.
  length = stop - start
  radius = 2 * jnp.maximum(length, size)
  pixel = jnp.arange(side)
  place = (2 * (pixel - start) + 1) * size
  center = (2 * jnp.arange(size) + 1) * length
  distance = jnp.abs(place - center[:, None])
  # A pixel belongs to a fractional crop when its center does; the one in the
  # middle always does, or a crop below one pixel would be empty.
  inside = (pixel + 0.5 > start) & (pixel + 0.5 < stop)
  inside |= pixel == jnp.clip(jnp.floor((start + stop) / 2), 0, side - 1)
  weights = jnp.where(inside, jnp.maximum(radius - distance, 0.0), 0.0)
  total = weights.sum(1, keepdims=True)
  weights = weights * 2.0**11
  high = jnp.floor(weights / total)
  low = jnp.floor((weights - high * total) * 2.0**11 / total + 0.5)
  return jnp.stack([high * 2.0**-11, low * 2.0**-22])


def _resized(weights: jax.Array, image: jax.Array) -> jax.Array:
  """Whole numbers [h, side, 3] -> whole numbers [h, size, 3]."""
  coarse, fine = jnp.einsum("kpw,hwc->khpc", weights, image, precision=_HIGHEST)
  whole = jnp.floor(coarse)
  return whole + jnp.floor((coarse - whole) + 0.5 + fine)


@functools.partial(jax.jit, static_argnames="size")
def crop_resize(
  images: jax.Array, boxes: jax.Array, flip: jax.Array, size: int = 84
) -> jax.Array:
  """Cuts one box out of each image and resizes it.

  Args:
    images: uint8 [N, H, W, 3].
    boxes: [N, 4] left, top, right, bottom in pixels, inside the image. They may
      be fractional, as those on squashed copies are: the filter is placed
      exactly, and sees the pixels whose centers lie in the box.
    flip: bool [N], mirror left to right after cropping.
    size: side of the result.

  Returns:
    float32 gray levels 0..255, whole numbers, [N, size, size, 3]; PIL's own for
    whole boxes.
  """
  height, width = images.shape[1:3]
  side = jax.core.max_dim(height, width)  # they may be symbols; see `export`
  images = jnp.pad(
    images, ((0, 0), (0, side - height), (0, side - width), (0, 0))
  )

  def one(image, box, mirrored):
    across = _weights(side, size, box[0], box[2])
    across = jnp.where(mirrored, across[:, ::-1], across)
    down = _weights(side, size, box[1], box[3])
    # Down first is across first on the image's transpose.
    shrunk_across, shrunk_down = box[2] - box[0] - size, box[3] - box[1] - size
    turned = (shrunk_down > 0) & (shrunk_down > 2 * shrunk_across)
    first, second = (
      jnp.where(turned, down, across),
      jnp.where(turned, across, down),
    )
    image = jnp.where(turned, image.swapaxes(0, 1), image)
    image = _resized(first, image.astype(jnp.float32))
    image = _resized(second, image.swapaxes(0, 1))
    image = jnp.where(turned, image, image.swapaxes(0, 1))
    return jnp.clip(image, 0, 255)

  return jax.vmap(one)(images, boxes.astype(jnp.float32), flip)


def large_side(size: int) -> int:
  """What `evaluation_images` resizes to before it cuts the center."""
  return round(size * _MARGIN)


def evaluation_images(images: jax.Array, size: int = 84) -> jax.Array:
  """The official evaluation view: resize to size * 92 / 84, cut the center.

  Args:
    images: uint8 [N, H, W, 3]; the aspect ratio is not kept.
    size: side of the result.

  Returns:
    float32 gray levels [N, size, size, 3].
  """
  count, height, width = images.shape[:3]
  large = large_side(size)
  box = jnp.array([0.0, 0.0, width, height])
  resized = crop_resize(
    images, jnp.tile(box, (count, 1)), jnp.zeros(count, bool), size=large
  )
  edge = (large - size) // 2
  return resized[:, edge : edge + size, edge : edge + size]


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
  area = height * width * rng.uniform(*scale, tries)
  aspect = np.exp(rng.uniform(*np.log(ratio), tries))
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
