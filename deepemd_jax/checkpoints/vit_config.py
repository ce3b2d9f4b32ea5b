"""The JSON files that describe the weights of a vision transformer."""

import pathlib
import reprlib
from typing import Any, NamedTuple

from deepemd_jax.checkpoints import vit_weights
from deepemd_jax.config import stored
from deepemd_jax.errors import InputError
from deepemd_jax.models import vit

_LARGEST = 2**20  # bytes of a JSON file; one may list a thousand classes
# The fields that a config.json may leave out, with the defaults of
# `transformers`.
_COMMON = {
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "num_channels": 3,
  "image_size": 224,
  "patch_size": 16,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-6,
}
_DINOV2 = {
  "mlp_ratio": 4.0,
  "use_swiglu_ffn": False,
  "qkv_bias": True,
}
# The largest values that are accepted from an untrusted file.
_MOST = 2**14
_MOST_SIDE = 256  # patches
_MOST_PIXELS = 4096


class _Family(NamedTuple):
  """A kind of model.

  Attributes:
    fields: the fields of its config.json, with defaults.
    names: the names of its tensors.
    settings: fields of `vit.Architecture` that all models of the kind share.
    biasless: the last parts of the names of layers without a bias.
  """

  fields: dict[str, Any]
  names: vit_weights.Names
  settings: dict[str, Any] = {}
  biasless: tuple[str, ...] = ()


_CLIP = _Family(
  _COMMON
  | {
    "intermediate_size": 3072,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
  },
  vit_weights.CLIP,
  {"norm_before": True, "norm_after": False},
  ("patch_embedding",),
)
_SIGLIP = _Family(
  _COMMON | {"intermediate_size": 3072, "hidden_act": "gelu_pytorch_tanh"},
  vit_weights.CLIP,
  {"class_token": False},
)
_FAMILIES = {
  "dinov2": _Family(_COMMON | _DINOV2 | {"patch_size": 14}, vit_weights.DINOV2),
  "dinov2_with_registers": _Family(
    _COMMON | _DINOV2 | {"num_register_tokens": 4},
    vit_weights.DINOV2,
    {"antialias": True},
  ),
  "dinov3_vit": _Family(
    _COMMON
    | {
      "hidden_size": 384,
      "num_attention_heads": 6,
      "intermediate_size": 1536,
      "layer_norm_eps": 1e-5,
      "rope_theta": 100.0,
      "num_register_tokens": 0,
      "use_gated_mlp": False,
      **{f"{name}_bias": True for name in ("query", "value", "proj", "mlp")},
      "key_bias": False,
    },
    vit_weights.DINOV3,
  ),
  "clip": _CLIP,
  "clip_vision_model": _CLIP,
  "siglip": _SIGLIP,
  "siglip_vision_model": _SIGLIP,
}
# Switches of a config.json, and the layers whose biases they turn on.
_BIASES = {
  "qkv_bias": ("query", "key", "value"),
  "query_bias": ("q_proj",),
  "key_bias": ("k_proj",),
  "value_bias": ("v_proj",),
  "proj_bias": ("o_proj",),
  "mlp_bias": ("gate_proj", "up_proj", "down_proj"),
}


class Described(NamedTuple):
  """The content of a config.json.

  Attributes:
    architecture: the architecture of the network.
    names: the names of its layers in the file of weights.
    biasless: the last parts of the names of layers without a bias.
  """

  architecture: vit.Architecture
  names: vit_weights.Names
  biasless: frozenset[str]


def read(path: pathlib.Path) -> dict:
  """Reads the JSON object in a file of a folder.

  Raises:
    InputError: the file cannot be read, or is not a JSON object.
  """
  return stored.read_object(path, "the config of a run or a model", _LARGEST)


def described(path: pathlib.Path) -> Described:
  """Reads a config.json.

  Raises:
    InputError: it is damaged, or its model is of another kind.
  """
  given = read(path)
  kind = given.get("model_type")
  if not isinstance(kind, str) or kind not in _FAMILIES:
    raise InputError(
      f"in {str(path)!r} model_type is {reprlib.repr(kind)}; use one of "
      f"{', '.join(_FAMILIES)}"
    )
  family = _FAMILIES[kind]
  if kind in ("clip", "siglip"):
    given = given.get("vision_config", {})
    if not isinstance(given, dict):
      raise InputError(
        f"in {str(path)!r} vision_config should be an object with named fields"
      )
  fields = {
    name: _checked(given.get(name, default), default, name, path)
    for name, default in family.fields.items()
  }
  off = [x for x, layers in _BIASES.items() if not fields.get(x, True)]
  biasless = {layer for switch in off for layer in _BIASES[switch]}
  names = family.names
  if fields.get("use_swiglu_ffn"):
    names = vit_weights.DINOV2_GATED
  architecture = _architecture(fields, family, path)
  biasless |= set(family.biasless)
  return Described(architecture, names, frozenset(biasless))


