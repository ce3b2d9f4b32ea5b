"""Converts the tensors of Hugging Face's vision transformers to parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepemd_jax.errors import InputError
from deepemd_jax.models import vit
from deepemd_jax.models.backbone import Variables


class Names(NamedTuple):
  """The names of a family's layers; "" stands for a layer that it lacks.

  Attributes:
    patches: the first convolution.
    class_token: a tensor, the class token.
    registers: a tensor, the tokens after the class token.
    positions: a tensor, the positions of the class token, if there is one, and
      of the patches.
    norm_before: the normalization before the first block.
    norm_after: the normalization after the last block.
    block: the prefix of a block, with a field for its number. The names below
      follow this prefix.
    norms: the normalizations before the attention and before the perceptron.
    inward: the maps to query, key and value.
    project: the map after the attention.
    gate: the gate of a gated perceptron; "" if it is the first half of `up`.
    up: the map to the perceptron's hidden channels.
    down: the map from the perceptron's hidden channels.
    scales: tensors that multiply the outputs of attention and perceptron.
  """

  patches: str
  class_token: str
  registers: str
  positions: str
  norm_before: str
  norm_after: str
  block: str
  norms: tuple[str, str]
  inward: tuple[str, str, str]
  project: str
  gate: str
  up: str
  down: str
  scales: tuple[str, str] = ("", "")


DINOV2 = Names(
  patches="embeddings.patch_embeddings.projection",
  class_token="embeddings.cls_token",
  registers="embeddings.register_tokens",
  positions="embeddings.position_embeddings",
  norm_before="",
  norm_after="layernorm",
  block="encoder.layer.{}.",
  norms=("norm1", "norm2"),
  inward=(
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
  ),
  project="attention.output.dense",
  gate="",
  up="mlp.fc1",
  down="mlp.fc2",
  scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
DINOV2_GATED = DINOV2._replace(up="mlp.weights_in", down="mlp.weights_out")
DINOV3 = DINOV2._replace(
  patches="embeddings.patch_embeddings",
  positions="",
  norm_after="norm",
  block="layer.{}.",
  inward=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
  project="attention.o_proj",
  gate="mlp.gate_proj",
  up="mlp.up_proj",
  down="mlp.down_proj",
)
CLIP = Names(
  patches="embeddings.patch_embedding",
  class_token="embeddings.class_embedding",
  registers="",
  positions="embeddings.position_embedding.weight",
  norm_before="pre_layrnorm",  # misspelled in the files
  norm_after="post_layernorm",  # in CLIP, only for the class token
  block="encoder.layers.{}.",
  norms=("layer_norm1", "layer_norm2"),
  inward=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
  project="self_attn.out_proj",
  gate="",
  up="mlp.fc1",
  down="mlp.fc2",
)


class _State:
  """A state dict whose tensors are checked when they are used."""

  def __init__(self, state, names: Names, biasless, where: str) -> None:
    self._state, self._biasless, self._where = state, biasless, where
    anchor = f"{names.patches}.weight"
    # In a larger model, the name of the tower precedes all its names.
    found = [name[: -len(anchor)] for name in state if name.endswith(anchor)]
    found = [name for name in found if not name or name.endswith(".")]
    if len(found) != 1:
      raise InputError(
        f"{where} has {len(found) or 'no'} tensors {anchor}, but should have "
        "one: these are not the weights that config.json describes"
      )
    self._prefix = found[0]

  def tensor(self, name: str, *shape: int) -> np.ndarray:
    """Returns a tensor of this shape. In the state dict it may have more axes
    of length 1 in front."""
    name = self._prefix + name
    found = self._state.get(name)
    if found is None:
      raise InputError(
        f"{self._where} has no tensor {name}, which config.json requires; "
        "download the files again"
      )
    extra = len(found.shape) - len(shape)
    if extra < 0 or found.shape != (1,) * extra + shape:
      raise InputError(
        f"in {self._where} {name} has shape {list(found.shape)}, but by "
        f"config.json should have {list(shape)}; download the files again"
      )
    if not jnp.issubdtype(found.dtype, jnp.floating):
      raise InputError(
        f"in {self._where} {name} is {found.dtype}, but should be "
        "floating-point numbers; download the files again"
      )
    return found.reshape(shape).astype(np.float32)

  def norm(self, name: str, width: int) -> dict[str, np.ndarray]:
    scale, bias = (self.tensor(f"{name}.{x}", width) for x in _PAIR)
    return {"scale": scale, "bias": bias}

  def linear(self, name: str, channels_in: int, channels_out: int):
    kernel = self.tensor(f"{name}.weight", channels_out, channels_in)
    return {"kernel": kernel.T, "bias": self.bias(name, channels_out)}

  def bias(self, name: str, channels: int) -> np.ndarray:
    if name.rpartition(".")[2] in self._biasless:
      return np.zeros(channels, np.float32)
    return self.tensor(f"{name}.bias", channels)


_PAIR = "weight", "bias"


def from_torch(
  state: Mapping[str, Any],
  architecture: vit.Architecture,
  names: Names,
  biasless: frozenset[str],
  where: str,
) -> Variables:
  """Converts a state dict to variables of NumPy float32 arrays.

  Args:
    state: {name: array}. Tensors that are not needed are not read.
    architecture: the architecture of the network.
    names: the names of its layers.
    biasless: the last parts of the names of layers without a bias.
    where: the origin of the tensors, for messages.

  Raises:
    InputError: a tensor is missing, has another shape, or does not contain
      floating-point numbers.
  """
  a, own = architecture, _State(state, names, biasless, where)
  kernel = own.tensor(f"{names.patches}.weight", a.width, 3, a.patch, a.patch)
  kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, a.width)
  bias = own.bias(names.patches, a.width)
  params: dict[str, Any] = {"patches": {"kernel": kernel, "bias": bias}}
  positions = np.zeros((int(a.class_token), a.width), np.float32)
  if a.grid:
    count = a.class_token + a.grid**2
    positions = own.tensor(names.positions, count, a.width)
    table = positions[a.class_token :].reshape(a.grid, a.grid, a.width)
    params["positions"] = {"table": table}
  if a.prefix:
    first = positions[: a.class_token]
    if a.class_token:
      first = first + own.tensor(names.class_token, a.width)
    if a.registers:
      more = own.tensor(names.registers, a.registers, a.width)
      first = np.concatenate([first, more])
    params["prefix"] = {"tokens": first}
  if a.norm_before:
    params["norm_before"] = own.norm(names.norm_before, a.width)
  for i in range(a.depth):
    params[f"block{i}"] = _block(own, a, names, names.block.format(i))
  if a.norm_after:
    params["norm_after"] = own.norm(names.norm_after, a.width)
  params = jax.tree.map(np.ascontiguousarray, params)
  return {"params": params, "batch_stats": {}}


def _block(own: _State, a: vit.Architecture, names: Names, block: str) -> dict:
  inward = [own.linear(block + name, a.width, a.width) for name in names.inward]
  found = {
    "norm1": own.norm(block + names.norms[0], a.width),
    "attention": {
      leaf: np.concatenate([x[leaf] for x in inward], -1)
      for leaf in ("kernel", "bias")
    },
    "project": own.linear(block + names.project, a.width, a.width),
    "norm2": own.norm(block + names.norms[1], a.width),
    "down": own.linear(block + names.down, a.hidden, a.width),
  }
  if a.gated and not names.gate:
    both = own.linear(block + names.up, a.width, 2 * a.hidden)
    for name, half in (
      ("gate", slice(a.hidden)),
      ("up", slice(a.hidden, None)),
    ):
      found[name] = {leaf: x[..., half] for leaf, x in both.items()}
  else:
    found["up"] = own.linear(block + names.up, a.width, a.hidden)
    if a.gated:
      found["gate"] = own.linear(block + names.gate, a.width, a.hidden)
  for layer, scale in zip(("project", "down"), names.scales, strict=True):
    if scale:
      scale = own.tensor(block + scale, a.width)
      found[layer] = {leaf: x * scale for leaf, x in found[layer].items()}
  return found
