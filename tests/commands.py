"""Calling the one command, in this process, and images for it to work on."""

import csv
import re

import numpy as np
from PIL import Image

from deepemd_jax import __main__ as command

COLORS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def call(capsys, *arguments):
  """Exit code, stdout and stderr of `python -m deepemd_jax ARGUMENTS`."""
  capsys.readouterr()
  code = command.main([str(argument) for argument in arguments])
  return code, *capsys.readouterr()


def assert_refused(result, message):
  """One line that matches `message`, and exit code 2."""
  code, out, errors = result
  assert code == 2 and out == "", (out, errors)
  assert errors.startswith("deepemd_jax: error: ") and errors.count("\n") == 1
  assert re.search(message, errors), errors


def paint(path, color, seed, size=(24, 30)):
  """Writes an image of one color with noise; makes its folder."""
  rng = np.random.default_rng(seed)
  pixels = np.array(color) + rng.integers(-30, 30, (*size, 3))
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


def paint_folders(directory):
  """Two examples and two queries of each color, in support/ and query/."""
  for k, (name, color) in enumerate(COLORS.items()):
    for i in range(2):
      paint(directory / "support" / name / f"{i}.png", color, 10 * k + i)
      paint(directory / "query" / name / f"{i}.png", color, 100 + 10 * k + i)


def rows(path="out.csv"):
  """The rows of a CSV, by column."""
  with open(path, newline="", encoding="utf-8-sig") as file:
    return list(csv.DictReader(file))
