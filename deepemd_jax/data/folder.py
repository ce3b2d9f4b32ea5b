"""The user's own images: one directory per class, or a CSV.

    root/<class>/*.jpg                      classes split by fractions
    root/{train,val,test}/<class>/*.jpg     as it stands
    CSV label,split                         which split a class belongs to
    CSV filename,label,split                images anywhere below root

This module says which files there are, and for which split; `folder_source`
reads them.
"""

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from deepemd_jax.data import image_io, links
from deepemd_jax.errors import InputError
from deepemd_jax.utils.random_streams import Stream, stream

SPLITS = ("train", "val", "test")


def listing(
  root: str | os.PathLike,
  *,
  fractions: Sequence[float] = (0.64, 0.16, 0.2),
  table: str | os.PathLike | None = None,
  seed: int = 0,
) -> dict[str, dict[str, list[pathlib.Path]]]:
  """Returns {split: {class name: sorted image paths}}; opens no image.

  Args:
    root: the image folder.
    fractions: shares of the classes for train, val and test, if neither the
      folder nor `table` says which class belongs where.
    table: a CSV, see the module's docstring.
    seed: shuffles the classes before they are shared out.

  Raises:
    InputError: there is no such folder, it holds no images, or the CSV does not
      fit.
  """
  root = pathlib.Path(root)
  if not os.path.isdir(root):
    raise InputError(f"there is no image folder {str(root)!r}")
  _directories(root)  # refuses an unreadable one
  split_folders = [root / name for name in SPLITS if (root / name).is_dir()]
  if table:
    splits = _splits_in_table(root, pathlib.Path(table))
  elif any(_directories(folder) for folder in split_folders):
    splits = {name: {} for name in SPLITS}
    splits |= {folder.name: _classes(folder, root) for folder in split_folders}
  else:
    classes = _classes(root, root)
    splits = {name: {} for name in SPLITS}
    for name, split in _share_out(list(classes), fractions, seed).items():
      splits[split][name] = classes[name]
  if not any(splits.values()):
    raise InputError(
      f"image folder {str(root)!r} holds no images; put those of each class "
      f"into a directory of their own ({', '.join(image_io.SUFFIXES)})"
    )
  _refuse_shared_classes(splits)
  return splits


def classes(root: str | os.PathLike) -> dict[str, list[pathlib.Path]]:
  """Returns {class name: sorted image paths} of a folder of classes.

  Raises:
    InputError: there is no such folder or no class in it, a class has no
      images, or an image lies outside of all classes.
  """
  root = _existing(root)
  inside = os.path.realpath(root)
  loose = [path for path in _images(root, inside) if path.parent == root]
  if loose:
    raise InputError(
      f"{str(loose[0])!r} belongs to no class; put the images of each class "
      "into a directory of their own"
    )
  classes = {child.name: _images(child, inside) for child in _directories(root)}
  empty = [name for name, paths in classes.items() if not paths]
  if empty:
    raise InputError(
      f"class {empty[0]!r} in {str(root)!r} has no images; put some there "
      f"({', '.join(image_io.SUFFIXES)}) or remove it"
    )
  if not classes:
    raise InputError(
      f"image folder {str(root)!r} holds no directories; put the images of "
      "each class into one of their own"
    )
  return classes


def below(root: str | os.PathLike) -> list[pathlib.Path]:
  """Returns all images below a folder, sorted, or the one image `root` itself.

  Raises:
    InputError: there is no such folder, or no image in it.
  """
  if os.path.isfile(root):
    return [pathlib.Path(root)]
  root = _existing(root)
  paths = _images(root, os.path.realpath(root))
  if not paths:
    raise InputError(
      f"image folder {str(root)!r} holds no images "
      f"({', '.join(image_io.SUFFIXES)})"
    )
  return paths


def _existing(root: str | os.PathLike) -> pathlib.Path:
  if not os.path.isdir(root):
    raise InputError(f"there is no image folder {os.fspath(root)!r}")
  return pathlib.Path(root)


def _refuse_shared_classes(splits) -> None:
  """Raises if a class is in two splits: that would not be few-shot learning."""
  split_of: dict[str, str] = {}
  for split, classes in splits.items():
    for name in classes:
      if name in split_of:
        raise InputError(
          f"class {name!r} is in {split_of[name]} and in {split}; few-shot "
          "splits share no classes: give each class one split"
        )
      split_of[name] = split


