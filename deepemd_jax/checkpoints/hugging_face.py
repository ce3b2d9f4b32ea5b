"""Vision transformers from a folder in Hugging Face's layout, or from a hub.

    config.json               the architecture
    preprocessor_config.json  size, mean and standard deviation of images
    model.safetensors         the weights; or several files, and
                              model.safetensors.index.json, which lists them

No code in the folder is run. The name of a model on a hub is hf:OWNER/NAME or
hf:OWNER/NAME@REVISION, so that a missing folder is never looked for on the
network.
"""

import functools
import pathlib
import re
from typing import Any

from deepemd_jax.checkpoints import state_dicts, vit_config, vit_weights
from deepemd_jax.errors import InputError
from deepemd_jax.models import vit
from deepemd_jax.models.backbone import Backbone, FolderWeights, Variables

HUB = "hf:"
_CONFIG, _IMAGES = "config.json", "preprocessor_config.json"
_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"
_FROM_HUB = (_CONFIG, _IMAGES, _WEIGHTS, _INDEX, "model-*.safetensors")
_MOST_TOKENS = 2**12


def is_model(path: pathlib.Path) -> bool:
  """Tells whether a config.json is that of a Hugging Face model, not of a run.

  Raises:
    InputError: it is not JSON.
  """
  return "model_type" in vit_config.read(path)


@functools.cache
def from_hub(name: str) -> pathlib.Path:
  """Gets a model from a hub, or from its local copy, once per process.

  Args:
    name: hf:OWNER/NAME or hf:OWNER/NAME@REVISION.

  Returns:
    The folder of the model, in the cache of `huggingface_hub`.

  Raises:
    InputError: the name has another form, the package is not installed, or the
      hub does not provide the model.
  """
  repository, _, revision = name.removeprefix(HUB).partition("@")
  if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
    raise InputError(
      f"{name!r} does not name a model; write {HUB}OWNER/NAME, or "
      f"{HUB}OWNER/NAME@REVISION"
    )
  try:
    import huggingface_hub
  except ImportError as error:
    raise InputError(
      f"to get {name}, run pip install 'deepemd_jax[hub]', or download its "
      "folder yourself and give the path of that folder"
    ) from error
  try:
    folder = huggingface_hub.snapshot_download(
      repository, revision=revision or None, allow_patterns=list(_FROM_HUB)
    )
  except Exception as error:  # several packages raise their own types
    reason = " ".join(str(error).split())
    raise InputError(
      f"cannot get {name} from the hub ({reason:.200}); if the model "
      "has a license, accept it on the hub and run hf auth login"
    ) from error
  return pathlib.Path(folder)


def create(weights: str = "", precision: str = "float32") -> Backbone:
  """Makes the backbone of a folder, without reading its weights.

  Args:
    weights: the folder.
    precision: see `vit.create`.

  Raises:
    InputError: a file is missing or damaged, or the model is of another kind.
  """
  if not weights:
    raise InputError(
      "config.model.backbone is 'vit', which needs a folder in "
      f"config.model.weights, with {_CONFIG}, {_IMAGES} and {_WEIGHTS}"
    )
  folder = pathlib.Path(weights).absolute()
  architecture = vit_config.described(folder / _CONFIG).architecture
  size, mean, std = vit_config.images(folder / _IMAGES)
  tokens = (size // architecture.patch) ** 2
  if not 1 <= tokens <= _MOST_TOKENS:
    raise InputError(
      f"in {str(folder / _IMAGES)!r} images are {size} pixels wide, "
      f"which gives {tokens} patches of {architecture.patch} pixels; there "
      f"must be between 1 and {_MOST_TOKENS} patches"
    )
  names = [_CONFIG, _IMAGES, *_weight_files(folder)]
  if _WEIGHTS not in names:
    names.append(_INDEX)
  stamps = []
  for name in names:
    found = (folder / name).stat()
    stamps.append((name, found.st_size, found.st_mtime_ns))
  return vit.create(
    architecture,
    image_size=size,
    mean=mean,
    std=std,
    weights=FolderWeights(str(folder), tuple(stamps)),
    precision=precision,
  )


@functools.lru_cache(maxsize=1)
def read(weights: FolderWeights) -> Variables:
  """Reads the variables of a folder's network as NumPy arrays.

  Raises:
    InputError: they do not fit config.json.
  """
  folder = pathlib.Path(weights.folder)
  described = vit_config.described(folder / _CONFIG)
  state: dict[str, Any] = {}
  files = _weight_files(folder)
  for name in files:
    state |= state_dicts.read(folder / name)
  where = str(folder / files[0]) if len(files) == 1 else str(folder)
  return vit_weights.from_torch(state, *described, where)


def _weight_files(folder: pathlib.Path) -> list[str]:
  """Returns the names of the files with the tensors."""
  if (folder / _WEIGHTS).is_file():
    return [_WEIGHTS]
  if not (folder / _INDEX).is_file():
    others = any(folder.glob("*.bin")) or any(folder.glob("*.pth"))
    raise InputError(
      f"{str(folder)!r} has no {_WEIGHTS}"
      + ("; PyTorch's own files are not read, so use safetensors" * others)
    )
  listed = vit_config.read(folder / _INDEX).get("weight_map")
  names = list(listed.values()) if isinstance(listed, dict) else []
  if not names or not all(
    isinstance(x, str) and re.fullmatch(r"[\w.-]+\.safetensors", x)
    for x in names
  ):
    raise InputError(
      f"in {str(folder / _INDEX)!r} weight_map should name the file of each "
      "tensor"
    )
  names = sorted(set(names))
  for name in names:
    if not (folder / name).is_file():
      raise InputError(
        f"{str(folder)!r} has no {name}, which {_INDEX} lists; download it"
      )
  return names
