"""A trained encoder and how it wants to see images: out of a run's workdir, and
into a new one that holds nothing else."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import threading
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from deepemd_jax.checkpoints.manager import Checkpoints
from deepemd_jax.config import resolve
from deepemd_jax.data import crops
from deepemd_jax.errors import InputError
from deepemd_jax.models import resnet12

DEFAULT = "runs/quickstart"
# What a config.json leaves out, as one of `convert` does, is as in
# config/defaults.py.
_DEFAULTS = {
  "seed": 0,
  "image": {
    "size": 84,
    "crop": "center",
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (0.75, 4 / 3),
    "flip": True,
    "mean": (125.3, 123.0, 113.9),
    "std": (63.0, 62.1, 66.7),
  },
  "model": {"width": 1.0, "precision": "float32"},
  "nodes": {
    "kind": "fcn",
    "pyramid": (),
    "grid": (2, 3),
    "ratio": 2.0,
    "patches": 9,
    "test_patches": 0,
  },
  "emd": {
    "solver": "auto",
    "form": "L2",
    "l2_strength": 1e-6,
    "epsilon": 0.01,
    "temperature": 12.5,
  },
  "sfc": {"epochs": 100, "lr": 100.0, "batch_size": 4, "gradient": "flow"},
}


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a run left behind that new images need.

  Attributes:
    variables: of the ResNet-12, NumPy arrays.
    config: the run's fields that matter here, as attributes.
    fingerprint: SHA-256, hexadecimal, of `variables`.
    place: "metatrain, step 90", say.
  """

  variables: dict[str, Any]
  config: types.SimpleNamespace
  fingerprint: str
  place: str


class Best(NamedTuple):
  """The encoder that a stage keeps.

  Attributes:
    stage: "pretrain" or "metatrain".
    step: of its training.
    score: its validation accuracy, percent.
    variables: of the ResNet-12, NumPy arrays.
  """

  stage: str
  step: int
  score: float
  variables: dict[str, Any]


def load(checkpoint=None) -> Trained:
  """The best encoder of a run's last trained stage.

  Args:
    checkpoint: the workdir of a run, or what `convert` or `export` wrote; None
      is runs/quickstart.

  Raises:
    InputError: there is none, or it is damaged.
  """
  workdir = find(checkpoint)
  config = _config(workdir / "config.json")
  for best in encoders(workdir, config.model.width):
    return Trained(
      best.variables,
      config,
      _fingerprint(best.variables),
      f"{best.stage}, step {best.step}",
    )
  raise InputError(
    f"checkpoint {str(workdir)!r} holds no trained encoder yet; let its run go "
    "on"
  )


def find(checkpoint=None) -> pathlib.Path:
  """The workdir that `load` reads; raises as that if it is none."""
  workdir = pathlib.Path(DEFAULT if checkpoint is None else checkpoint)
  if not (workdir / "config.json").is_file():
    if checkpoint is None:
      raise InputError(
        f"no trained encoder in {DEFAULT}; `make quickstart` trains one in "
        "minutes, or name the workdir of another run as checkpoint"
      )
    raise InputError(
      f"checkpoint {str(workdir)!r} is not the workdir of a run: it has no "
      "config.json"
    )
  return workdir


def encoders(workdir: pathlib.Path, width: float) -> Iterator[Best]:
  """What the trained stages of a workdir keep, the last stage first.

  Raises:
    InputError: a checkpoint does not fit, or is damaged.
  """
  abstract = jax.eval_shape(
    lambda: resnet12.init(jax.random.key(0), width=width)
  )
  for stage in ("metatrain", "pretrain"):
    with Checkpoints(workdir / stage / "checkpoints", read_only=True) as saved:
      step = saved.best()
      if step is None:
        continue
      variables = saved.restore(step, model=abstract).model
      score = saved.score(step)
    yield Best(stage, step, score, jax.tree.map(np.asarray, variables))


@contextlib.contextmanager
def new_workdir(directory) -> Iterator[pathlib.Path]:
  """A folder to write into, which gets its name at the end: it is there as a
  whole or not at all.

  Args:
    directory: the workdir to make; must not exist, or be empty.

  Raises:
    InputError: the directory is in use, or cannot be written.
  """
  directory = pathlib.Path(directory).resolve()
  if directory.exists() and (
    not directory.is_dir() or any(directory.iterdir())
  ):
    raise InputError(f"{directory} is in use; give an empty or new directory")
  scratch = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
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


