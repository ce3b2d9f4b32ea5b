"""Vision transformers: DINOv2, DINOv3, and the image towers of CLIP and SigLIP.

An image is cut into patches, each of which becomes a token. The final tokens of
the patches are the map. The class token and the registers come before them and
are not part of the map. `checkpoints.hugging_face` reads the weights.

`Architecture` has all the differences between the families. Two of their parts
are folded into others when weights are read: the scale of a layer's output into
its last kernel, and the class token's position into that token.

References:
  Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021,
  https://arxiv.org/abs/2010.11929.
  Radford et al., "Learning Transferable Visual Models From Natural Language
  Supervision", ICML 2021, https://arxiv.org/abs/2103.00020 (CLIP).
  Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision",
  TMLR 2024, https://arxiv.org/abs/2304.07193.
  Darcet et al., "Vision Transformers Need Registers", ICLR 2024,
  https://arxiv.org/abs/2309.16588.
  Tschannen et al., "SigLIP 2", 2025, https://arxiv.org/abs/2502.14786.
  Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from deepemd_jax.models import token_positions
from deepemd_jax.models.backbone import (
  PRECISIONS,
  Backbone,
  FolderWeights,
  Variables,
)

ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "silu": jax.nn.silu,
}
# The number of token similarities that a call may hold at a time: 0.5 GB.
_MOST_SIMILARITIES = 2**27


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The architecture of a vision transformer, without its weights.

  Attributes:
    width: number of channels of a token.
    hidden: number of channels within a block's perceptron.
    depth: number of blocks.
    heads: number of attention heads, a divisor of the width.
    patch: side of a patch in pixels.
    grid: patches along a side of the table of positions, which is interpolated
      for images of another size; 0 if positions are rotations.
    antialias: whether the table is averaged, not sampled, for smaller images.
    rotary_base: base of the frequencies of the rotations.
    class_token: whether there is a class token.
    registers: number of tokens after the class token that belong to no patch.
    activation: activation of the perceptrons, a key of `ACTIVATIONS`.
    gated: whether a perceptron has a gate, whose activation it multiplies by.
    norm_before: whether tokens are normalized before the first block.
    norm_after: whether tokens are normalized after the last block.
    epsilon: epsilon of the normalization.
  """

  width: int
  hidden: int
  depth: int
  heads: int
  patch: int
  grid: int
  antialias: bool = False
  rotary_base: float = 100.0
  class_token: bool = True
  registers: int = 0
  activation: str = "gelu"
  gated: bool = False
  norm_before: bool = False
  norm_after: bool = True
  epsilon: float = 1e-6

  @property
  def prefix(self) -> int:
    """The number of tokens before those of the patches."""
    return self.class_token + self.registers


@functools.cache
def create(
  architecture: Architecture,
  *,
  image_size: int,
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
  weights: FolderWeights | None = None,
  precision: str = "float32",
) -> Backbone:
  """Makes a backbone of a vision transformer.

  Args:
    architecture: the architecture.
    image_size: see `Backbone`.
    mean: see `Backbone`.
    std: see `Backbone`.
    weights: the folder with the weights; None makes random ones.
    precision: dtype of tokens and products, "float32" or "bfloat16".
      Normalization and attention weights are always float32.

  Raises:
    ValueError: precision is neither "float32" nor "bfloat16".
  """
  if precision not in PRECISIONS:
    raise ValueError(f"precision is {precision!r}; use one of {PRECISIONS}")
  return Backbone(
    init=functools.partial(init, architecture=architecture),
    apply=functools.partial(
      apply, architecture=architecture, precision=precision
    ),
    stride=architecture.patch,
    channels=architecture.width,
    image_size=image_size,
    mean=mean,
    std=std,
    weights=weights,
  )


