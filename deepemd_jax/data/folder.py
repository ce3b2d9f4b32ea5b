"""The user's own images: one directory per class, or a CSV.

    root/<class>/*.jpg                      classes split by fractions
    root/{train,val,test}/<class>/*.jpg     as it stands
    CSV label,split                         which split a class belongs to
    CSV filename,label,split                images anywhere below root

Which files there are, and what for; `datasets` reads them.
"""

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from deepemd_jax.data import image_io
from deepemd_jax.errors import InputError

SPLITS = ("train", "val", "test")


def listing(
  root: str | os.PathLike,
  *,
  fractions: Sequence[float] = (0.64, 0.16, 0.2),
  table: str | os.PathLike | None = None,
  seed: int = 0,
) -> dict[str, dict[str, list[pathlib.Path]]]:
  """{split: {class name: sorted image paths}}; opens no image.

  Args:
    root: the image folder.
    fractions: shares of the classes for train, val and test, when neither the
      folder nor `table` says. Classes are shuffled by `seed`.
    table: a CSV, see the module's docstring.
    seed: of the shuffle.

  Raises:
    InputError: there is no such folder, nothing in it, or the CSV does not fit.
  """
  root = pathlib.Path(root)
  if not os.path.isdir(root):
    raise InputError(f"there is no image folder {str(root)!r}")
  _directories(root)  # refuses an unreadable one
  ready = [root / split for split in SPLITS if (root / split).is_dir()]
  if table:
    found = _from_table(root, pathlib.Path(table))
  elif any(_directories(folder) for folder in ready):
    found = {split: {} for split in SPLITS}
    found |= {folder.name: _classes(folder, root) for folder in ready}
  else:
    classes = _classes(root, root)
    found = {split: {} for split in SPLITS}
    for name, split in _assign(list(classes), fractions, seed).items():
      found[split][name] = classes[name]
  if not any(found.values()):
    raise InputError(
      f"image folder {str(root)!r} holds no images; put those of each class "
      f"into a directory of their own ({', '.join(image_io.SUFFIXES)})"
    )
  _refuse_shared(found)
  return found


def classes(root: str | os.PathLike) -> dict[str, list[pathlib.Path]]:
  """{class name: sorted image paths} of a folder with a directory a class.

  Raises:
    InputError: there is no such folder or no class in it, a class has no
      images, or an image lies outside of all.
  """
  root = _existing(root)
  loose = [
    path for path in _images(root, root.resolve()) if path.parent == root
  ]
  if loose:
    raise InputError(
      f"{str(loose[0])!r} belongs to no class; put the images of each class "
      "into a directory of their own"
    )
  inside = root.resolve()
  found = {child.name: _images(child, inside) for child in _directories(root)}
  empty = [name for name, paths in found.items() if not paths]
  if empty:
    raise InputError(
      f"class {empty[0]!r} in {str(root)!r} has no images; put some there "
      f"({', '.join(image_io.SUFFIXES)}) or remove it"
    )
  if not found:
    raise InputError(
      f"image folder {str(root)!r} holds no directories; put the images of "
      "each class into one of their own"
    )
  return found


def below(root: str | os.PathLike) -> list[pathlib.Path]:
  """All images below a folder, sorted, or the one image that `root` is.

  Raises:
    InputError: there is no such folder, or no image in it.
  """
  if os.path.isfile(root):
    return [pathlib.Path(root)]
  root = _existing(root)
  found = _images(root, root.resolve())
  if not found:
    raise InputError(
      f"image folder {str(root)!r} holds no images "
      f"({', '.join(image_io.SUFFIXES)})"
    )
  return found


def _existing(root: str | os.PathLike) -> pathlib.Path:
  if not os.path.isdir(root):
    raise InputError(f"there is no image folder {os.fspath(root)!r}")
  return pathlib.Path(root)


def _refuse_shared(found) -> None:
  """Testing on classes that were trained on would not be few-shot learning."""
  split_of: dict[str, str] = {}
  for split, classes in found.items():
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
  inside = root.resolve()
  found = {child.name: _images(child, inside) for child in _directories(folder)}
  return {name: paths for name, paths in found.items() if paths}


def _images(folder: pathlib.Path, inside: pathlib.Path) -> list[pathlib.Path]:
  """Image files anywhere below a class directory, sorted; hidden ones not."""
  paths = []
  _refuse_outside(folder, inside)
  for here, directories, files in os.walk(folder, onerror=_unreadable):
    directories[:] = [name for name in directories if name[0] != "."]
    shown = [name for name in files if name[0] != "."]
    chosen = [n for n in shown if n.lower().endswith(image_io.SUFFIXES)]
    for name in directories + chosen:
      _refuse_outside(pathlib.Path(here, name), inside)
    paths += [pathlib.Path(here, name) for name in chosen]
  return sorted(paths)


def _refuse_outside(path: pathlib.Path, inside: pathlib.Path) -> None:
  """A link out of the folder would bring in what nobody meant to share."""
  if path.is_symlink() and not path.resolve().is_relative_to(inside):
    raise InputError(
      f"{str(path)!r} is a link out of the image folder, to "
      f"{str(path.resolve())!r}; copy what it points to, or remove it"
    )


def _assign(names: list[str], fractions, seed: int) -> dict[str, str]:
  """Class -> split; rounds so that all classes are used."""
  if len(fractions) != 3 or min(fractions) < 0 or sum(fractions) <= 0:
    raise InputError(
      f"config.data.fractions is {tuple(fractions)}; give three shares, none "
      "negative, such as (0.64, 0.16, 0.2)"
    )
  order = np.random.default_rng(seed).permutation(len(names))
  shares = np.cumsum(fractions) / sum(fractions)
  first, second = np.round(shares[:2] * len(names)).astype(int)
  split_of = np.repeat(
    SPLITS, [first, second - first, len(names) - second]
  ).tolist()
  return {names[i]: split for i, split in zip(order, split_of, strict=True)}


def _from_table(root, table):
  """Reads a CSV with columns label,split or filename,label,split."""
  try:
    with open(table, newline="", encoding="utf-8-sig") as file:
      rows = list(csv.DictReader(file))
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"cannot read the CSV {str(table)!r}: {error}") from error
  if not rows or not {"label", "split"} <= set(rows[0]):
    raise InputError(
      f"CSV {str(table)!r} needs a header with label,split or "
      f"filename,label,split; it has {list(rows[0]) if rows else 'no rows'}"
    )
  found: dict = {split: {} for split in SPLITS}
  classes = None if "filename" in rows[0] else _classes(root, root)
  inside = root.resolve()
  seen = set()
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
    if os.path.normpath(name) in seen:  # it could be support and query at once
      raise InputError(f"{where}: {name!r} comes twice; drop one of the lines")
    seen.add(os.path.normpath(name))
    if classes is not None:
      if label not in classes:
        raise InputError(
          f"{where}: class {label!r} has no images in {str(root)!r}"
        )
      found[split][label] = classes[label]
      continue
    path = root / name
    if not path.is_file() or not path.resolve().is_relative_to(inside):
      raise InputError(f"{where}: no file {name!r} in {str(root)!r}")
    found[split].setdefault(label, []).append(path)
  return found
