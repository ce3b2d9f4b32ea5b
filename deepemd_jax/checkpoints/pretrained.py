"""Access to trained encoders: the best one of each stage of a run, and a new
workdir with nothing else."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deepemd_jax.checkpoints import hugging_face, published
from deepemd_jax.checkpoints.manager import Checkpoints
from deepemd_jax.config import defaults, stored
from deepemd_jax.config.resolve import resolve
from deepemd_jax.config.settings import Settings
from deepemd_jax.config.stages import TRAINING_STAGES
from deepemd_jax.errors import InputError
from deepemd_jax.models import backbone as backbones
from deepemd_jax.models.backbone import Backbone, FolderWeights
from deepemd_jax.utils import random_streams

DEFAULT = "efficientnet_lite0"
_PUBLISHED = "published"


@dataclasses.dataclass(frozen=True, eq=False)
class BestEncoder:
  """The best encoder of a stage.

  Attributes:
    stage: "pretrain" or "metatrain"; "published" if the backbone came with its
      weights.
    step: the training step.
    score: its validation accuracy, percent.
    variables: the variables of the backbone, NumPy arrays.
  """

  stage: str
  step: int
  score: float
  variables: dict[str, Any]

  @functools.cached_property
  def fingerprint(self) -> str:
    """The SHA-256 of the variables, hexadecimal."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
      digest.update(f"{path}{leaf.dtype}{leaf.shape}".encode())
      digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()

  @property
  def place(self) -> str:
    """The origin, such as "metatrain, step 90", or "published weights"."""
    if self.stage == _PUBLISHED:
      return "published weights"
    return f"{self.stage}, step {self.step}"


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
  """The results of a run that new images need.

  Attributes:
    settings: the settings of the run.
    encoder: the best encoder of its last trained stage.
  """

  settings: Settings
  encoder: BestEncoder

  @property
  def fingerprint(self) -> str:
    """The fingerprint of the encoder."""
    return self.encoder.fingerprint


def load(checkpoint: str | os.PathLike[str] | None = None) -> Pretrained:
  """Loads the best encoder of a run's last trained stage, or a published one.

  Args:
    checkpoint: the workdir of a run, or a folder that `convert` or `export`
      wrote; a folder in Hugging Face's layout; hf:OWNER/NAME, a model on a hub;
      or the name of a backbone that comes with its weights, if no folder has
      this name. None is efficientnet_lite0.

  Raises:
    InputError: there is no encoder, or it is damaged.
  """
  settings = resolve(config_of(checkpoint))
  if settings.backbone.weights is not None:
    return Pretrained(settings, _published(settings.backbone))
  assert checkpoint is not None  # the default is published
  for stage in reversed(TRAINING_STAGES):
    best = best_encoder(pathlib.Path(checkpoint), stage, settings.backbone)
    if best is not None:
      return Pretrained(settings, best)
  raise InputError(
    f"checkpoint {str(checkpoint)!r} has no trained encoder yet; continue its "
    "run"
  )


def config_of(checkpoint=None) -> ConfigDict:
  """Returns the config of what `load` reads, and raises the same errors."""
  checkpoint = DEFAULT if checkpoint is None else checkpoint
  if str(checkpoint).startswith(hugging_face.HUB):
    checkpoint = hugging_face.from_hub(str(checkpoint))
  path = pathlib.Path(checkpoint) / "config.json"
  if path.is_file() and not hugging_face.is_model(path):
    return stored.read(path)
  config = defaults.get_config("photographs")
  if path.is_file():
    config.model.backbone = "vit"
    config.model.weights = str(path.parent.absolute())
    config.nodes.kind = "fcn"  # each crop would cost as much as a whole image
    return config
  names = [
    name for name, entry in backbones.BACKBONES.items() if entry.published
  ]
  if str(checkpoint) not in names:
    raise InputError(
      f"checkpoint {str(checkpoint)!r} is not the workdir of a run (it has no "
      f"config.json), and it is not one of {', '.join(names)} or a model of "
      f"the hub, {hugging_face.HUB}OWNER/NAME"
    )
  config.model.backbone = str(checkpoint)
  return config


