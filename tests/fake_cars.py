"""Makes small copies of Cars196: the archive, and the folders of mirrors."""

import pathlib

import numpy as np
import scipy.io
from fake_basics import all_names, picture, tar, unpack

from deepemd_jax.data.published import catalogue


def cars_folder(root, per_class=2, classes=3):
  """Makes car_ims.tgz and cars_annos.mat in one folder."""
  root = pathlib.Path(root)
  root.mkdir(parents=True, exist_ok=True)
  files, numbers = {}, {}
  for label in all_names("cars196", classes):
    for _ in range(per_class):
      name = f"car_ims/{len(files) + 1:06d}.jpg"
      files[name], numbers[name] = picture(name), _number_of_car(label)
  _cars_table(root / "cars_annos.mat", "relative_im_path", numbers)
  tar(root / "car_ims.tgz", files)
  return root


def mirrored_cars(root, classes=3, *, tables=("devkit", "devkit")):
  """Makes cars_train/ and cars_test/ with an image of each class.

  Their tables are in these folders, too.
  """
  root = pathlib.Path(root)
  for part, file, place in (
    ("cars_train", "cars_train_annos.mat", tables[0]),
    ("cars_test", "cars_test_annos_withlabels.mat", tables[1]),
  ):
    labels = all_names("cars196", classes)
    numbers = {
      f"{i:05}.jpg": _number_of_car(label) for i, label in enumerate(labels, 1)
    }
    unpack({f"{part}/{name}": picture(part + name) for name in numbers}, root)
    (root / place).mkdir(exist_ok=True)
    _cars_table(root / place / file, "fname", numbers)
  return root


def _number_of_car(label):
  return list(catalogue.BENCHMARKS["cars196"].split_of()).index(label) + 1


def _cars_table(path, column, numbers):
  """Returns a MATLAB file with the class number of each image."""
  columns = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", column)
  table = np.empty((1, len(numbers)), [(name, "O") for name in columns])
  for i, (name, number) in enumerate(numbers.items()):
    table[0, i] = (1, 1, 9, 9, number, name)
  scipy.io.savemat(path, {"annotations": table})
