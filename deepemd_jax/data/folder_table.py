"""Reads a CSV that assigns the images of a folder to classes and splits.

The header of the CSV is one of these:

label,split             each line gives the split of a class (a directory)
filename,label,split    each line gives one image, anywhere below the folder
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable

from deepemd_jax.data import links, names, table
from deepemd_jax.errors import InputError

SPLITS = ("train", "val", "test")
# The names that people use for the splits, in lower case.
_SPLIT_OF = {
  **{name: name for name in SPLITS},
  **{f"meta-{name}": name for name in SPLITS},
  **{"training": "train", "valid": "val", "validation": "val"},
  "testing": "test",
}
Classes = dict[str, list[pathlib.Path]]


def split_called(name: str) -> str | None:
  """Returns the split that a name means ("Training" is train), or None."""
  return _SPLIT_OF.get(name.strip().lower())


def splits(
  path: pathlib.Path,
  root: pathlib.Path,
  *,
  classes: Callable[[], Classes],
  images: Callable[[], list[pathlib.Path]],
) -> dict[str, Classes]:
  """Reads a table and returns {split: {class name: image paths}}.

  A name may have any spelling that `names` finds. A class keeps the spelling of
  its directory or, in a table of files, the first spelling in the table.

  Args:
    path: path of the table.
    root: the image folder.
    classes: returns the image paths of each directory of `root`.
    images: returns all image paths below `root`.

  Raises:
    InputError: the table does not fit the folder, or contradicts itself.
  """
  rows = table.read(path, ("filename", "label", "split"), ("label", "split"))
  reader = _of_files if "filename" in rows[0].fields else _of_classes
  found: dict[str, Classes] = {split: {} for split in SPLITS}
  taken = set()
  for where, row, name, label, paths in reader(
    path, root, rows, classes, images
  ):
    split = split_called(row["split"])
    if split is None:
      raise InputError(
        f"{where}: split is {row['split']!r}; use one of {', '.join(SPLITS)}"
      )
    if name in taken:  # the same image could be support and query
      given = row.get("filename", row["label"])
      raise InputError(f"{where}: {given!r} occurs twice; remove a line")
    taken.add(name)
    found[split].setdefault(label, []).extend(paths)
  return found


def _of_classes(path, root, rows, classes, images):
  """Yields the place of a row in the file, the row, the name that must be
  unique, the class, and the image paths."""
  del images
  of_class = classes()
  known = names.Names(of_class)
  for line, row in rows:
    where = f"CSV {str(path)!r} line {line}"
    name = _found(known, row["label"], where)
    if name is None:
      raise InputError(
        f"{where}: class {row['label']!r} has no images in {str(root)!r}"
      )
    yield where, row, name, name, of_class[name]


def _of_files(path, root, rows, classes, images):
  """Does the work of `_of_classes` for a table with file names."""
  del classes
  labels: dict[str, str] = {}
  # Few tables need this list of all files, so it is built on the first call.
  known = functools.cache(
    lambda: names.Names(x.relative_to(root).as_posix() for x in images())
  )
  for line, row in rows:
    where = f"CSV {str(path)!r} line {line}"
    label = labels.setdefault(names.same(row["label"]), row["label"])
    image = _file_called(root, row["filename"], known, where)
    yield where, row, image, label, [image]
  _refuse_capitals(labels.values(), path)


def _file_called(root, name: str, known, where: str) -> pathlib.Path:
  """Returns the path of the file in `root` that a table names."""
  inside = os.path.realpath(root)
  tidy = name.replace("\\", "/")
  for written in (name, tidy):
    path = pathlib.Path(os.path.normpath(root / written))
    climbs = not path.is_relative_to(os.path.normpath(root))
    # `path.is_file()` would raise an error if the name is too long.
    if os.path.isfile(path) and (not climbs or os.path.isabs(written)):
      break
  else:
    found = _written_elsewhere(known(), tidy, where)
    if found is None:
      raise InputError(
        f"{where}: no file {name!r} in {str(root)!r}; give names relative to "
        "that folder, such as cats/1.jpg"
      )
    path = root / found
  links.refuse_outside(path, inside)
  return path


def _written_elsewhere(known: names.Names, name: str, where: str) -> str | None:
  """Returns the known file that a path means, or None.

  An absolute path may be from another machine, such as C:/photos/cats/1.jpg. It
  means the file that agrees with the longest end of the path.
  """
  parts = pathlib.PurePosixPath(os.path.normpath(name)).parts
  absolute = name.startswith("/") or name[1:3] == ":/"
  for start in range(len(parts) if absolute else 1):
    if found := _found(known, "/".join(parts[start:]), where):
      return found
  return None


def _found(known: names.Names, name: str, where: str) -> str | None:
  try:
    return known.find(name)
  except InputError as error:
    raise InputError(f"{where}: {error}") from error


def _refuse_capitals(labels: Iterable[str], path: pathlib.Path) -> None:
  """Raises an error if two labels differ only in capital letters."""
  first: dict[str, str] = {}
  for label in labels:
    other = first.setdefault(label.casefold(), label)
    if other != label:
      raise InputError(
        f"CSV {str(path)!r} has labels {other!r} and {label!r}; write them "
        "alike or, if they are two classes, give them different names"
      )
