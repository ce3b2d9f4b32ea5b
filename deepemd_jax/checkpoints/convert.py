"""The official PyTorch checkpoints, in our names, and ours in theirs.

    python -m deepemd_jax convert max_acc.pth DIR
    python -m deepemd_jax convert DIR encoder.safetensors

The first makes DIR, a workdir that `deepemd_jax.main` evaluates, or meta-trains
on; it takes `.safetensors` files, too, which are the kind to prefer. PyTorch is
not needed, and a file that calls anything is refused. The second writes the
best encoder of a run under the names of the authors' PyTorch code.
"""

import argparse
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from deepemd_jax.errors import InputError

HELP = "read a checkpoint of the authors' PyTorch code"
DESCRIPTION = __doc__

_BN = {
  "weight": ("params", "scale"),
  "bias": ("params", "bias"),
  "running_mean": ("batch_stats", "mean"),
  "running_var": ("batch_stats", "var"),
}
_NAME = re.compile(
  r"(layer[1-4])\.0\.(?:(conv[123]|bn[123])|downsample\.([01]))\.(\w+)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what the command takes."""
  parser.add_argument(
    "file",
    metavar="FILE",
    help="what the authors saved, .pth or .safetensors; or a run's workdir",
  )
  parser.add_argument(
    "target",
    metavar="DIR",
    help="the workdir to make; or, of a run, the .safetensors file to write",
  )
  parser.add_argument(
    "--reader",
    choices=("own", "torch"),
    default="own",
    help="of .pth files: ours, which runs nothing, or PyTorch's, if it is "
    "installed (with weights_only)",
  )


def run(options: argparse.Namespace) -> str:
  """Converts; returns what to do next."""
  if os.path.isdir(options.file):
    to_safetensors(options.file, options.target)
    return f"wrote {options.target}"
  convert(options.file, options.target, options.reader)
  return (
    f"{options.target} is ready; test it with python -m deepemd_jax train "
    f"--config=configs/NAME.py --config.stages='(\"evaluate\",)' "
    f"--workdir={options.target}"
  )


def from_torch(state_dict: Mapping[str, Any]) -> dict:
  """Variables of ResNet-12 from the official code's state dict.

  Args:
    state_dict: {name: array} with the names of icoz69/DeepEMD's ResNet, bare or
      behind "encoder." or "module.encoder."; convolutions are OIHW. The
      pre-training classifier (`fc.*`) and `num_batches_tracked` are left out.

  Returns:
    {"params": ..., "batch_stats": ...}, float32.

  Raises:
    InputError: names are missing, or no ResNet-12 has them; an entry is not an
      array of floating-point numbers, or has another shape than the network.
  """
  import jax
  import numpy as np

  variables: dict = {"params": {}, "batch_stats": {}}
  extra = []
  for name, value in state_dict.items():
    if not isinstance(name, str):
      extra.append(name)
      continue
    bare = re.sub(r"^(module\.)?(encoder\.)?", "", name)
    if bare.startswith("fc.") or bare.endswith("num_batches_tracked"):
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
    block = variables[collection].setdefault(layer, {})
    block.setdefault(module, {})[leaf] = value
  missing = sorted(_expected() - _names(variables))
  if missing or extra:
    raise InputError(
      f"not a DeepEMD ResNet-12 checkpoint: {len(missing)} names missing "
      f"({', '.join(missing[:5])}), {len(extra)} unknown "
      f"({', '.join(f'{name!s:.80}' for name in sorted(map(str, extra))[:5])})"
    )
  _check_shapes(variables)
  # Only now: what is too large would be larger yet.
  return jax.tree.map(lambda array: np.asarray(array, np.float32), variables)


def _check_floats(name: str, value) -> None:
  """Refuses an entry that is no array of floating-point numbers."""
  import jax.numpy as jnp
  import numpy as np

  if not isinstance(value, np.ndarray | np.generic):
    raise InputError(
      f"not a DeepEMD ResNet-12 checkpoint: {name} is a "
      f"{type(value).__name__}, not a tensor"
    )
  if not jnp.issubdtype(value.dtype, jnp.floating):  # bfloat16 is one, too
    raise InputError(
      f"not a DeepEMD ResNet-12 checkpoint: {name} is {value.dtype}, not "
      "floating-point"
    )


def _check_shapes(variables: dict) -> None:
  """Refuses arrays that do not fit each other, before anything is written."""
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
  """(collection, layer, module, leaf) of one official name, or None."""
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
  """The places of all arrays, such as params/layer1/conv1/kernel."""
  import jax

  paths = jax.tree_util.tree_leaves_with_path(variables)
  return {"/".join(str(key.key) for key in path) for path, _ in paths}


def convert(source, directory, reader: str = "own") -> None:
  """Turns the authors' file into a workdir with a pre-trained encoder.

  Args:
    source: a file of a state dict, as `state_dicts.read` takes it.
    directory: the workdir to make; must not exist, or be empty.
    reader: as `state_dicts.read`.

  Raises:
    InputError: the file cannot be read, is refused (see `torch_file`), or holds
      another network; the directory is in use. Nothing is left behind.
  """
  from deepemd_jax.checkpoints import pretrained, state_dicts
  from deepemd_jax.config import stored
  from deepemd_jax.models import resnet12

  with pretrained.new_workdir(directory) as workdir:
    variables = from_torch(state_dicts.read(source, reader))
    stem = variables["params"]["layer1"]["conv1"]["kernel"]
    fields = {"model": {"width": stem.shape[-1] / resnet12.CHANNELS[0]}}
    text = json.dumps(stored.sealed(fields), indent=2)
    (workdir / "config.json").write_text(text + "\n")
    best = pretrained.BestEncoder("pretrain", 0, 0.0, variables)
    pretrained.save_encoder(
      workdir, best, {"converted_from": pathlib.Path(source).name}
    )


def to_torch(variables: Mapping[str, Any]) -> dict:
  """The state dict that the official code's ResNet takes, bare names.

  Args:
    variables: of ResNet-12, as `from_torch` makes them.

  Returns:
    {name: float32 array}; convolutions are OIHW.
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
  """Those of one convolution or batch norm."""
  prefix = f"{layer}.0.{theirs}"
  if "conv" in ours:
    kernel = variables["params"][layer][ours]["kernel"]
    return {f"{prefix}.weight": kernel.transpose(3, 2, 0, 1)}
  return {
    f"{prefix}.{leaf}": variables[collection][layer][ours][name]
    for leaf, (collection, name) in _BN.items()
  }


def to_safetensors(checkpoint, path) -> None:
  """Writes a run's best encoder for PyTorch: the names of the authors' code.

  Args:
    checkpoint: as `pretrained.load` takes it.
    path: of the `.safetensors` file; replaced if it is there.

  Raises:
    InputError: there is no trained encoder, it is no ResNet-12, or the file
      cannot be written.
  """
  from deepemd_jax.checkpoints import pretrained, state_dicts

  if pathlib.Path(path).suffix != state_dicts.SUFFIX:
    raise InputError(
      f"a run becomes a {state_dicts.SUFFIX} file, and {path} is called "
      f"otherwise; try {pathlib.Path(path).with_suffix(state_dicts.SUFFIX)}"
    )
  variables = pretrained.load(checkpoint).encoder.variables
  if missing := _expected() - _names(variables):
    raise InputError(
      f"the encoder of {checkpoint} is no ResNet-12 (it has no "
      f"{min(missing)}); only ResNet-12 has names in PyTorch"
    )
  state_dicts.write(path, to_torch(variables))