def keep(workdir: pathlib.Path, best: Best, meta: dict) -> None:
  """Writes an encoder into a workdir, alone: nothing that training needs.

  Args:
    workdir: of `new_workdir`.
    best: the encoder.
    meta: where it is from.
  """
  place = workdir / best.stage / "checkpoints"
  with _uninterrupted(), Checkpoints(place) as saved:
    saved.save(best.step, model=best.variables, meta=meta, score=best.score)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
  """Ctrl-C has to wait: orbax, interrupted while saving, waits for itself for
  five minutes."""
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


def _config(path: pathlib.Path) -> types.SimpleNamespace:
  try:
    fields = json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise InputError(
      f"{str(path)!r} is not the config of a run ({error})"
    ) from error
  try:
    return _typed(fields, _DEFAULTS, "")
  except InputError as error:
    raise InputError(f"in {str(path)!r} {error}") from error


def _typed(found, default, name: str):
  """`found` where it is of the kind of `default`; what it lacks is filled in.

  Raises:
    InputError: it is of another kind.
  """
  if not _fits(found, default):
    what = f"{name} is" if name else "there is"
    raise InputError(f"{what} {found!r:.80}, which should be {_kind(default)}")
  if not isinstance(default, dict):
    return found
  before = f"{name}." if name else ""
  fields = {
    k: _typed(found.get(k, v), v, f"{before}{k}") for k, v in default.items()
  }
  return types.SimpleNamespace(**fields)


def _fits(found, default) -> bool:
  if isinstance(default, tuple):
    if not isinstance(found, list | tuple):
      return False
    if _of_levels(default):
      return all(_fits(x, 1) for x in found)
    return len(found) == len(default) and all(_fits(x, 1.0) for x in found)
  if isinstance(default, float):
    return type(found) in (int, float)
  return type(found) is type(default)


def _kind(default) -> str:
  if isinstance(default, tuple):
    if _of_levels(default):
      return "a list of whole numbers"
    return f"a list of {len(default)} numbers"
  return {
    dict: "named fields",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
  }[type(default)]


def _of_levels(default: tuple) -> bool:
  """Whether there may be any number of them: whole ones, a pyramid's."""
  return not default or isinstance(default[0], int)


def _fingerprint(variables) -> str:
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    digest.update(f"{path}{leaf.dtype}{leaf.shape}".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def look(config: types.SimpleNamespace, variant: str | None) -> crops.Crops:
  """How to look at an image.

  Args:
    config: of a `Trained`.
    variant: "fcn", "grid" or "sampling"; None is the run's own.

  Raises:
    InputError: another variant.
  """
  kind = config.nodes.kind if variant is None else variant
  if kind not in resolve.NODES:
    raise InputError(
      f"variant is {kind!r}; use one of {', '.join(resolve.NODES)}"
    )
  image, nodes = config.image, config.nodes
  return crops.Crops(
    kind=kind,
    size=image.size,
    crop=image.crop,
    grid=tuple(nodes.grid),
    ratio=nodes.ratio,
    patches=nodes.test_patches or nodes.patches,
    scale=tuple(image.crop_scale),
    aspect=tuple(image.crop_ratio),
    flip=image.flip,
    seed=config.seed,
  )


def solver(config: types.SimpleNamespace, wanted):
  """The EMD solver.

  Args:
    config: of a `Trained`.
    wanted: one of `build.SOLVERS`, a solver, or None: the run's own.

  Raises:
    InputError: another name, or something that solves nothing.
  """
  if wanted is None or isinstance(wanted, str):
    if wanted is not None and wanted not in resolve.SOLVERS:
      raise InputError(
        f"solver is {wanted!r}; use one of {', '.join(resolve.SOLVERS)}"
      )
    return resolve.solver(config, wanted or "")
  if not callable(wanted) or isinstance(wanted, type):
    raise InputError(
      f"solver is {wanted!r}; give a solver, emd.InteriorPoint() say, or a name"
    )
  return wanted
