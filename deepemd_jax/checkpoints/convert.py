"""The official PyTorch checkpoints, in our names.

    python -m deepemd_jax.checkpoints.convert max_acc.pth DIR

makes DIR, a workdir that `deepemd_jax.main` evaluates, or meta-trains on.
"""

import json
import pathlib
import re
import sys
from collections.abc import Mapping

import numpy as np

from deepemd_jax.checkpoints import pretrained, torch_file
from deepemd_jax.errors import InputError

_BN = {
  "weight": ("params", "scale"),
  "bias": ("params", "bias"),
  "running_mean": ("batch_stats", "mean"),
  "running_var": ("batch_stats", "var"),
}
_NAME = re.compile(
  r"(layer[1-4])\.0\.(?:(conv[123]|bn[123])|downsample\.([01]))\.(\w+)"
)


def from_torch(state_dict: Mapping[str, np.ndarray]) -> dict:
  """Variables of `resnet` from the official code's state dict.

  Args:
    state_dict: {name: array} with the names of icoz69/DeepEMD's ResNet, bare or
      behind "encoder." or "module.encoder."; convolutions are OIHW. The
      pre-training classifier (`fc.*`) and `num_batches_tracked` are left out.

  Returns:
    {"params": ..., "batch_stats": ...}, float32.

  Raises:
    InputError: names that are missing, or that no ResNet-12 has.
  """
  variables: dict = {"params": {}, "batch_stats": {}}
  extra = []
  for name, value in state_dict.items():
    bare = re.sub(r"^(module\.)?(encoder\.)?", "", name)
    if bare.startswith("fc.") or bare.endswith("num_batches_tracked"):
      continue
    found = _NAME.fullmatch(bare)
    target = found and _target(*found.groups())
    if not target:
      extra.append(name)
      continue
    collection, layer, module, leaf = target
    array = np.asarray(value, np.float32)
    if leaf == "kernel":
      array = array.transpose(2, 3, 1, 0)
    block = variables[collection].setdefault(layer, {})
    block.setdefault(module, {})[leaf] = array
  missing = sorted(_expected() - _names(variables))
  if missing or extra:
    raise InputError(
      f"not a DeepEMD ResNet-12 checkpoint: {len(missing)} names missing "
      f"({', '.join(missing[:5])}), {len(extra)} unknown "
      f"({', '.join(sorted(extra)[:5])})"
    )
  return variables


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


def _names(variables: dict) -> set[str]:
  return {
    f"{collection}/{layer}/{module}/{leaf}"
    for collection, layers in variables.items()
    for layer, modules in layers.items()
    for module, leaves in modules.items()
    for leaf in leaves
  }


def convert(source, directory) -> None:
  """Turns the authors' file into a workdir with a pre-trained encoder.

  Args:
    source: a `.pth` file: {"params": state dict}, or the state dict itself.
    directory: the workdir to make; must not exist, or be empty.

  Raises:
    InputError: the file cannot be read, is refused (see `torch_file`), or holds
      another network; the directory is in use. Nothing is left behind.
  """
  with pretrained.new_workdir(directory) as workdir:
    found = torch_file.load(source)
    if isinstance(found, Mapping) and isinstance(found.get("params"), Mapping):
      found = found["params"]
    if not isinstance(found, Mapping):
      raise InputError(
        f"{source} holds a {type(found).__name__}, not a state dict"
      )
    variables = from_torch(found)
    stem = variables["params"]["layer1"]["conv1"]["kernel"]
    fields = {"model": {"width": stem.shape[-1] / 64}}
    (workdir / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    best = pretrained.BestEncoder("pretrain", 0, 0.0, variables)
    pretrained.save_encoder(
      workdir, best, {"converted_from": pathlib.Path(source).name}
    )


def main(arguments: list[str]) -> int:
  """The command line; the exit code."""
  if len(arguments) != 2:
    sys.stderr.write(
      "deepemd_jax: error: use python -m deepemd_jax.checkpoints.convert "
      "FILE.pth DIR\n"
    )
    return 2
  try:
    convert(*arguments)
  except InputError as error:
    sys.stderr.write(f"deepemd_jax: error: {' '.join(str(error).split())}\n")
    return 2
  print(
    f"{arguments[1]} is ready; test it with python -m deepemd_jax.main "
    f"--config=configs/NAME.py --config.stages='(\"evaluate\",)' "
    f"--workdir={arguments[1]}"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
