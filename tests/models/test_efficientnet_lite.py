"""EfficientNet-Lite with its published weights agrees with PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDEN

from deepemd_jax.checkpoints import published, torch_file
from deepemd_jax.errors import InputError
from deepemd_jax.models import convolution, efficientnet_lite

SOAK = pytest.mark.soak


def some_images(size):
  """Draws the images of golden/efficientnet_lite/record.py; returns the rng."""
  rng = np.random.default_rng(list(efficientnet_lite.SIZES).index(size))
  side = efficientnet_lite.SIZES[size].image_size
  return rng.random((1, side, side, 3), np.float32) * 2 - 1, rng


@functools.cache
def maps_of(size):
  """Returns the maps of `some_images`, in float32."""
  return jax.jit(efficientnet_lite.feature_maps, static_argnames="size")(
    published.read(efficientnet_lite.create(size).weights),
    some_images(size)[0],
    size=size,
  )


@pytest.mark.parametrize(
  "size",
  ["lite0", *(pytest.param(x, marks=SOAK) for x in ("lite1", "lite2"))],
)
def test_every_block_gives_what_pytorch_gives(size):
  recorded = np.load(GOLDEN / "efficientnet_lite" / f"{size}.npz")
  _, rng = some_images(size)
  maps = maps_of(size)
  assert len(maps) == len(recorded["largest"])
  for x, largest, values in zip(maps, *recorded.values(), strict=True):
    found = np.ravel(x)[rng.integers(0, x.size, 64)]
    np.testing.assert_allclose(found, values, atol=1e-4 * largest)
    np.testing.assert_allclose(np.abs(x).max(), largest, rtol=1e-4)


def images_and_kernel(shape, side, channels_in, channels):
  rng = np.random.default_rng(0)
  shapes = (2, *shape, 3), (side, side, channels_in, channels)
  return [jnp.asarray(rng.normal(size=x), jnp.float32) for x in shapes]


@pytest.mark.parametrize(
  ("shape", "kernel", "stride"),
  [((8, 5), 3, 2), ((7, 6), 5, 2), ((2, 3), 5, 1)],
)
def test_the_sum_of_shifts_is_a_depthwise_convolution(shape, kernel, stride):
  x, taps = images_and_kernel(shape, kernel, 1, 3)
  found = jax.jit(convolution._sum_of_shifts, static_argnums=2)(x, taps, stride)
  expected = convolution._strided(x, taps, stride, groups=3)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 5), (7, 6), (1, 1)])
def test_the_product_is_a_convolution_with_stride_2(shape):
  x, kernel = images_and_kernel(shape, 3, 3, 4)
  found = jax.jit(convolution._halving_by_product)(x, kernel)
  expected = convolution._strided(x, kernel, 2, groups=1)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_is_near():
  images, _ = some_images("lite0")
  half = efficientnet_lite.lite0(precision="bfloat16")
  maps = maps_of("lite0")[-1]
  near = half.encode(published.read(half.weights), images)
  assert near.dtype == np.float32
  error = np.linalg.norm(near - maps) / np.linalg.norm(maps)
  assert 1e-4 < error < 0.1
  with pytest.raises(ValueError, match="float16"):
    efficientnet_lite.lite0(precision="float16")


def test_the_weights_of_another_size_are_told():
  weights = efficientnet_lite.lite0().weights
  state = torch_file.load(published.find(weights.package), weights.sha256)
  with pytest.raises(InputError, match="not the weights of efficientnet_lite2"):
    efficientnet_lite.from_torch(state, size="lite2")
  del state["_conv_head.weight"]
  with pytest.raises(InputError, match="_conv_head.weight is missing"):
    efficientnet_lite.from_torch(state, size="lite0")