def shapes(architecture: Architecture) -> dict[str, Any]:
  """Returns the tree of the parameters, with the shape of each in its place."""
  a = architecture
  norm = {"scale": (a.width,), "bias": (a.width,)}

  def linear(channels_in: int, channels_out: int) -> dict[str, tuple]:
    return {"kernel": (channels_in, channels_out), "bias": (channels_out,)}

  tree: dict[str, Any] = {"patches": linear(3 * a.patch**2, a.width)}
  if a.prefix:
    tree["prefix"] = {"tokens": (a.prefix, a.width)}
  if a.grid:
    tree["positions"] = {"table": (a.grid, a.grid, a.width)}
  if a.norm_before:
    tree["norm_before"] = norm
  for i in range(a.depth):
    tree[f"block{i}"] = {
      "norm1": norm,
      "attention": linear(a.width, 3 * a.width),
      "project": linear(a.width, a.width),
      "norm2": norm,
      **({"gate": linear(a.width, a.hidden)} if a.gated else {}),
      "up": linear(a.width, a.hidden),
      "down": linear(a.hidden, a.width),
    }
  if a.norm_after:
    tree["norm_after"] = norm
  return tree


def init(key: jax.Array, *, architecture: Architecture) -> Variables:
  """Makes random variables, with the shapes of those that are read."""
  tree = shapes(architecture)
  paths, structure = jax.tree.flatten_with_path(
    tree, is_leaf=lambda x: isinstance(x, tuple)
  )
  leaves = []
  for number, (path, shape) in enumerate(paths):
    if path[-1].key in ("scale", "bias"):
      value = float(path[-1].key == "scale")
      leaves.append(jnp.full(shape, value, jnp.float32))
    else:
      own = jax.random.fold_in(key, number)
      normal = jax.random.normal(own, shape, jnp.float32)
      leaves.append(normal / shape[0] ** 0.5)
  return {"params": jax.tree.unflatten(structure, leaves), "batch_stats": {}}


def apply(
  variables: Variables,
  images: jax.Array,
  *,
  train: bool,
  architecture: Architecture,
  precision: str = "float32",
) -> tuple[jax.Array, dict]:
  """Runs the network.

  Args:
    variables: the weights, as `init` makes them or `checkpoints.hugging_face`
      reads them.
    images: [..., N, H, W, 3], normalized, float32. If the patch does not divide
      a side, the pixels after the last patch are ignored.
    train: has no effect, because there are no running statistics.
    architecture: the architecture.
    precision: dtype of tokens and products.

  Returns:
    The maps [..., N, H // patch, W // patch, width], float32, and {}.
  """
  del train
  *batch, height, width, colors = images.shape
  flat = images.reshape(-1, height, width, colors)
  run = functools.partial(
    tokens, variables, architecture=architecture, precision=precision
  )
  _, maps = _some_at_a_time(run, flat, architecture)
  return maps.reshape(*batch, *maps.shape[1:]), {}


def _some_at_a_time(run, images: jax.Array, architecture: Architecture):
  """Runs the network on a few images at a time, to bound the memory of the
  attention, which grows with the fourth power of an image's side."""
  count, height, width, _ = images.shape
  patches = (height // architecture.patch) * (width // architecture.patch)
  similarities = architecture.heads * (patches + architecture.prefix) ** 2
  # A program for any number of images, as `export` makes, runs all at a time.
  if not isinstance(count, int) or count * similarities <= _MOST_SIMILARITIES:
    return run(images)
  most = max(1, _MOST_SIMILARITIES // similarities)
  size = max(k for k in range(1, min(most, count) + 1) if count % k == 0)
  groups = images.reshape(-1, size, *images.shape[1:])
  found = lax.map(run, groups)
  return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), found)


