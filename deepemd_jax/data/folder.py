"""Lists the user's own images: one directory per class, or a CSV.

    root/<class>/*.jpg                      classes are split by fractions
    root/{train,val,test}/<class>/*.jpg     directories are the splits
    CSV label,split                         the CSV gives the split of a class
    CSV filename,label,split                the CSV gives each image below root

This module lists the files of each split, and `folder_source` reads them.
`picture_files` decides which files are pictures and which are system files. A
directory without pictures is not a class.
"""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpy as np

from deepemd_jax.data import folder_table, links, names, picture_files
from deepemd_jax.data.folder_table import SPLITS, Classes, split_called
from deepemd_jax.errors import InputError
from deepemd_jax.utils.random_streams import Stream, stream
from deepemd_jax.utils.terminal import note, note_once


def listing(
  root: str | os.PathLike,
  *,
  fractions: Sequence[float] = (0.64, 0.16, 0.2),
  table: str | os.PathLike | None = None,
  seed: int = 0,
) -> dict[str, dict[str, list[pathlib.Path]]]:
  """Returns {split: {class name: sorted image paths}} without decoding images.

  Args:
    root: the image folder.
    fractions: shares of the classes for train, val and test, if neither the
      folder nor `table` defines the splits.
    table: path of a CSV, described in the module's docstring, or None.
    seed: the seed that shuffles the classes before they are split.

  Raises:
    InputError: there is no such folder, it contains no images, or the CSV does
      not fit the folder.
  """
  root = _existing(root)
  split_folders = _split_folders(root)
  if table:
    splits = folder_table.splits(
      pathlib.Path(table),
      root,
      classes=lambda: _classes(root, root),
      images=lambda: _images(root, root),
    )
  elif split_folders:
    splits = {name: {} for name in SPLITS}
    for name, child in split_folders.items():
      splits[name] = _classes(child, root)
  else:
    classes = _classes(root, root)
    if loose := _loose(root):
      note_once(
        f"{len(loose)} images in {str(root)!r} belong to no class, such as "
        f"{loose[0].name!r}; they are left out"
      )
    splits = {name: {} for name in SPLITS}
    for name, split in _share_out(list(classes), fractions, seed).items():
      splits[split][name] = classes[name]
  if not any(splits.values()):
    raise InputError(
      f"image folder {str(root)!r} holds no images; put those of each class "
      f"into a directory of their own ({picture_files.USUAL})"
    )
  _refuse_shared_classes(splits)
  return splits