def _checked(value, default, name: str, path: pathlib.Path):
  """Returns the value if it has the default's kind and a reasonable size."""
  if isinstance(default, bool):
    fits, kind = isinstance(value, bool), "true or false"
  elif isinstance(default, str):
    fits = isinstance(value, str) and value in vit.ACTIVATIONS
    kind = f"one of {', '.join(vit.ACTIVATIONS)}"
  elif isinstance(default, int):
    least = int(default > 0)
    fits = type(value) is int and least <= value <= _MOST
    kind = f"a whole number from {least} to {_MOST}"
  else:
    fits = type(value) in (int, float) and 0 < value <= _MOST
    kind = f"a number above 0, up to {_MOST}"
  if name == "num_channels":
    fits, kind = value == 3, "3"
  if not fits:
    raise InputError(
      f"in {str(path)!r} {name} is {reprlib.repr(value)}, which should be "
      f"{kind}"
    )
  return value


def _architecture(fields: dict, family: _Family, path) -> vit.Architecture:
  width, heads = fields["hidden_size"], fields["num_attention_heads"]
  rotary = "rope_theta" in fields
  if width % heads or (rotary and width // heads % 4):
    raise InputError(
      f"in {str(path)!r} hidden_size is {width} and num_attention_heads "
      f"{heads}, which do not fit together"
    )
  grid = 0 if rotary else fields["image_size"] // fields["patch_size"]
  if not rotary and not 1 <= grid <= _MOST_SIDE:
    raise InputError(
      f"in {str(path)!r} image_size is {fields['image_size']} and patch_size "
      f"{fields['patch_size']}, which do not fit together"
    )
  gated = fields.get("use_swiglu_ffn") or fields.get("use_gated_mlp", False)
  activation = fields["hidden_act"]
  hidden = fields.get("intermediate_size")
  if hidden is None:
    hidden = int(width * fields["mlp_ratio"])
    if gated:  # two thirds of it, a multiple of 8, and always with SiLU
      hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
      activation = "silu"
  return vit.Architecture(
    width=width,
    hidden=hidden,
    depth=fields["num_hidden_layers"],
    heads=heads,
    patch=fields["patch_size"],
    grid=grid,
    rotary_base=float(fields.get("rope_theta", 0)),
    registers=fields.get("num_register_tokens", 0),
    activation=activation,
    gated=gated,
    epsilon=fields["layer_norm_eps"],
    **family.settings,
  )


def images(path: pathlib.Path) -> tuple[int, tuple, tuple]:
  """Reads a preprocessor_config.json.

  Returns:
    The side of images in pixels, the gray levels (0 to 255) to subtract, and
    the gray levels to divide by. Each has three colors.

  Raises:
    InputError: it is damaged, or images are not square.
  """
  given = read(path)
  size = given.get("size")
  if given.get("crop_size") and given.get("do_center_crop") is not False:
    size = given["crop_size"]
  sides = list(size.values()) if isinstance(size, dict) else [size]
  side = sides[0] if sides else None
  if (
    type(side) is not int
    or not 1 <= side <= _MOST_PIXELS
    or any(other != side for other in sides)
  ):
    raise InputError(
      f"in {str(path)!r} the size of images is {reprlib.repr(size)}, which "
      f"should be one whole number of pixels, up to {_MOST_PIXELS}"
    )
  scale = given.get("rescale_factor", 1 / 255)
  if given.get("do_rescale") is False:
    scale = 1
  mean, std = given.get("image_mean", ()), given.get("image_std", ())
  if given.get("do_normalize") is False:
    mean, std = [0.0] * 3, [1.0] * 3
  for name, value, least in (
    ("rescale_factor", [scale], 1e-4),
    ("image_mean", mean, -1e3),
    ("image_std", std, 1e-4),
  ):
    count = 1 if name == "rescale_factor" else 3
    if (
      not isinstance(value, list)
      or len(value) != count
      or not all(type(x) in (int, float) and least <= x <= 1e3 for x in value)
    ):
      raise InputError(
        f"in {str(path)!r} {name} is {reprlib.repr(given.get(name))}, which "
        f"should be {count} numbers"
      )
  return side, tuple(x / scale for x in mean), tuple(x / scale for x in std)
