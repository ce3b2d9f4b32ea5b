"""A trained encoder and how it wants to see images, from a run's workdir."""

import dataclasses
import hashlib
import json
import pathlib
import types
from typing import Any

import jax
import numpy as np

from deepemd_jax import build
from deepemd_jax.checkpoint import Checkpoints
from deepemd_jax.data import crops
from deepemd_jax.errors import InputError
from deepemd_jax.models import resnet

DEFAULT = "runs/quickstart"
# What a config.json leaves out, as one of `deepemd_jax.convert` does, is as in
# configs/default.py, which is not part of the package.
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


def load(checkpoint=None) -> Trained:
  """The best encoder of a run's last trained stage.

  Args:
    checkpoint: the workdir of a run, or what `deepemd_jax.convert` wrote; None
      is runs/quickstart.

  Raises:
    InputError: there is none, or it is damaged.
  """
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
  config = _config(workdir / "config.json")
  abstract = jax.eval_shape(
    lambda: resnet.init(jax.random.key(0), width=config.model.width)
  )
  for stage in ("metatrain", "pretrain"):
    with Checkpoints(workdir / stage / "checkpoints", read_only=True) as saved:
      step = saved.best()
      if step is None:
        continue
      variables = saved.restore(step, model=abstract).model
    variables = jax.tree.map(np.asarray, variables)
    return Trained(
      variables, config, _fingerprint(variables), f"{stage}, step {step}"
    )
  raise InputError(
    f"checkpoint {str(workdir)!r} holds no trained encoder yet; let its run go "
    "on"
  )


def _config(path: pathlib.Path) -> types.SimpleNamespace:
  try:
    fields = json.loads(path.read_bytes())
    merged = {}
    for name, default in _DEFAULTS.items():
      if isinstance(default, dict):
        found = fields.get(name, {})
        section = {k: found.get(k, v) for k, v in default.items()}
        merged[name] = types.SimpleNamespace(**section)
      else:
        merged[name] = fields.get(name, default)
  except (OSError, ValueError, AttributeError) as error:
    raise InputError(
      f"{str(path)!r} is not the config of a run ({error})"
    ) from error
  return types.SimpleNamespace(**merged)


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
  if kind not in build.NODES:
    raise InputError(
      f"variant is {kind!r}; use one of {', '.join(build.NODES)}"
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
    if wanted is not None and wanted not in build.SOLVERS:
      raise InputError(
        f"solver is {wanted!r}; use one of {', '.join(build.SOLVERS)}"
      )
    return build.solver(config, wanted or "")
  if not callable(wanted) or isinstance(wanted, type):
    raise InputError(
      f"solver is {wanted!r}; give a solver, emd.InteriorPoint() say, or a name"
    )
  return wanted
