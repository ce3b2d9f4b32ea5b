"""Cuts crops out of images on the device, with the same pixels as Pillow.

`crop_resize` equals PIL's `crop().resize(BILINEAR)`, which the original code
and all published numbers use. `jax.image.scale_and_translate` differs by up to
67 gray levels, because it uses pixels outside the crop. PIL resizes in one
direction, rounds to 8 bits, and resizes in the other direction. The horizontal
direction comes first. Since Pillow 13, the vertical one comes first if the
height shrinks by more than twice as many pixels as the width (its pull request
9549). Older versions differ in this case by one gray level in some pixels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_HIGHEST = jax.lax.Precision.HIGHEST
# The official evaluation resizes to 92 pixels and takes a center crop of 84.
_MARGIN = 92 / 84


def _weights(side: int, size: int, start: jax.Array, stop: jax.Array):
  """Returns the weights of PIL's antialiased bilinear filter, [2, size, side].

  The filter is a triangle as wide as the scale. It is centered on each output
  pixel, cut off at the crop's border and renormalized. PIL rounds the weights
  to multiples of 2^-22. Many sums depend on this rounding: enlarging by 3/2,
  for example, gives only sixths, and so halves of gray levels. float32 has too
  few bits for these weights, so each is the sum of two: a multiple of 2^-11 and
  the remainder.
  """
  # The unit is a pixel / (2 * size), in which boxes of whole pixels have whole
  # numbers.
  length = stop - start
  radius = 2 * jnp.maximum(length, size)
  pixel = jnp.arange(side)
  place = (2 * (pixel - start) + 1) * size
  center = (2 * jnp.arange(size) + 1) * length
  distance = jnp.abs(place - center[:, None])
  # A pixel belongs to a fractional crop if its center does. The middle pixel
  # always belongs to it, because a crop below one pixel would be empty.
  inside = (pixel + 0.5 > start) & (pixel + 0.5 < stop)
  inside |= pixel == jnp.clip(jnp.floor((start + stop) / 2), 0, side - 1)
  weights = jnp.where(inside, jnp.maximum(radius - distance, 0.0), 0.0)
  total = weights.sum(1, keepdims=True)
  weights = weights * 2.0**11
  high = jnp.floor(weights / total)
  low = jnp.floor((weights - high * total) * 2.0**11 / total + 0.5)
  return jnp.stack([high * 2.0**-11, low * 2.0**-22])


def _resized(weights: jax.Array, image: jax.Array) -> jax.Array:
  """Resizes the second axis: whole numbers [h, side, 3] -> [h, size, 3]."""
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
      be fractional, as on squashed copies. Then the filter is placed exactly
      and uses the pixels whose centers lie in the box.
    flip: bool [N], whether to mirror each crop left to right.
    size: side of the result in pixels.

  Returns:
    float32 [N, size, size, 3], gray levels 0..255 as whole numbers; equal to
    PIL's for boxes of whole pixels.
  """
  height, width = images.shape[1:3]
  side = jax.core.max_dim(height, width)  # sizes may be symbolic in `export`
  images = jnp.pad(
    images, ((0, 0), (0, side - height), (0, side - width), (0, 0))
  )

  def one(image, box, mirrored):
    across = _weights(side, size, box[0], box[2])
    across = jnp.where(mirrored, across[:, ::-1], across)
    down = _weights(side, size, box[1], box[3])
    # Resizing vertically first is resizing the transpose horizontally first.
    shrunk_across, shrunk_down = box[2] - box[0] - size, box[3] - box[1] - size
    transposed = (shrunk_down > 0) & (shrunk_down > 2 * shrunk_across)
    first, second = (
      jnp.where(transposed, down, across),
      jnp.where(transposed, across, down),
    )
    image = jnp.where(transposed, image.swapaxes(0, 1), image)
    image = _resized(first, image.astype(jnp.float32))
    image = _resized(second, image.swapaxes(0, 1))
    image = jnp.where(transposed, image, image.swapaxes(0, 1))
    return jnp.clip(image, 0, 255)

  return jax.vmap(one)(images, boxes.astype(jnp.float32), flip)


def large_side(size: int) -> int:
  """Returns the side in pixels that `evaluation_images` resizes to."""
  return round(size * _MARGIN)


def evaluation_images(
  images: jax.Array | np.ndarray, size: int = 84
) -> jax.Array:
  """Resizes images to size * 92 / 84 and cuts the center, as officially tested.

  Args:
    images: uint8 [N, H, W, 3]; the aspect ratio is not kept.
    size: side of the result in pixels.

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
