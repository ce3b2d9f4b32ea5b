"""A tiny run of all stages through the command line, made once for all tests.

All workers share it. A test that changes a workdir copies it first.
"""

import fcntl
import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT
from PIL import Image, ImageDraw

from deepemd_jax import main

RECIPE = ROOT / "configs" / "folder.py"
TINY = {
  "image.size": 32,
  "model.width": 0.0625,
  "data.fractions": (0.4, 0.3, 0.3),
  "episode.way": 2,
  "episode.query": 3,
  "pretrain.epochs": 4,
  "pretrain.batch_size": 8,
  "pretrain.validate_every": 2,
  "pretrain.validation_episodes": 4,
  "metatrain.epochs": 2,
  "metatrain.steps": 3,
  "metatrain.validation_episodes": 4,
  "evaluate.episodes": 7,
  "evaluate.batch_size": 3,
  "evaluate.encode_batch_size": 16,
  "evaluate.pictures": 1,
}


def command(workdir, images, fields=None) -> list[str]:
  """Returns the command line of the tiny run.

  Args:
    workdir: the folder of the run.
    images: the folder of images.
    fields: {name: value} that differ from `TINY`, such as "metatrain.lr".
  """
  flags = [f"--config.{k}={v}" for k, v in _fields(images, fields).items()]
  python = [sys.executable, "-m", "deepemd_jax.main"]
  return [*python, f"--config={RECIPE}", *flags, f"--workdir={workdir}"]


def call(arguments, code=0) -> subprocess.CompletedProcess:
  """Runs a command, and asserts that its exit code is `code`."""
  ended = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
  assert ended.returncode == code, ended.stderr[-3000:]
  return ended


def run(workdir, images, fields=None) -> None:
  """Runs `command` in this process; raises the errors that `main` explains."""
  config = runpy.run_path(str(RECIPE))["get_config"]()
  with config.ignore_type():  # tuples of a config may have any length
    config.update_from_flattened_dict(_fields(images, fields))
  main.run(config.lock(), pathlib.Path(workdir))


def results(workdir) -> dict:
  """Returns results.json without the fields that differ between equal runs."""
  fields = json.loads((workdir / "results.json").read_text())
  fields.pop("timing")
  return fields


def rows(directory, stage) -> list[dict]:
  """Returns the metrics that a training stage has logged so far."""
  path = directory / stage / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def _fields(images, fields) -> dict:
  data = {"data.folder": str(images), "data.directory": f"{images}-kept"}
  return TINY | data | (fields or {})


def draw(folder: pathlib.Path) -> None:
  """Draws ten classes of eight polygons, which differ in their corners."""
  rng = np.random.default_rng(0)
  for corners in range(3, 13):
    (folder / f"corners_{corners:02d}").mkdir(parents=True)
    for i in range(8):
      noise = rng.integers(0, 90, (48, 64, 3), dtype=np.uint8)
      image = Image.fromarray(noise)
      center = rng.integers(20, 30, 2).tolist()
      ImageDraw.Draw(image).regular_polygon(
        (*center, 14), corners, rotation=int(rng.integers(360)), fill="white"
      )
      image.save(folder / f"corners_{corners:02d}" / f"{i}.png")


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> pathlib.Path:
  """A folder that all workers share, with `images`, `run` and `run.stdout`."""
  place = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    place = place.parent
  place = place / "tiny"
  place.mkdir(exist_ok=True)
  with (place / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    printed = place / "run.stdout"  # is written last
    if not printed.exists():
      shutil.rmtree(place / "images", ignore_errors=True)
      shutil.rmtree(place / "run", ignore_errors=True)
      draw(place / "images")
      printed.write_text(call(command(place / "run", place / "images")).stdout)
  return place


@pytest.fixture
def images(shared) -> pathlib.Path:
  """The images of the tiny run. Copy them before you change them."""
  return shared / "images"


@pytest.fixture
def finished(shared) -> pathlib.Path:
  """The workdir of the tiny run. Copy it before you change it."""
  return shared / "run"


@pytest.fixture
def copy(finished, tmp_path) -> pathlib.Path:
  """A copy of the workdir of the tiny run, which a test may change."""
  return shutil.copytree(finished, tmp_path / "copy")
