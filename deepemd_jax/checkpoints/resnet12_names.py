"""Conversion of ResNet-12's variables to and from the names of PyTorch code.

DeepEMD, FEAT and LibFewShot have the same network, with the same names for its
parts. Their files have different prefixes, and different entries besides it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from deepemd_jax.errors import InputError

_BN = {
  "weight": ("params", "scale"),
  "bias": ("params", "bias"),
  "running_mean": ("batch_stats", "mean"),
  "running_var": ("batch_stats", "var"),
}
# The prefixes of DataParallel, of the network in the code of DeepEMD and FEAT,
# and of LibFewShot, in any order: encoder.module.layer1.0.conv1.weight.
_PREFIXES = re.compile(r"((module|encoder|emb_func)\.)*")
_CLASSIFIER = "fc"  # that of pre-training, in DeepEMD's and FEAT's files
_NAME = re.compile(
  r"(layer[1-4])\.0\.(?:(conv[123]|bn[123])|downsample\.([01]))\.(\w+)"
)


def from_torch(state_dict: Mapping[str, Any]) -> dict:
  """Converts a state dict of the official code's ResNet-12 to our variables.

  Args:
    state_dict: {name: array}, with the names of icoz69/DeepEMD's ResNet. The
      prefixes "module.", "encoder." and "emb_func." are removed. Kernels of
      convolutions are [output, input, height, width]. The pre-training
      classifier (`fc.*`) and `num_batches_tracked` are left out.

  Returns:
    {"params": nested dict, "batch_stats": nested dict} of float32 arrays, as
    `resnet12.init` makes them. Kernels are [height, width, input, output].

  Raises:
    InputError: a name is missing, or no ResNet-12 has it; two names are equal
      without their prefixes; an entry is not an array of floating-point
      numbers, or does not have the shape that the network needs.
  """
  import jax
  import numpy as np

  variables: dict = {"params": {}, "batch_stats": {}}
  extra = []
  for name, value in state_dict.items():
    bare = _bare(name)
    if is_of_classifier(name) or bare.endswith("num_batches_tracked"):
      continue
    match = _NAME.fullmatch(bare)
    target = match and _target(*match.groups())
    if not target:
      extra.append(name)
      continue
    collection, layer, module, leaf = target
    _check_floats(name, value)
    if leaf == "kernel" and value.ndim == 4:
      value = value.transpose(2, 3, 1, 0)
    block = variables[collection].setdefault(layer, {}).setdefault(module, {})
    if leaf in block:
      raise InputError(
        f"not a DeepEMD ResNet-12 checkpoint: {bare} occurs twice, with two "
        "prefixes; leave one of the networks out with --ignore"
      )
    block[leaf] = value
  _check_names(variables, extra)
  _check_shapes(variables)
  # Convert only now, because arrays that are too large would become larger.
  return jax.tree.map(lambda array: np.asarray(array, np.float32), variables)


def _bare(name) -> str:
  """Returns the name of an entry without the prefixes of the network."""
  return _PREFIXES.sub("", name, count=1) if isinstance(name, str) else ""


def _is_below(name, prefix: str) -> bool:
  """Tells whether an entry is `prefix`, or a part of it."""
  return isinstance(name, str) and f"{name}.".startswith(f"{prefix}.")


def is_of_classifier(name) -> bool:
  """Tells whether an entry belongs to the classifier of pre-training."""
  return _is_below(_bare(name), _CLASSIFIER)


def missing(variables: Mapping[str, Any]) -> list[str]:
  """Returns the sorted places of ResNet-12 that variables lack."""
  return sorted(_expected() - _names(variables))


def without(
  state_dict: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Any]:
  """Returns a state dict without some of its parts.

  Args:
    state_dict: see `from_torch`.
    names: the names of the parts. "classifier", for example, leaves out all
      entries below it. A name is the beginning of an entry's name up to a dot,
      with or without the prefixes of the network.

  Raises:
    InputError: no entry has such a name.
  """
  kept = dict(state_dict)
  for part in names:
    below = [x for x in kept if _is_below(x, part) or _is_below(_bare(x), part)]
    if not below:
      raise InputError(
        f"--ignore={part}: no name in the file begins with this part; its "
        f"parts are {', '.join(_parts(state_dict))}"
      )
    for name in below:
      del kept[name]
  return kept


def _parts(state_dict) -> list[str]:
  """Returns the first parts of the names without prefixes, at most nine."""
  parts = {_bare(name).partition(".")[0] for name in state_dict} - {""}
  return [f"{part:.40}" for part in sorted(parts)[:9]]


def _check_names(variables: dict, extra: list) -> None:
  """Raises an error if names of the network are missing, or others exist."""
  lacks = missing(variables)
  if lacks or extra:
    hint = "; leave out a head with --ignore" * (not lacks)
    raise InputError(
      f"not a DeepEMD ResNet-12 checkpoint: {len(lacks)} names missing "
      f"({', '.join(lacks[:5])}), {len(extra)} unknown "
      f"({', '.join(f'{name!s:.80}' for name in sorted(map(str, extra))[:5])})"
      f"{hint}"
    )


def _check_floats(name: str, value) -> None:
  """Raises an error if an entry is not an array of floating-point numbers."""
  import jax.numpy as jnp
  import numpy as np

  if not isinstance(value, np.ndarray | np.generic):
    raise InputError(
      f"not a DeepEMD ResNet-12 checkpoint: {name} is a "
      f"{type(value).__name__}, not a tensor"
    )
  if not jnp.issubdtype(value.dtype, jnp.floating):  # knows bfloat16, too
    raise InputError(
      f"not a DeepEMD ResNet-12 checkpoint: {name} is {value.dtype}, not "
      "floating-point"
    )


def _check_shapes(variables: dict) -> None:
  """Raises an error if arrays do not fit each other, before any is written."""
  import jax

  from deepemd_jax.models import resnet12

  stem = variables["params"]["layer1"]["conv1"]["kernel"]
  width = stem.shape[-1] / resnet12.CHANNELS[0] if stem.ndim else 0
  expected = resnet12.create(width=width).abstract()
  wrong = [
    f"{'/'.join(key.key for key in path)} is {list(array.shape)}, not "
    f"{list(shape.shape)}"
    for (path, array), shape in zip(
      jax.tree_util.tree_leaves_with_path(variables),
      jax.tree.leaves(expected),
      strict=True,
    )
    if array.shape != shape.shape
  ]
  if wrong:
    raise InputError(
      f"not a DeepEMD ResNet-12 checkpoint: {len(wrong)} shapes differ "
      f"({'; '.join(wrong[:5])})"
    )


def _target(layer, module, downsample, leaf):
  """Returns (collection, layer, module, leaf) of an official name, or None."""
  if downsample:
    module = {"0": "downsample_conv", "1": "downsample_bn"}[downsample]
  if "conv" in module:
    return ("params", layer, module, "kernel") if leaf == "weight" else None
  if leaf not in _BN:
    return None
  collection, ours = _BN[leaf]
  return collection, layer, module, ours


def _expected() -> set[str]:
  convs = ("conv1", "conv2", "conv3", "downsample_conv")
  norms = ("bn1", "bn2", "bn3", "downsample_bn")
  layers = [f"layer{i}" for i in range(1, 5)]
  return {f"params/{x}/{c}/kernel" for x in layers for c in convs} | {
    f"{collection}/{x}/{b}/{leaf}"
    for x in layers
    for b in norms
    for collection, leaf in _BN.values()
  }


def _names(variables) -> set[str]:
  """Returns the places of all arrays, such as params/layer1/conv1/kernel."""
  import jax

  paths = jax.tree_util.tree_leaves_with_path(variables)
  return {"/".join(str(key.key) for key in path) for path, _ in paths}


def to_torch(variables: Mapping[str, Any]) -> dict:
  """Converts variables to a state dict for the official code's ResNet.

  Args:
    variables: the variables of ResNet-12, as `from_torch` makes them.

  Returns:
    {name: float32 array}, with names without prefixes. Kernels are [output,
    input, height, width].
  """
  import numpy as np

  state = {}
  for layer in (f"layer{i}" for i in range(1, 5)):
    for number in "123":
      for ours in (f"conv{number}", f"bn{number}"):
        state |= _entries(variables, layer, ours, ours)
    state |= _entries(variables, layer, "downsample_conv", "downsample.0")
    state |= _entries(variables, layer, "downsample_bn", "downsample.1")
  return {name: np.asarray(x, np.float32) for name, x in state.items()}


def _entries(variables, layer: str, ours: str, theirs: str) -> dict:
  """Returns the entries of one convolution or batch norm."""
  prefix = f"{layer}.0.{theirs}"
  if "conv" in ours:
    kernel = variables["params"][layer][ours]["kernel"]
    return {f"{prefix}.weight": kernel.transpose(3, 2, 0, 1)}
  return {
    f"{prefix}.{leaf}": variables[collection][layer][ours][name]
    for leaf, (collection, name) in _BN.items()
  }
