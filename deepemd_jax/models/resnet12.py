"""ResNet-12, the backbone of DeepEMD and of most few-shot papers since 2019.

The network has four residual blocks. Each has three 3x3 convolutions with batch
norm, LeakyReLU 0.1 and a 1x1 shortcut, followed by a 2x2 max pool that drops
odd borders. So 84x84 images give a 5x5 map. For small images the last blocks
may omit the pool (`pools`): with three pools, 40x40 images give a 5x5 map.
There is no global pooling: the cells of the map are the local descriptors that
DeepEMD matches.

The module is Flax NNX. The rest of the program sees plain nested dicts,
`variables = {"params": ..., "batch_stats": ...}`, through `init` and `apply`,
or as a `Backbone` through `create`. Block and layer names are PyTorch's
(`layer1.conv1`, ...).

With `precision="bfloat16"` convolutions and activations are computed in
bfloat16. Parameters, the statistics and the arithmetic of batch norm, and the
resulting maps stay float32, so that both precisions share variables.

References:
  Zhang, Cai, Lin, Shen, "DeepEMD", CVPR 2020, section 4.1.
  Lee, Maji, Ravichandran, Soatto, "Meta-Learning with Differentiable Convex
  Optimization", CVPR 2019 (the architecture).
  Micikevicius et al., "Mixed Precision Training", ICLR 2018 (float32 copies of
  parameters); Kalamkar et al., "A Study of BFLOAT16 for Deep Learning
  Training", 2019 (no loss scaling is needed).
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from deepemd_jax.models.backbone import PRECISIONS, Backbone, Variables
from deepemd_jax.models.convolution import same_convolution

CHANNELS = (64, 160, 320, 640)
BLOCKS = len(CHANNELS)
_BATCH = (-4, -3, -2)  # the axes that batch norm averages over


def _nnx_convolution(images, kernel, *unused, **unused_options):
  """Calls `same_convolution` with the signature that nnx.Conv uses."""
  del unused, unused_options
  return same_convolution(images, kernel)


def _conv(channels_in: int, channels_out: int, size: int, precision, rngs):
  return nnx.Conv(
    channels_in,
    channels_out,
    (size, size),
    padding="SAME",
    use_bias=False,
    # Kaiming normal, fan-out, for LeakyReLU treated as ReLU, as the original.
    kernel_init=jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    conv_general_dilated=_nnx_convolution,
    # The dtype of the computation; parameters are float32. With None, it is
    # that of the images.
    dtype=jnp.bfloat16 if precision == "bfloat16" else None,
    rngs=rngs,
  )


class BatchNorm(nnx.Module):
  """Batch normalization with PyTorch's running statistics.

  Flax's own layer keeps the biased variance. PyTorch, and so every published
  ResNet-12 checkpoint, keeps the unbiased one. In [..., N, H, W, C], each
  [N, H, W, C] is a batch of its own, with its own running statistics, [..., C].
  """

  def __init__(self, channels: int, *, momentum=0.9, epsilon=1e-5):
    # Without a dtype, these would be float64 under JAX_ENABLE_X64.
    zeros, ones = jnp.zeros(channels, "float32"), jnp.ones(channels, "float32")
    self.scale, self.bias = nnx.Param(ones), nnx.Param(zeros)
    self.mean, self.var = nnx.BatchStat(zeros), nnx.BatchStat(ones)
    self.momentum = momentum
    self.epsilon = epsilon

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    dtype, x = x.dtype, _at_least_float32(x)
    if train:
      mean = x.mean(_BATCH)
      var = jnp.maximum((x * x).mean(_BATCH) - mean * mean, 0.0)
      count = math.prod(x.shape[-4:-1])
      unbiased = var * (count / max(count - 1, 1))
      keep = self.momentum
      self.mean.set_value(keep * self.mean[...] + (1 - keep) * mean)
      self.var.set_value(keep * self.var[...] + (1 - keep) * unbiased)
    else:
      mean, var = self.mean[...], self.var[...]
    scale = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
    shift = self.bias[...] - mean * scale
    scale, shift = (jnp.expand_dims(y, _BATCH) for y in (scale, shift))
    return (x * scale + shift).astype(dtype)


def _at_least_float32(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _max_pool(x: jax.Array) -> jax.Array:
  """Pools 2x2 with stride 2 and drops odd borders.

  It takes the maximum of slices, because the gradient of `reduce_window` is
  eight times slower on a CPU.
  """
  height, width = (side // 2 * 2 for side in x.shape[-3:-1])
  x = jnp.maximum(x[..., 0:height:2, :, :], x[..., 1:height:2, :, :])
  return jnp.maximum(x[..., 0:width:2, :], x[..., 1:width:2, :])


def _leaky_relu(x: jax.Array) -> jax.Array:
  return jax.nn.leaky_relu(x, 0.1)


class Block(nnx.Module):
  """Three 3x3 convolutions, a 1x1 shortcut and, with `pool`, a 2x2 max pool."""

  def __init__(
    self,
    channels_in: int,
    channels_out: int,
    *,
    pool: bool = True,
    precision: str = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    conv = functools.partial(_conv, precision=precision, rngs=rngs)
    self.conv1 = conv(channels_in, channels_out, 3)
    self.bn1 = BatchNorm(channels_out)
    self.conv2 = conv(channels_out, channels_out, 3)
    self.bn2 = BatchNorm(channels_out)
    self.conv3 = conv(channels_out, channels_out, 3)
    self.bn3 = BatchNorm(channels_out)
    self.downsample_conv = conv(channels_in, channels_out, 1)
    self.downsample_bn = BatchNorm(channels_out)
    self.pool = pool

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    y = _leaky_relu(self.bn1(self.conv1(x), train=train))
    y = _leaky_relu(self.bn2(self.conv2(y), train=train))
    y = self.bn3(self.conv3(y), train=train)
    shortcut = self.downsample_bn(self.downsample_conv(x), train=train)
    y = _leaky_relu(y + shortcut)
    return _max_pool(y) if self.pool else y


class ResNet12(nnx.Module):
  """A network from images [N, H, W, 3] to maps [N, H // 16, W // 16, C].

  C is channels[-1]. With `pools` below 4, only the first blocks halve the map,
  which then has sides of H // 2**pools and W // 2**pools.

  Several batches [..., N, H, W, 3] go through the convolutions together, and
  through batch norm separately. `jax.vmap` would compute the same. But its
  gradient would make kernel gradients for each batch before adding them up, by
  grouped convolutions or batched products, which take up to twice as long.

  Convolutions and activations are computed in the precision, "float32" or
  "bfloat16". Maps are always float32.
  """

  def __init__(
    self,
    channels: tuple[int, ...] = CHANNELS,
    *,
    pools: int = BLOCKS,
    precision: str = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    if precision not in PRECISIONS:
      raise ValueError(f"precision is {precision!r}; use one of {PRECISIONS}")
    block = functools.partial(Block, precision=precision, rngs=rngs)
    self.layer1 = block(3, channels[0], pool=pools > 0)
    self.layer2 = block(channels[0], channels[1], pool=pools > 1)
    self.layer3 = block(channels[1], channels[2], pool=pools > 2)
    self.layer4 = block(channels[2], channels[3], pool=pools > 3)

  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    x = images
    for block in (self.layer1, self.layer2, self.layer3, self.layer4):
      x = block(x, train=train)
    return _at_least_float32(x)


def channels_for(width: float) -> tuple[int, ...]:
  """Returns the channels of the four blocks: `width` times the published."""
  return tuple(max(1, round(c * width)) for c in CHANNELS)


def init(key: jax.Array, *, width: float = 1.0) -> Variables:
  """Makes variables of a ResNet-12 `width` times as wide as the published."""
  return _init(key, width)


@functools.partial(jax.jit, static_argnums=1)
def _init(key: jax.Array, width: float) -> Variables:
  return to_variables(ResNet12(channels_for(width), rngs=nnx.Rngs(key)))


def to_variables(module: nnx.Module) -> Variables:
  """Returns the parameters and running statistics as plain nested dicts."""
  _, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
  return {
    "params": nnx.to_pure_dict(params),
    "batch_stats": nnx.to_pure_dict(stats),
  }


@functools.lru_cache(maxsize=8)
def _abstract(channels: tuple[int, ...], precision: str, pools: int):
  module = nnx.eval_shape(
    lambda: ResNet12(
      channels, pools=pools, precision=precision, rngs=nnx.Rngs(0)
    )
  )
  return nnx.split(module, nnx.Param, nnx.BatchStat)


def to_module(
  variables: Variables, precision: str = "float32", pools: int = BLOCKS
) -> ResNet12:
  """Returns the module with `variables`, whose shapes give its width.

  Their shapes do not give `pools`, which must be that of their training.
  """
  blocks = variables["params"]
  channels = tuple(
    blocks[f"layer{i}"]["conv1"]["kernel"].shape[-1] for i in range(1, 5)
  )
  graph, params, stats = _abstract(channels, precision, pools)
  # replace_by_pure_dict writes in place, so the cached states are copied first.
  params, stats = (jax.tree.map(lambda x: x, s) for s in (params, stats))
  variables = jax.tree.map(jnp.asarray, variables)
  nnx.replace_by_pure_dict(params, variables["params"])
  nnx.replace_by_pure_dict(stats, variables["batch_stats"])
  # copy=True: without it NNX refuses to update statistics under a transform.
  return nnx.merge(graph, params, stats, copy=True)


def apply(
  variables: Variables,
  images: jax.Array,
  *,
  train: bool,
  precision: str = "float32",
  pools: int = BLOCKS,
) -> tuple[jax.Array, dict]:
  """Runs the network.

  Args:
    variables: {"params", "batch_stats"} from `init` or a checkpoint.
    images: [..., N, H, W, 3], normalized, float32.
    train: whether to normalize by the batch's statistics and update the running
      ones.
    precision: see `ResNet12`.
    pools: see `ResNet12`.

  Returns:
    The maps [..., N, H // 2**pools, W // 2**pools, C], and the running
    statistics, float32, which have the leading axes if they were updated.
  """
  module = to_module(variables, precision, pools)
  maps = module(images, train=train)
  return maps, to_variables(module)["batch_stats"]


@functools.partial(jax.jit, static_argnames="precision")
def encode(
  variables: Variables, images: jax.Array, precision: str = "float32"
) -> jax.Array:
  """Computes maps in evaluation mode: [N, H, W, 3] -> [N, h, w, c]."""
  return apply(variables, images, train=False, precision=precision)[0]


@functools.cache
def create(
  *, width: float = 1.0, precision: str = "float32", pools: int = BLOCKS
) -> Backbone:
  """Makes a backbone of a ResNet-12.

  Args:
    width: its channels, as a multiple of the published 64, 160, 320, 640.
    precision: dtype of convolutions and activations, "float32" or "bfloat16".
    pools: the number of blocks, counted from the first, that halve the map; 1
      to 4.
  """
  return Backbone(
    init=functools.partial(init, width=width),
    apply=functools.partial(apply, precision=precision, pools=pools),
    stride=2**pools,
    channels=channels_for(width)[-1],
    image_size=84,
    # The statistics of ImageNet's training images in the official code.
    mean=(125.3, 123.0, 113.9),
    std=(63.0, 62.1, 66.7),
  )