def classes(root: str | os.PathLike) -> Classes:
  """Returns {class name: sorted image paths} of a folder of classes.

  Raises:
    InputError: there is no such folder or no class in it, or an image belongs
      to no class.
  """
  root = _existing(root)
  if loose := _loose(root):
    raise InputError(
      f"{str(loose[0])!r} belongs to no class; put the images of each class "
      "into a directory of their own"
    )
  classes = _classes(root, root)
  for child in _directories(root):
    if child.name not in classes:
      note(f"{str(child)!r} is not a class: it holds no images")
  if not classes:
    raise InputError(
      f"image folder {str(root)!r} holds no directories of images; put the "
      f"images of each class into their own directory ({picture_files.USUAL})"
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
  paths = _images(root, root)
  if not paths:
    raise InputError(
      f"image folder {str(root)!r} holds no images ({picture_files.USUAL})"
    )
  return paths


def _existing(root: str | os.PathLike) -> pathlib.Path:
  if not os.path.isdir(root):
    raise InputError(f"there is no image folder {os.fspath(root)!r}")
  root = pathlib.Path(root)
  _directories(root)  # raises an error if the folder is unreadable
  return root


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns {split: directory} of split directories that contain classes."""
  found: dict[str, pathlib.Path] = {}
  for child in _directories(root):
    split = split_called(child.name)
    if split is None or not _directories(child):
      continue
    if split in found:
      raise InputError(
        f"in {str(root)!r} both {found[split].name!r} and {child.name!r} are "
        f"split {split}; keep one of them"
      )
    found[split] = child
  return found


def _refuse_shared_classes(splits) -> None:
  """Raises an error if a class is in two splits.

  The classes of a few-shot test must be new to the model.
  """
  split_of: dict[str, str] = {}
  for split, classes in splits.items():
    for name in classes:
      if names.same(name) in split_of:
        raise InputError(
          f"class {name!r} is in {split_of[names.same(name)]} and in {split}; "
          "few-shot splits share no classes: put each class into one split"
        )
      split_of[names.same(name)] = split


def _directories(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the sorted directories in a folder, without system directories."""
  try:
    children = sorted(folder.iterdir())
    shown = [c for c in children if not picture_files.is_system(c.name)]
    return [child for child in shown if child.is_dir()]
  except OSError as error:
    _unreadable(error)


def _loose(root: pathlib.Path) -> list[pathlib.Path]:
  """Returns the sorted pictures directly in a folder."""
  return [
    child
    for child in sorted(root.iterdir())
    if not picture_files.is_system(child.name)
    and not child.is_dir()
    and picture_files.is_picture(child)
  ]


def _unreadable(error: OSError) -> NoReturn:
  raise InputError(
    f"cannot read folder {error.filename!r}: {error.strerror}; change its "
    "permissions or remove it"
  ) from error


def _classes(folder: pathlib.Path, root: pathlib.Path) -> Classes:
  """Returns {class name: sorted image paths} of the directories with images.

  Raises:
    InputError: the directories are not classes but contain classes, or two
      names look the same.
  """
  classes = {child.name: _images(child, root) for child in _directories(folder)}
  classes = {name: paths for name, paths in classes.items() if paths}
  deep = {
    name: paths
    for name, paths in classes.items()
    if not any(path.parent == folder / name for path in paths)
  }
  for some in (classes, deep):
    if len(some) > 1 and all(map(split_called, some)):
      _refuse_root(folder, list(some), deep)
  if deep and len(deep) == len(classes):
    raise InputError(
      f"no directory in {str(folder)!r} contains images itself; they are in "
      "subdirectories; give the folder whose directories are the classes, such "
      f"as {_parents(deep.values())}, or put all images of a class into one "
      "directory"
    )
  names.refuse_twins(classes, "classes")
  return classes


def _refuse_root(folder: pathlib.Path, splits: list, deep: Classes) -> NoReturn:
  """Raises the error about a folder whose directories are splits."""
  splits.sort(key=lambda name: SPLITS.index(split_called(name)))
  remedy = "put the images of each class into a directory of their own"
  if deep:
    within = [deep[name] for name in splits if name in deep]
    remedy = f"give one of them: {_parents(within)}"
  raise InputError(
    f"{str(folder)!r} is the root of a data set: {', '.join(splits)} are "
    f"splits, not classes; {remedy}"
  )


def _parents(classes: Iterable[list]) -> str:
  """Returns a text with up to three parents of the directories with images."""
  found = dict.fromkeys(paths[0].parent.parent for paths in classes)
  return " or ".join(repr(str(path)) for path in list(found)[:3])


def _images(folder: pathlib.Path, root: pathlib.Path) -> list[pathlib.Path]:
  """Returns the sorted pictures below a directory, without system files.

  Args:
    folder: the directory.
    root: the image folder; no link may lead out of it.
  """
  paths = []
  inside = os.path.realpath(root)
  links.refuse_outside(folder, inside)
  for here, directories, files in os.walk(folder, onerror=_unreadable):
    directories[:] = [x for x in directories if not picture_files.is_system(x)]
    shown = [name for name in files if not picture_files.is_system(name)]
    chosen = [x for x in shown if picture_files.is_picture(f"{here}/{x}")]
    for name in directories + chosen:
      if os.path.islink(os.path.join(here, name)):
        links.refuse_outside(os.path.join(here, name), inside)
    paths += [pathlib.Path(here, name) for name in chosen]
  return sorted(paths)


def _share_out(names: list[str], fractions, seed: int) -> dict[str, str]:
  """Assigns each class to a split; returns {class: split}."""
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
