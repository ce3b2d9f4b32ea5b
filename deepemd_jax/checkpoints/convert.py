"""Converts official PyTorch checkpoints to workdirs, and trained encoders back.

    python -m deepemd_jax convert max_acc.pth DIR
    python -m deepemd_jax convert max_acc.pth DIR --ignore=slf_attn
    python -m deepemd_jax convert DIR encoder.safetensors

The first command makes DIR, a workdir that `deepemd_jax.main` can evaluate, or
train further. It also takes `.safetensors` files, which are the preferred kind.
PyTorch is not needed, and a file that calls anything is refused. Files of FEAT
and of LibFewShot contain the same network under other prefixes, and also heads;
the second command leaves one out. The third command writes the best encoder of
a run under the names of the authors' PyTorch code.
"""

import argparse
import json
import os
import pathlib
from collections.abc import Iterable

from deepemd_jax.checkpoints import resnet12_names
from deepemd_jax.checkpoints.resnet12_names import from_torch, to_torch
from deepemd_jax.errors import InputError
from deepemd_jax.utils.terminal import printable

__all__ = ["convert", "from_torch", "to_safetensors", "to_torch"]
HELP = "read or write a checkpoint of the authors' PyTorch code"
DESCRIPTION = __doc__


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command."""
  parser.add_argument(
    "file",
    metavar="FILE",
    help="a file that the authors' code saved (.pth or .safetensors), or the "
    "workdir of a run",
  )
  parser.add_argument(
    "target",
    metavar="DIR",
    help="the workdir to make or, if FILE is the workdir of a run, the "
    ".safetensors file to write",
  )
  parser.add_argument(
    "--ignore",
    metavar="NAME",
    action="append",
    default=[],
    help="leave out the entries of FILE whose names begin with this part, such "
    "as classifier or slf_attn, a head that is not part of the encoder; may be "
    "given several times",
  )
  parser.add_argument(
    "--reader",
    choices=("own", "torch"),
    default="own",
    help="program that reads a .pth file: our own, which runs no code of the "
    "file, or PyTorch, if it is installed (with weights_only)",
  )


def run(options: argparse.Namespace) -> str:
  """Converts a file or a run. Returns a text with the entries that were left
  out and the next command."""
  if os.path.isdir(options.file):
    to_safetensors(options.file, options.target)
    return f"wrote {options.target}"
  left_out = convert(
    options.file, options.target, options.reader, options.ignore
  )
  lines = [f"left out {printable(name)}" for name in left_out]
  lines.append(
    f"{options.target} is ready; test it with python -m deepemd_jax train "
    f"--config=configs/NAME.py --config.stages='(\"evaluate\",)' "
    f"--workdir={options.target}"
  )
  return "\n".join(lines)


def convert(
  source, directory, reader: str = "own", ignore: Iterable[str] = ()
) -> list[str]:
  """Turns the authors' file into a workdir with a pre-trained encoder.

  Args:
    source: a file of a state dict; see `state_dicts.read`.
    directory: the workdir to make. It must be empty, or not exist.
    reader: see `state_dicts.read`.
    ignore: parts of the file that are not part of the encoder; see
      `resnet12_names.without`.

  Returns:
    The names of all entries that were left out, without batch norm's counters.

  Raises:
    InputError: the file cannot be read, is refused (see `torch_file`), or
      contains another network, or the directory is in use. Nothing is left
      behind.
  """
  from deepemd_jax.checkpoints import pretrained, state_dicts
  from deepemd_jax.config import stored
  from deepemd_jax.models import resnet12

  with pretrained.new_workdir(directory) as workdir:
    found = state_dicts.read(source, reader)
    kept = resnet12_names.without(found, ignore)
    variables = from_torch(kept)
    stem = variables["params"]["layer1"]["conv1"]["kernel"]
    fields = {"model": {"width": stem.shape[-1] / resnet12.CHANNELS[0]}}
    text = json.dumps(stored.sealed(fields), indent=2)
    (workdir / "config.json").write_text(text + "\n")
    best = pretrained.BestEncoder("pretrain", 0, 0.0, variables)
    pretrained.save_encoder(
      workdir, best, {"converted_from": pathlib.Path(source).name}
    )
  return [
    str(name)
    for name in found
    if name not in kept or resnet12_names.is_of_classifier(name)
  ]


def to_safetensors(checkpoint, path) -> None:
  """Writes a run's best encoder with the names of the authors' PyTorch code.

  Args:
    checkpoint: see `pretrained.load`.
    path: path of the `.safetensors` file, which is replaced if it exists.

  Raises:
    InputError: there is no trained encoder, it is not a ResNet-12 of the
      authors' kind, or the file cannot be written.
  """
  from deepemd_jax.checkpoints import pretrained, state_dicts
  from deepemd_jax.models import resnet12

  if pathlib.Path(path).suffix != state_dicts.SUFFIX:
    raise InputError(
      f"a run becomes a {state_dicts.SUFFIX} file, but {path} has another "
      f"suffix; try {pathlib.Path(path).with_suffix(state_dicts.SUFFIX)}"
    )
  trained = pretrained.load(checkpoint)
  variables = trained.encoder.variables
  if missing := resnet12_names.missing(variables):
    raise InputError(
      f"the encoder of {checkpoint} is not a ResNet-12 (it has no "
      f"{missing[0]}); only a ResNet-12 can be converted"
    )
  stride, theirs = trained.settings.backbone.stride, 2**resnet12.BLOCKS
  if stride != theirs:  # the names and the weights do not tell the stride
    raise InputError(
      f"the encoder of {checkpoint} has model.pools below {resnet12.BLOCKS}: a "
      f"cell of its feature map is {stride} pixels wide, but {theirs} in the "
      "authors' code, where the same weights would give other results"
    )
  state_dicts.write(path, to_torch(variables))
