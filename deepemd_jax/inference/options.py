"""Arguments that several commands share; loads neither JAX nor NumPy."""

import argparse
import os
from collections.abc import Callable, Iterable

from deepemd_jax.data.registry import NODE_KINDS
from deepemd_jax.emd.solvers import SOLVERS
from deepemd_jax.utils import registry


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that selects the encoder."""
  parser.add_argument(
    "--checkpoint",
    metavar="RUN",
    help="the encoder: the workdir of a training run, a folder that convert or "
    "export wrote, a folder of a Hugging Face model (DINOv2, DINOv3, CLIP, "
    "SigLIP 2) or hf:OWNER/NAME, or a backbone with published weights (default "
    "efficientnet_lite0, trained on photographs)",
  )


def add_encoding(parser: argparse.ArgumentParser, images: str) -> None:
  """Adds the flags for reading, encoding and matching images.

  Args:
    parser: the parser of the command.
    images: the kind of images that may be left out, such as "query".
  """
  parser.add_argument(
    "--skip-bad",
    action="store_true",
    help=f"leave out {images} images that cannot be read, and list them",
  )
  add_checkpoint(parser)
  parser.add_argument(
    "--variant",
    type=_one_of(NODE_KINDS),
    help=f"regions of an image: {', '.join(NODE_KINDS)} "
    "(default: the run's own)",
  )
  solvers = [f"{name} ({entry.title})" for name, entry in SOLVERS.items()]
  parser.add_argument(
    "--solver",
    type=_one_of(SOLVERS),
    help=f"solver of the EMD: {', '.join(solvers)}; default: the run's own",
  )
  parser.add_argument(
    "--cache",
    metavar="DIR",
    default=os.path.join(default_cache(), "encodings"),
    help="folder where encodings are kept for later calls; you may delete it "
    "(default %(default)s)",
  )
  parser.add_argument(
    "--no-cache",
    dest="cache",
    action="store_const",
    const=None,
    help="keep no encodings",
  )


def default_cache() -> str:
  """Returns the folder for files that commands keep between runs."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return os.path.join(home, "deepemd_jax")


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
  """Returns a type for argparse that accepts only these names."""

  def check(value: str) -> str:
    if value not in names:
      raise argparse.ArgumentTypeError(
        f"invalid choice {value!r}; {registry.hint(value, names)}"
      )
    return value

  return check
