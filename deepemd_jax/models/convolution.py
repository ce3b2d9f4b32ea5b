"""A stride-1 convolution whose weight gradient is fast on CPUs, too."""

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
