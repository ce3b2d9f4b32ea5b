"""Reads ready folders: few-shot data sets in the layouts that people have.

    tables    images/ and split/{train,val,test}.csv: filename,label; the file
              names may also lead elsewhere (the official DeepEMD code, FEAT).
              Or {train,val,test}.csv: class_name,image_name (easyfsl).
    folders   {train,val,test}/<class>/<image>, or meta-train/ and so on (the
              official DeepEMD code)
    lists     {train,val,test}.json with class_names and class_roots (easyfsl)
    classes   <class>/<image> with all classes, as for image classification;
              also in images/, or with the images of each class divided among
              train/, val/ and test/, which may be in dataset/

The folder gives the images of each class. The split of a class comes from the
published list, not from the folder.
"""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from deepemd_jax.data import links, picture_files, table
from deepemd_jax.data.published import catalogue
from deepemd_jax.errors import InputError
from deepemd_jax.utils import files


class SourceImage(NamedTuple):
  """One image of a data set, before it is decoded.

  Attributes:
    key: the name of the image, unique in the data set.
    label: the name of its class.
    content: the bytes of a file, the path of a file, or pixels; None if the
      image is listed but does not exist.
    box: the part to keep, in pixels: left, top, width, height; None keeps the
      whole image.
  """

  key: str
  label: str
  content: bytes | pathlib.Path | Image.Image | None
  box: tuple[float, ...] | None = None


def list_folder(folder: pathlib.Path) -> list[str]:
  """Returns the sorted names in a folder, without files of operating systems.

  Raises:
    InputError: the folder cannot be read.
  """
  try:
    names = os.listdir(folder)
    return sorted(x for x in names if not picture_files.is_system(x))
  except OSError as error:
    raise InputError(
      f"cannot read folder {str(folder)!r}: {error.strerror}"
    ) from error


def read(
  benchmark: catalogue.Benchmark, root: pathlib.Path
) -> Iterator[SourceImage]:
  """Returns the images of a ready folder.

  Raises:
    InputError: the layout is unknown, a part of the folder is missing, or
      folders of this layout do not contain the images of this data set.
  """
  for name in list_folder(root):
    if name.endswith((".pkl", ".pickle")):
      raise InputError(
        f"{str(root)!r} holds pickles ({name}), as FEAT's and MetaOptNet's "
        "copies do; pickles are programs, so they are not opened, and their "
        "labels carry no class names; use the archive or a folder of images"
      )
  for layout, (reader, places) in _LAYOUTS.items():
    for place in places:
      paths = {s: root / place.format(split=s) for s in benchmark.splits}
      present = [s for s, path in paths.items() if path.exists()]
      if not present:
        continue
      missing = [str(p) for s, p in paths.items() if s not in present]
      refused = layout not in benchmark.layouts
      if layout == "folders" and (missing or refused):
        if _class_folders(benchmark, root):
          continue  # train/ and val/ may each have a part of each class
      if missing:
        raise InputError(
          f"{str(root)!r} is not complete: there is no {', '.join(missing)}"
        )
      if refused:
        raise InputError(_why_layout_is_refused(benchmark, root, layout))
      for path in paths.values():
        links.refuse_outside(path, os.path.realpath(root))
      return reader(root, list(paths.values()), set(benchmark.split_of()))
  if folders := _class_folders(benchmark, root):
    return _read_classes(root, folders)
  raise InputError(_what_was_expected(benchmark, root))


def _class_folders(benchmark, root) -> dict[str, list[pathlib.Path]]:
  """Returns the folders of each class, or nothing if a class has none."""
  if "classes" not in benchmark.layouts:
    return {}
  places = [root / place for place in _CLASS_PLACES]
  folders = {
    label: [
      place / name
      for place in places
      for name in names
      if (place / name).is_dir()
    ]
    for label, names in sorted(benchmark.folders_of().items())
  }
  return folders if all(folders.values()) else {}


def _why_layout_is_refused(benchmark, root, layout) -> str:
  """Returns the reason why folders of this layout do not fit the data set."""
  if benchmark.boxed:
    why = "easyfsl's images are whole, but cub needs crops: use cub_full"
  elif benchmark.name == "cub_full":
    why = "DeepEMD's and FEAT's images are cropped to their boxes: use cub"
  elif benchmark.layouts:
    why = f"its ready folders are {' or '.join(benchmark.layouts)}"
  else:
    why = "no ready folders of it are known"
  other = "".join(f"; or use {a.file}" for a in benchmark.archives[:1])
  return (
    f"{str(root)!r} ({layout}) cannot become {benchmark.name}: {why}{other}"
  )


