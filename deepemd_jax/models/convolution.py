"""Convolutions that are fast on CPUs, too.

On other devices, XLA's own form is used. In `same_convolution` only the weight
gradient has a form of its own for CPUs.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def same_convolution(images: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves with stride 1 and zero padding that keeps height and width.

  The value and both gradients are those of `lax.conv_general_dilated`. On a
  CPU, the weight gradient is computed in another way: by one matrix product per
  kernel tap. XLA's own form, a convolution with an image-sized kernel, is 2-3
  times slower there for maps with few channels, and dominates ResNet-12's
  training step (`benchmarks/convolution.py`).

  Args:
    images: [N, H, W, C_in].
    kernel: [k, k, C_in, C_out], k odd.

  Returns:
    [N, H, W, C_out].

  In bfloat16, sums are accumulated in float32 and rounded once.
  """
  return _convolution(images, kernel)


def _plain(images, kernel):
  return lax.conv_general_dilated(
    images, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT
  )


_convolution = jax.custom_vjp(_plain)


def _forward(images, kernel):
  return _plain(images, kernel), (images, kernel)


def _kernel_gradient_by_taps(images, kernel, cotangent):
  """Computes the gradient [k, k, C_in, C_out] by one product per tap, of
  [C_in, NHW] and [NHW, C_out]."""
  height, width, channels = images.shape[1:]
  k, out = kernel.shape[0], kernel.shape[-1]
  pad = k // 2
  padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  rows = cotangent.reshape(-1, out)
  # A sum is over all pixels of a batch: bfloat16 would lose its last terms.
  sums = jnp.promote_types(images.dtype, jnp.float32)
  taps = [
    jnp.matmul(
      padded[:, i : i + height, j : j + width].reshape(-1, channels).T,
      rows,
      preferred_element_type=sums,
    )
    for i in range(k)
    for j in range(k)
  ]
  return jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


def _kernel_gradient_by_convolution(images, kernel, cotangent):
  return jax.vjp(lambda k: _plain(images, k), kernel)[1](cotangent)[0]


def _backward(residuals, cotangent):
  images, kernel = residuals
  to_images = jax.vjp(lambda x: _plain(x, kernel), images)[1]
  to_kernel = lax.platform_dependent(
    images,
    kernel,
    cotangent,
    cpu=_kernel_gradient_by_taps,
    default=_kernel_gradient_by_convolution,
  )
  return to_images(cotangent)[0], to_kernel


_convolution.defvjp(_forward, _backward)


def depthwise(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Convolves each channel with a kernel of its own, with padding "SAME".

  On a CPU, XLA's own form is slow, and this is a sum of shifted images.

  Args:
    images: [N, H, W, C].
    kernel: [k, k, 1, C].
    stride: distance of neighboring windows in pixels.

  Returns:
    [N, ceil(H / stride), ceil(W / stride), C].
  """
  by_shifts = functools.partial(_sum_of_shifts, stride=stride)
  by_xla = functools.partial(_strided, stride=stride, groups=images.shape[-1])
  return lax.platform_dependent(images, kernel, cpu=by_shifts, default=by_xla)


def halving(images: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves with stride 2 and padding "SAME".

  On a CPU, this is one matrix product, which is faster than XLA's own form if
  there are few channels.

  Args:
    images: [N, H, W, C_in].
    kernel: [3, 3, C_in, C_out].

  Returns:
    [N, ceil(H / 2), ceil(W / 2), C_out].
  """
  by_xla = functools.partial(_strided, stride=2, groups=1)
  return lax.platform_dependent(
    images, kernel, cpu=_halving_by_product, default=by_xla
  )


def _strided(images, kernel, stride: int, groups: int):
  return lax.conv_general_dilated(
    *(images, kernel, (stride, stride), "SAME"),
    dimension_numbers=_LAYOUT,
    feature_group_count=groups,
  )


def _sum_of_shifts(images, kernel, stride: int):
  k, sides = kernel.shape[0], images.shape[1:3]
  padding = lax.padtype_to_pads(sides, (k, k), (stride, stride), "SAME")
  images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
  height, width = (-(-side // stride) for side in sides)
  sums = jnp.zeros((), images.dtype)
  for i in range(k):
    for j in range(k):
      rows = slice(i, i + (height - 1) * stride + 1, stride)
      columns = slice(j, j + (width - 1) * stride + 1, stride)
      sums += images[:, rows, columns] * kernel[i, j, 0]
  return sums


def _halving_by_product(images, kernel):
  # Squares of 2 x 2 pixels become one pixel with four times as many channels.
  # Then the kernel has 2 x 2 pixels, and the stride is 1.
  count, *sides, channels = images.shape
  height, width = (-(-side // 2) for side in sides)
  before = [x for x, _ in lax.padtype_to_pads(sides, (3, 3), (2, 2), "SAME")]
  after = [
    2 * (half + 1) - side - x
    for half, side, x in zip((height, width), sides, before, strict=True)
  ]
  x = jnp.pad(images, ((0, 0), *zip(before, after, strict=True), (0, 0)))
  x = x.reshape(count, height + 1, 2, width + 1, 2, channels).swapaxes(2, 3)
  x = x.reshape(count, height + 1, width + 1, 4 * channels)
  windows = [
    x[:, i : i + height, j : j + width] for i in (0, 1) for j in (0, 1)
  ]
  kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
  kernel = kernel.reshape(2, 2, 2, 2, channels, -1).swapaxes(1, 2)
  kernel = kernel.reshape(16 * channels, -1)
  return jnp.einsum("nhwi,io->nhwo", jnp.concatenate(windows, -1), kernel)
