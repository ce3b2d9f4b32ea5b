"""Calls the command in this process, and makes images for it."""

import csv
import re

import numpy as np
from PIL import Image

from deepemd_jax import __main__ as command

COLORS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def call(capsys, *arguments):
  """Returns exit code, stdout and stderr of `deepemd_jax ARGUMENTS`."""
  capsys.readouterr()
  code = command.main([str(argument) for argument in arguments])
  return code, *capsys.readouterr()


def assert_refused(result, message):
  """Asserts that a call ended with code 2 and one line that fits `message`."""
  code, out, errors = result
  assert code == 2 and out == "", (out, errors)
  assert errors.startswith("deepemd_jax: error: ") and errors.count("\n") == 1
  assert re.search(message, errors), errors


def paint(path, color, seed, size=(24, 30)):
  """Writes an image of one color with noise, and makes its folder."""
  rng = np.random.default_rng(seed)
  pixels = np.array(color) + rng.integers(-30, 30, (*size, 3))
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


def paint_folders(directory):
  """Paints two examples and two queries of each color: support/ and query/."""
  for k, (name, color) in enumerate(COLORS.items()):
    for i in range(2):
      paint(directory / "support" / name / f"{i}.png", color, 10 * k + i)
      paint(directory / "query" / name / f"{i}.png", color, 100 + 10 * k + i)


def rows(path="out.csv"):
  """Returns the rows of a CSV, each as a dictionary."""
  with open(path, newline="", encoding="utf-8-sig") as file:
    return list(csv.DictReader(file))
