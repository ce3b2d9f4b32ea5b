"""Inputs that several tests rebuild from their seeds."""

import json
import pathlib

import jax
import numpy as np
from paths import GOLDEN

from deepemd_jax.checkpoints import manager
from deepemd_jax.models import resnet12


def recipe_state_dict():
  """The state dict that the recording used, rebuilt from its seed."""
  recorded = json.loads((GOLDEN / "resnet12_state_dict.json").read_text())
  rng = np.random.default_rng(0)
  state = {}
  for key, shape in sorted(recorded["resnet_state_dict"].items()):
    if key.endswith("num_batches_tracked"):
      value = np.zeros(shape)
    elif len(shape) == 4:
      fan = np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
      value = rng.standard_normal(shape) * fan
    elif key.endswith("running_mean"):
      value = 0.1 * rng.standard_normal(shape)
    elif key.endswith("running_var"):
      value = 0.5 + rng.random(shape)
    elif key.endswith("weight"):
      value = 0.8 + 0.4 * rng.random(shape)
    else:
      value = 0.1 * rng.standard_normal(shape)
    state[key] = value.astype(np.float32)
    total, first = recorded["recipe_sum_and_first_value"][key]
    np.testing.assert_allclose(state[key].sum(dtype=np.float64), total, 1e-6)
    np.testing.assert_allclose(np.ravel(state[key])[0], first, 1e-6)
  return state


def tiny_run(workdir, *, stages=("pretrain",), seed=0, **fields):
  """A workdir as a run leaves it: a random ResNet-12 on 32 pixels. All variants
  have four nodes, so that one program serves them."""
  config = {
    "image": {"size": 32, "crop": "whole", "flip": True},
    "model": {"width": 1 / 16},
    "nodes": {"kind": "fcn", "grid": [2], "patches": 4},
    "sfc": {"epochs": 3},
  }
  workdir = pathlib.Path(workdir)
  workdir.mkdir()
  (workdir / "config.json").write_text(json.dumps(config | fields))
  shapes = jax.eval_shape(
    lambda: resnet12.init(jax.random.key(0), width=1 / 16)
  )
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    if path[-1].key == "kernel":
      size = float(np.sqrt(2 / np.prod(shape.shape[:3])))
      return size * rng.standard_normal(shape.shape, np.float32)
    make = np.ones if path[-1].key in ("scale", "var") else np.zeros
    return make(shape.shape, np.float32)

  variables = jax.tree_util.tree_map_with_path(leaf, shapes)
  for stage in stages:
    with manager.Checkpoints(workdir / stage / "checkpoints") as saved:
      train = {"none": np.zeros(1, np.float32)}
      saved.save(7, model=variables, train=train, meta={}, score=50.0)
  return workdir
