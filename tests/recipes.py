"""Inputs that several tests make from seeds."""

import itertools
import json
import pathlib

import jax
import numpy as np
from paths import GOLDEN
from PIL import Image, ImageDraw

from configs import folder
from deepemd_jax.checkpoints import manager
from deepemd_jax.config import defaults, validate
from deepemd_jax.config.resolve import resolve
from deepemd_jax.models import resnet12


def recipe_state_dict():
  """Makes the state dict of the recording again, from its seed."""
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
  """Makes the workdir of a run: a random ResNet-12 for images of 32 pixels.

  All variants have four nodes, so that they share one compiled program.
  """
  config = {
    "image": {"size": 32, "crop": "whole", "flip": True},
    "model": {"width": 1 / 16},
    "nodes": {"kind": "fcn", "grid": [2], "patches": 4},
    "sfc": {"epochs": 3},
  }
  workdir = pathlib.Path(workdir)
  workdir.mkdir()
  (workdir / "config.json").write_text(json.dumps(config | fields))
  shapes = resnet12.create(width=1 / 16).abstract()
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


def config(fields=(), **sections):
  """Returns the default config with some fields changed, after validation.

  Fields are given as `{"nodes.kind": "grid"}`, or as `nodes={"kind": "grid"}`.
  """
  made = defaults.get_config()
  made.update_from_flattened_dict(dict(fields))
  for name, values in sections.items():
    if isinstance(values, dict):
      made[name].update(values)
    else:
      made[name] = values
  validate.validate(made)
  return made


def settings(fields=(), **sections):
  """Returns the settings of `config`."""
  return resolve(config(fields, **sections))


def draw_polygons(root, counts, side=32):
  """Makes a folder of classes, which have white polygons on noise.

  Args:
    counts: the number of images for each number of corners.
  """
  root.mkdir()
  rng = np.random.default_rng(0)
  for corners, count in counts.items():
    place = root / f"corners_{corners:02d}"
    place.mkdir()
    for i in range(count):
      noise = rng.integers(0, 90, (side, side, 3), dtype=np.uint8)
      image = Image.fromarray(noise)
      center = rng.integers(3 * side // 8, 5 * side // 8, 2).tolist()
      ImageDraw.Draw(image).regular_polygon(
        (*center, 5 * side // 16),
        corners,
        rotation=int(rng.integers(360)),
        fill="white",
      )
      image.save(place / f"{i}.png")
  return root


def evaluation_of_folders(directory, episodes=2, images=3):
  """Returns the config of an evaluation of a `tiny_run` on small images.

  The folder of images is made in `directory`. Each split has two classes.
  """
  splits, names = ("train", "val", "test"), "ab"
  for split, name, number in itertools.product(splits, names, range(images)):
    path = directory / "images" / split / f"{split}_{name}" / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([ord(name), number])
    pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((40, 40)).save(path)
  config = folder.get_config()
  config.data.name = "folder:40"
  config.data.folder = str(directory / "images")
  config.data.directory = str(directory / "data")
  config.stages = ("evaluate",)
  config.model.width = 1 / 16
  config.image.size = 32
  config.episode.way, config.episode.query = 2, images - 1
  config.metatrain.validation_episodes = config.evaluate.episodes = episodes
  config.evaluate.batch_size, config.evaluate.encode_batch_size = 2, 6
  config.evaluate.pictures = 0
  return config