def _what_was_expected(benchmark, root) -> str:
  expected = []
  if benchmark.archives:
    expected += [benchmark.archives[0].file, "its unpacked content"]
  if benchmark.mirrored:
    expected.append(benchmark.mirrored)
  for layout, (_, places) in _LAYOUTS.items():
    if layout in benchmark.layouts:
      below = "/<class>" * (layout == "folders")
      expected += [place.format(split="train") + below for place in places]
  if "classes" in benchmark.layouts:
    expected.append("a folder of images for each class")
  return (
    f"{str(root)!r} has nothing that {benchmark.name} can be made from; "
    f"looked for {', '.join(expected)}"
  )


def _read_tables(root, paths, classes) -> Iterator[SourceImage]:
  for path in paths:
    rows = table.read(path, ("filename", "label"), ("class_name", "image_name"))
    for line, row in rows:
      where = f"{str(path)!r} line {line}"
      if "filename" in row:
        label, name = row["label"], row["filename"]
      else:
        label = row["class_name"]
        name = f"{label}/{row['image_name']}"
      _require_class(label, classes, where)
      yield SourceImage(name, label, _find(root, name, where))


def _require_class(label: str, classes, where: str) -> None:
  if label not in classes:
    raise InputError(
      f"{where}: {label!r} is not a class of this data set, whose classes "
      f"have names such as {min(classes)!r}"
    )


def _find(root: pathlib.Path, name: str, where: str) -> pathlib.Path | None:
  """Returns the path of a file or folder that a list names, or None.

  The list may have been written on another machine, so the longest end of its
  path that exists below `root` or `root/images` counts.
  """
  parts = [p for p in name.replace("\\", "/").split("/") if p not in ("", ".")]
  if ".." in parts:
    raise InputError(f"{where}: {name!r} leads out of the folder")
  for start in range(len(parts)):
    for top in (root, root / "images"):
      path = top.joinpath(*parts[start:])
      # `path.exists()` would raise an error if the name is too long.
      if os.path.exists(path):
        return path
  return None


def _read_folders(root, paths, classes) -> Iterator[SourceImage]:
  del root
  for path in paths:
    for label in list_folder(path):
      if not (path / label).is_dir():
        continue
      _require_class(label, classes, str(path))
      yield from _class_images(path / label, label)


def _class_images(folder: pathlib.Path, label: str) -> Iterator[SourceImage]:
  for name in list_folder(folder):
    if picture_files.is_picture(folder / name):
      yield SourceImage(f"{label}/{name}", label, folder / name)


def _read_classes(root, folders) -> Iterator[SourceImage]:
  for label, places in folders.items():
    keys = set()
    for folder in places:
      links.refuse_outside(folder, os.path.realpath(root))
      for image in _class_images(folder, label):
        # The key is the same as in other layouts, because episodes depend on
        # the order of keys. Two parts of a class may both have a 0001.png,
        # though.
        if image.key in keys:
          place = folder.relative_to(root).as_posix()
          # pyrefly: ignore[missing-attribute]: it is a path
          image = image._replace(key=f"{place}/{image.content.name}")
        keys.add(image.key)
        yield image


def _read_lists(root, paths, classes) -> Iterator[SourceImage]:
  for path in paths:
    where = repr(str(path))
    try:
      lists = json.loads(files.read_regular(path))
      pairs = list(zip(lists["class_names"], lists["class_roots"], strict=True))
    except (
      OSError,
      ValueError,
      LookupError,
      TypeError,
      RecursionError,
    ) as error:
      raise InputError(
        f"cannot read {where}: it needs class_names and class_roots of equal "
        "length"
      ) from error
    for label, folder in pairs:
      label = str(label)  # JSON may have any type here
      if label not in classes:  # then only the folder's name is the wnid
        label = pathlib.PurePosixPath(str(folder)).name
      _require_class(label, classes, where)
      path = _find(root, str(folder), where)
      if path is None or not path.is_dir():
        raise InputError(f"{where}: there is no folder {folder!r}")
      yield from _class_images(path, label)


# The folders that may contain the class folders of the layout "classes".
_HALVES = ("train", "val", "test")
_CLASS_PLACES = ("", "images", *_HALVES, *(f"dataset/{x}" for x in _HALVES))
_LAYOUTS = {
  "tables": (_read_tables, ("split/{split}.csv", "{split}.csv")),
  "lists": (_read_lists, ("{split}.json",)),
  "folders": (_read_folders, ("{split}", "meta-{split}")),
}