def fields_of(checkpoint=None) -> dict:
  """Returns the config of what `load` reads as plain JSON, for the config.json
  of another workdir."""
  path = pathlib.Path(checkpoint or DEFAULT) / "config.json"
  if path.is_file() and not hugging_face.is_model(path):
    return stored.read_fields(path)
  return config_of(checkpoint).to_dict() | {"streams": random_streams.VERSION}


def _published(backbone: Backbone) -> BestEncoder:
  """Reads the weights that a backbone comes with."""
  weights = backbone.weights
  assert weights is not None
  in_folder = isinstance(weights, FolderWeights)
  read = hugging_face.read if in_folder else published.read
  return BestEncoder(_PUBLISHED, 0, 0.0, read(weights))


def best_encoder(
  workdir: pathlib.Path, stage: str, backbone: Backbone
) -> BestEncoder | None:
  """Reads the best validated encoder of a finished or running stage, if any.

  Raises:
    InputError: the checkpoint does not fit the backbone, or is damaged.
  """
  directory = workdir / stage / "checkpoints"
  with Checkpoints(directory, read_only=True) as saved:
    step = saved.best()
    if step is None:
      return None
    variables = saved.restore(step, model=backbone.abstract()).model
    variables = jax.tree.map(np.asarray, variables)
    return BestEncoder(stage, step, saved.score(step), variables)


def best_encoders(
  workdir: pathlib.Path, backbone: Backbone
) -> dict[str, BestEncoder]:
  """Reads the best encoder of each trained stage, by stage, in their order; or
  the weights that the backbone comes with.

  Raises:
    InputError: there is no encoder, or one does not fit or is damaged.
  """
  if backbone.weights is not None:
    return {_PUBLISHED: _published(backbone)}
  stages = [stage for stage in TRAINING_STAGES if (workdir / stage).exists()]
  if not stages:
    raise nothing_trained(workdir)
  encoders = {}
  for stage in stages:
    best = best_encoder(workdir, stage, backbone)
    if best is None:
      raise nothing_trained(workdir / stage)
    encoders[stage] = best
  return encoders


def nothing_trained(directory: pathlib.Path) -> InputError:
  """Makes the error for a folder without a checkpoint."""
  return InputError(
    f"no checkpoint in {directory}; give the --workdir of a training run, or "
    "run the stages pretrain and metatrain first"
  )


@contextlib.contextmanager
def new_workdir(directory) -> Iterator[pathlib.Path]:
  """Yields a folder to write into, which gets its name at the end, so that it
  exists as a whole or not at all.

  Args:
    directory: the workdir to make. It must be empty, or not exist.

  Raises:
    InputError: the directory is in use, or cannot be written.
  """
  directory = pathlib.Path(directory).resolve()
  if directory.exists() and (
    not directory.is_dir() or any(directory.iterdir())
  ):
    raise InputError(
      f"{directory} is not an empty directory; give an empty or new one"
    )
  scratch = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
  new_parents = [path for path in directory.parents if not path.exists()]
  try:
    scratch.mkdir(parents=True)
    yield scratch
    os.replace(scratch, directory)
  except OSError as error:
    raise InputError(
      f"cannot write {directory}: {error.strerror or error}"
    ) from error
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
    with contextlib.suppress(OSError):  # a folder that is not empty stays
      for path in new_parents:
        path.rmdir()


def save_encoder(workdir: pathlib.Path, best: BestEncoder, meta: dict) -> None:
  """Writes an encoder into a workdir, without the state of training.

  Args:
    workdir: the folder from `new_workdir`.
    best: the encoder.
    meta: the origin of the encoder, as JSON.
  """
  directory = workdir / best.stage / "checkpoints"
  with _uninterrupted(), Checkpoints(directory) as saved:
    saved.save(best.step, model=best.variables, meta=meta, score=best.score)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
  """Delays Ctrl-C, because orbax waits for itself for five minutes if a save is
  interrupted."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  asked = []
  before = signal.signal(signal.SIGINT, lambda *unused: asked.append(True))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
  if asked:
    raise KeyboardInterrupt
