"""Reads the official archives: finds the images in them and their classes.

Each `read_` function yields the images of one data set in the order of the
archive, and `FORMATS` lists these functions. A data set that is always a ready
folder of images needs none; `layouts` reads such folders.
"""

import dataclasses
import io
import os
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from deepemd_jax.data import links
from deepemd_jax.data.published import layouts, splits
from deepemd_jax.data.published.archive_members import (
  read_members,
  read_texts,
  report_damage,
  tar_members,
)
from deepemd_jax.data.published.catalogue import Benchmark
from deepemd_jax.data.published.layouts import SourceImage
from deepemd_jax.errors import InputError
from deepemd_jax.utils import files

_CIFAR_RECORD = 2 + 3 * 32 * 32  # bytes: coarse label, fine label, pixels
_LARGEST_MAT = 1 << 26  # bytes, decompressed: 4,000 for each image of Cars196
_COMPRESSED = 15  # the type number of a compressed part of a MATLAB file
_MIRRORED_CARS = "cars_train"  # a folder that exists only in mirrors


def read_cub(benchmark: Benchmark, path: pathlib.Path) -> Iterator[SourceImage]:
  """Yields the images of CUB_200_2011.tgz.

  They are in CUB_200_2011/images/<class>/<image>. Tables beside `images` hold
  the bounding boxes.
  """
  classes = set(benchmark.split_of())
  boxes = _bounding_boxes(path) if benchmark.boxed else {}
  for member in read_members(path):
    parent, label, name = ["", "", *member.name.split("/")][-3:]
    if parent != "images" or label not in classes or name.startswith("."):
      continue
    key = f"{label}/{name}"
    if benchmark.boxed and key not in boxes:
      raise InputError(f"{str(path)!r} has no bounding box for {key[:99]!r}")
    yield SourceImage(key, label, member.content(), boxes.get(key))


def _bounding_boxes(path: pathlib.Path) -> dict[str, tuple[float, ...]]:
  """Returns {image: (left, top, width, height) in pixels}."""
  images, boxes = read_texts(path, "images.txt", "bounding_boxes.txt")
  try:
    names = dict(line.split(None, 1) for line in images.splitlines())
    rows = [line.split() for line in boxes.splitlines()]
    return {names[row[0]].strip(): tuple(map(float, row[1:5])) for row in rows}
  except (ValueError, KeyError, IndexError) as error:
    raise InputError(
      f"{str(path)!r}: images.txt and bounding_boxes.txt do not fit each other "
      f"({str(error)[:99]}); fetch it again"
    ) from error


def read_cifar(
  benchmark: Benchmark, path: pathlib.Path
) -> Iterator[SourceImage]:
  """Yields the images of cifar-100-binary.tar.gz, train.bin and test.bin."""
  del benchmark  # it has all 100 classes
  (text,) = read_texts(path, "fine_label_names.txt")
  missing = {"train.bin", "test.bin"}
  for member in read_members(path):
    part = member.name.rpartition("/")[2]
    if part in missing:
      missing.discard(part)
      with report_damage(path), member.open() as file:
        yield from _cifar_images(file, part, text.split(), path)
  if missing:
    names = ", ".join(sorted(missing))
    raise InputError(f"{str(path)!r} holds no {names}; fetch it again")


def _cifar_images(file, part, names, path) -> Iterator[SourceImage]:
  """Yields the images of train.bin or test.bin, 3,074 bytes each."""
  number = 0
  while record := file.read(_CIFAR_RECORD):
    if len(record) < _CIFAR_RECORD or record[1] >= len(names):
      raise InputError(
        f"{str(path)!r}: {part} is damaged at image {number}; fetch it again"
      )
    pixels = np.frombuffer(record, np.uint8, offset=2).reshape(3, 32, 32)
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    key = f"{part.removesuffix('.bin')}_{number:05d}"
    yield SourceImage(key, names[record[1]], image)
    number += 1


def read_ilsvrc(
  benchmark: Benchmark, path: pathlib.Path
) -> Iterator[SourceImage]:
  """Yields the images of ILSVRC2012_img_train.tar.

  The archive contains one tar for each class (wnid). `path` may also be a
  folder with one folder for each class. miniImageNet uses only the 600 images
  of a class that its list of files names.
  """
  classes, numbers = set(benchmark.split_of()), None
  if benchmark.name == "miniimagenet":
    numbers = splits.file_numbers(benchmark.name)

  def belongs(label: str, name: str) -> bool:
    stem, _, suffix = name.partition(".")
    number = stem.removeprefix(f"{label}_")
    if number == stem or suffix.lower() not in ("jpeg", "jpg"):
      return False
    return numbers is None or (
      number.isdecimal() and int(number) in numbers[label]
    )

  if path.is_dir():
    for label in sorted(classes):
      for name in layouts.list_folder(path / label):
        if belongs(label, name):
          yield SourceImage(name, label, path / label / name)
    return
  for outer in read_members(path):
    label = outer.name.rpartition("/")[2].removesuffix(".tar")
    if label not in classes:
      continue
    with report_damage(path), outer.open() as file:
      for member in tar_members(file, path, "r:"):
        name = member.name.rpartition("/")[2]
        if belongs(label, name):
          yield SourceImage(name, label, member.content())