def _directories(folder: pathlib.Path) -> list[pathlib.Path]:
  try:
    children = sorted(folder.iterdir())
    return [c for c in children if c.is_dir() and not c.name.startswith(".")]
  except OSError as error:
    _unreadable(error)


def _unreadable(error: OSError) -> NoReturn:
  raise InputError(
    f"cannot read folder {error.filename!r}: {error.strerror}; change its "
    "permissions or remove it"
  ) from error


def _classes(folder: pathlib.Path, root) -> dict[str, list[pathlib.Path]]:
  inside = os.path.realpath(root)
  classes = {
    child.name: _images(child, inside) for child in _directories(folder)
  }
  return {name: paths for name, paths in classes.items() if paths}


def _images(folder: pathlib.Path, inside: str) -> list[pathlib.Path]:
  """Returns the image files below a directory, sorted, without hidden ones."""
  paths = []
  links.refuse_outside(folder, inside)
  for here, directories, files in os.walk(folder, onerror=_unreadable):
    directories[:] = [name for name in directories if name[0] != "."]
    shown = [name for name in files if name[0] != "."]
    chosen = [n for n in shown if n.lower().endswith(image_io.SUFFIXES)]
    for name in directories + chosen:
      if os.path.islink(os.path.join(here, name)):
        links.refuse_outside(os.path.join(here, name), inside)
    paths += [pathlib.Path(here, name) for name in chosen]
  return sorted(paths)


def _share_out(names: list[str], fractions, seed: int) -> dict[str, str]:
  """Returns {class: split}; every class has one."""
  if len(fractions) != 3 or min(fractions) < 0 or sum(fractions) <= 0:
    raise InputError(
      f"config.data.fractions is {tuple(fractions)}; give three shares, none "
      "negative, such as (0.64, 0.16, 0.2)"
    )
  order = stream(seed, Stream.CLASS_SPLIT).permutation(len(names))
  shares = np.cumsum(fractions) / sum(fractions)
  first, second = np.round(shares[:2] * len(names)).astype(int)
  split_of = np.repeat(
    SPLITS, [first, second - first, len(names) - second]
  ).tolist()
  return {names[i]: split for i, split in zip(order, split_of, strict=True)}


def _splits_in_table(root: pathlib.Path, table: pathlib.Path):
  """Reads a CSV with the columns label,split or filename,label,split."""
  try:
    with open(table, newline="", encoding="utf-8-sig") as file:
      rows = list(csv.DictReader(file))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise InputError(f"cannot read the CSV {str(table)!r}: {error}") from error
  if not rows or not {"label", "split"} <= set(rows[0]):
    raise InputError(
      f"CSV {str(table)!r} needs a header with label,split or "
      f"filename,label,split; it has {list(rows[0]) if rows else 'no rows'}"
    )
  splits: dict = {split: {} for split in SPLITS}
  classes = None if "filename" in rows[0] else _classes(root, root)
  inside = os.path.realpath(root)
  names = set()
  for number, row in enumerate(rows, 2):
    where = f"CSV {str(table)!r} line {number}"
    label, split = row["label"], row["split"]
    name = label if classes is not None else row["filename"]
    if not label or not name:
      raise InputError(f"{where}: a field is empty; fill it or drop the line")
    if split not in SPLITS:
      raise InputError(
        f"{where}: split is {split!r}; use one of {', '.join(SPLITS)}"
      )
    if os.path.normpath(name) in names:  # it could be support and query at once
      raise InputError(f"{where}: {name!r} comes twice; drop one of the lines")
    names.add(os.path.normpath(name))
    if classes is not None:
      if label not in classes:
        raise InputError(
          f"{where}: class {label!r} has no images in {str(root)!r}"
        )
      splits[split][label] = classes[label]
      continue
    path = root / name
    climbs = os.path.normpath(name).split(os.sep)[0] == ".."
    # Not `path.is_file()`, which raises at a name that is too long.
    if climbs or not os.path.isfile(path):
      raise InputError(f"{where}: no file {name!r} in {str(root)!r}")
    links.refuse_outside(path, inside)
    splits[split].setdefault(label, []).append(path)
  return splits