def tokens(
  variables: Variables,
  images: jax.Array,
  *,
  architecture: Architecture,
  precision: str = "float32",
) -> tuple[jax.Array, jax.Array]:
  """Computes all output tokens of images [N, H, W, 3].

  Returns:
    The tokens that belong to no patch, [N, prefix, width], with the class token
    first, and the map [N, h, w, width]. Both are float32.
  """
  a, params = architecture, variables["params"]
  x = _patches(images.astype(precision), params["patches"], a.patch)
  count, rows, columns, _ = x.shape
  if a.grid:
    table = params["positions"]["table"]
    table = token_positions.resized(table, rows, columns, a.antialias)
    x = x + table.astype(x.dtype)
  x = x.reshape(count, rows * columns, a.width)
  if a.prefix:
    first = params["prefix"]["tokens"].astype(x.dtype)
    first = jnp.broadcast_to(first, (count, *first.shape))
    x = jnp.concatenate([first, x], 1)
  if a.norm_before:
    x = _normalized(x, params["norm_before"], a.epsilon)
  turn = None
  if not a.grid:
    turn = token_positions.rotation(
      a.width // a.heads, rows, columns, base=a.rotary_base, before=a.prefix
    )
  for i in range(a.depth):
    x = _block(x, params[f"block{i}"], a, turn)
  if a.norm_after:
    x = _normalized(x, params["norm_after"], a.epsilon)
  x = x.astype(jnp.float32)
  maps = x[:, a.prefix :].reshape(count, rows, columns, a.width)
  return x[:, : a.prefix], maps


def _patches(images: jax.Array, params: dict, patch: int) -> jax.Array:
  """Computes a token for each patch: [N, H, W, 3] -> [N, h, w, width]."""
  count, height, width, colors = images.shape
  rows, columns = height // patch, width // patch
  x = images[:, : rows * patch, : columns * patch]
  x = x.reshape(count, rows, patch, columns, patch, colors)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return _linear(x.reshape(count, rows, columns, -1), params)


def _block(x: jax.Array, params: dict, a: Architecture, turn) -> jax.Array:
  y = _normalized(x, params["norm1"], a.epsilon)
  x = x + _attention(y, params, a.heads, turn)
  y = _normalized(x, params["norm2"], a.epsilon)
  up = _linear(y, params["up"])
  activate = ACTIVATIONS[a.activation]
  y = activate(_linear(y, params["gate"])) * up if a.gated else activate(up)
  return x + _linear(y, params["down"])


def _attention(x: jax.Array, params: dict, heads: int, turn) -> jax.Array:
  """Computes self-attention of tokens [N, n, width]."""
  count, length, width = x.shape
  x = _linear(x, params["attention"])
  x = x.reshape(count, length, 3, heads, width // heads)
  query, key, value = x.transpose(2, 3, 0, 1, 4)
  if turn is not None:
    query, key = (token_positions.rotated(x, *turn) for x in (query, key))
  # The similarities of one head fit a CPU's cache; those of all heads do not.
  x = lax.platform_dependent(
    *(query, key, value),
    cpu=lambda *heads: lax.map(lambda head: _mixed(*head), heads),
    default=_mixed,
  )
  x = x.transpose(1, 2, 0, 3).reshape(count, length, width)
  return _linear(x, params["project"])


def _mixed(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Averages values, weighted by a softmax of similarities: [..., n, c]."""
  product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  similarity = product(query, key.swapaxes(-1, -2))
  largest = similarity.max(-1, keepdims=True)
  weights = jnp.exp((similarity - largest) * query.shape[-1] ** -0.5)
  total = weights.sum(-1, keepdims=True)
  mean = product(weights.astype(value.dtype), value) / total
  return mean.astype(value.dtype)


def _linear(x: jax.Array, params: dict) -> jax.Array:
  kernel, bias = (params[k].astype(x.dtype) for k in ("kernel", "bias"))
  return x @ kernel + bias


def _normalized(x: jax.Array, params: dict, epsilon: float) -> jax.Array:
  """Applies layer normalization, in float32."""
  wide = x.astype(jnp.float32)
  mean = wide.mean(-1, keepdims=True)
  variance = ((wide - mean) ** 2).mean(-1, keepdims=True)
  wide = (wide - mean) * lax.rsqrt(variance + epsilon)
  return (wide * params["scale"] + params["bias"]).astype(x.dtype)