def read_products(
  benchmark: Benchmark, path: pathlib.Path
) -> Iterator[SourceImage]:
  """Yields the images of Stanford_Online_Products.zip, <kind>_final/<image>.

  The two tables Ebay_train.txt and Ebay_test.txt have lines of the form
  image_id class_id super_class_id path.
  """
  del benchmark  # it has all classes
  label_of = {}
  for text in read_texts(path, "Ebay_train.txt", "Ebay_test.txt"):
    for line in text.splitlines()[1:]:
      try:
        _, number, _, name = line.split()
        label_of[name] = f"{int(number):05d}"
      except ValueError as error:
        raise InputError(
          f"{str(path)!r}: {line[:99]!r} is not a line of Ebay_train.txt or "
          "Ebay_test.txt; fetch it again"
        ) from error
  yield from _images_in_table(path, label_of)


def read_cars(
  benchmark: Benchmark, path: pathlib.Path
) -> Iterator[SourceImage]:
  """Yields the images of Cars196.

  `path` is car_ims.tgz, with cars_annos.mat beside it, or a folder with both.
  It may also be a mirror's folder: it has cars_train/ and cars_test/, and a
  table for each in devkit/ or beside them.
  """
  lists = splits.load(benchmark.name)["splits"]
  names = [name for split in lists.values() for name in split]
  folder = path if path.is_dir() else path.parent
  label_of = {}
  if is_mirrored(path):
    for part, file in (
      (_MIRRORED_CARS, "cars_train_annos.mat"),
      ("cars_test", "cars_test_annos_withlabels.mat"),
    ):
      table = folder / "devkit" / file
      if not table.is_file():
        table = folder / file
      rows = _rows_of_cars(table, "fname", names, path)
      label_of |= {f"{part}/{name}": label for name, label in rows.items()}
  else:
    table = folder / "cars_annos.mat"
    label_of = _rows_of_cars(table, "relative_im_path", names, path)
  yield from _images_in_table(path, label_of)


def is_mirrored(folder: pathlib.Path) -> bool:
  """Returns whether a folder is a mirror of Cars196; see `read_cars`."""
  return (folder / _MIRRORED_CARS).is_dir()


def _rows_of_cars(
  table: pathlib.Path, column: str, names: list[str], path: pathlib.Path
) -> dict[str, str]:
  """Reads a table and returns {image: class}.

  Args:
    table: path of a MATLAB file.
    column: the column with the names of the images.
    names: the names of the classes, in the order of their numbers.
    path: path of the archive or the folder; no link may lead out of the
      folder.
  """
  import scipy.io

  if path.is_dir():
    links.refuse_outside(table, os.path.realpath(path))
  if not table.is_file():
    raise InputError(
      f"there is no {str(table)!r}, which has the labels of the images of "
      f"{str(path)!r}; put that file there"
    )
  try:
    content = _inflated_mat(files.read_regular(table, _LARGEST_MAT))
    rows = scipy.io.loadmat(io.BytesIO(content))["annotations"]
    return {
      str(row[column].item()): names[int(row["class"].item()) - 1]
      for row in rows.ravel()
    }
  except Exception as error:  # scipy raises errors of many types
    raise InputError(
      f"{str(table)!r} is damaged, or not the expected table; fetch it again"
    ) from error


def _inflated_mat(content: bytes) -> bytes:
  """Decompresses the parts of a MATLAB file, up to a limit.

  SciPy would decompress them without a limit. The file is a header of 128 bytes
  and then parts, each with its type number and its length.

  Raises:
    ValueError, struct.error, zlib.error: the file is damaged or too large.
  """
  parts, at, room = [content[:128]], 128, _LARGEST_MAT
  while at < len(content):
    kind, length = struct.unpack_from("<II", content, at)
    part = content[at : at + 8 + length]
    if kind == _COMPRESSED:
      part = zlib.decompressobj().decompress(part[8:], room)
      if len(part) >= room:
        raise ValueError("too large")
    room -= len(part)
    parts.append(part)
    at += 8 + length
  return b"".join(parts)


def _images_in_table(
  path: pathlib.Path, label_of: dict[str, str]
) -> Iterator[SourceImage]:
  """Yields the images that a table lists.

  `label_of` has the last two parts of their paths as keys. Images that are
  missing in the archive come last, without content.
  """
  missing = dict(label_of)
  for member in read_members(path):
    key = "/".join(member.name.split("/")[-2:])
    if key in missing:
      yield SourceImage(key, missing.pop(key), member.content())
  for key, label in missing.items():
    yield SourceImage(key, label, None)


@dataclasses.dataclass(frozen=True)
class ArchiveFormat:
  """The format of an official archive.

  Attributes:
    read: yields the images of a benchmark, from the archive or from the folder
      that it was unpacked into.
    folder: the name of the folder that the archive unpacks into.
    signs: names of files or folders, any of which identifies that folder; () if
      its class folders identify it.
  """

  read: Callable[[Benchmark, pathlib.Path], Iterator[SourceImage]]
  folder: str = ""
  signs: tuple[str, ...] = ()


FORMATS = {
  "cub": ArchiveFormat(read_cub, "CUB_200_2011", ("images.txt",)),
  "cifar": ArchiveFormat(read_cifar, "cifar-100-binary", ("train.bin",)),
  "ilsvrc": ArchiveFormat(read_ilsvrc),
  "cars": ArchiveFormat(
    read_cars, "stanford_cars", ("cars_annos.mat", _MIRRORED_CARS)
  ),
  "products": ArchiveFormat(
    read_products, "Stanford_Online_Products", ("Ebay_train.txt",)
  ),
}
