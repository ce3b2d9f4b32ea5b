"""The official archives as streams of images.

`read` yields the images of one data set, each once, in one pass over its
archive (tar, tar.gz, zip) or the folder that it was unpacked into. Nothing is
ever written to the names that stand in an archive, and links in it are not
followed: paths there cannot do harm.
"""

import contextlib
import gzip
import io
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from deepemd_jax.data.published import catalogue, layouts, splits
from deepemd_jax.data.published.layouts import Item
from deepemd_jax.errors import InputError

_RECORD = 2 + 3 * 32 * 32  # of CIFAR-100: coarse label, fine label, pixels
_LARGEST = 1 << 28  # bytes of a single image file or table; no honest one is


def read(
  benchmark: catalogue.Benchmark, source: str | os.PathLike
) -> Iterator[Item]:
  """The images of a data set's classes, in the order of `source`.

  Args:
    benchmark: what to read.
    source: its archive, a folder with that archive in it, the folder it was
      unpacked into, or a ready folder, see `layouts`.

  Raises:
    InputError: there is nothing to read there, it is damaged, or it is
      something else; also while the images are taken from the iterator.
  """
  source, ready = _locate(benchmark, source)
  if ready:
    return layouts.read(benchmark, source)
  kind, classes = benchmark.kind, set(benchmark.split_of())
  if kind == "cub":
    return _cub(source, classes, boxed=benchmark.boxed)
  if kind == "cifar":
    return _cifar(source)
  if kind == "ilsvrc":
    numbers = None
    if benchmark.name == "miniimagenet":
      numbers = splits.file_numbers(benchmark.name)
    return _ilsvrc(source, classes, numbers)
  if kind == "cars":
    return _cars(source)
  return _products(source)


def describe(benchmark: catalogue.Benchmark, source: str | os.PathLike) -> str:
  """What `source` is, for the record: in words that hold on any machine."""
  _, ready = _locate(benchmark, source)
  words = f"made from {pathlib.Path(source).resolve().name}"
  if ready:
    return f"{words}, a ready folder, its images as they were"
  if benchmark.name == "miniimagenet":
    return f"{words}, the 600 images a class that easyfsl lists"
  return words


def _locate(benchmark, source) -> tuple[pathlib.Path, bool]:
  """The archive or what was unpacked from it; and whether it is neither of
  them, but a ready folder."""
  source = pathlib.Path(source)
  if not source.exists():
    raise InputError(f"there is no file or folder {str(source)!r}")
  if not source.is_dir():
    return source, False
  archive = source / benchmark.archives[0].file
  if archive.is_file():
    return archive, False
  unpacked = _unpacked(benchmark, source)
  return (unpacked, False) if unpacked else (source, True)


_SIGNS = {
  "cub": ("CUB_200_2011", "images.txt"),
  "cifar": ("cifar-100-binary", "train.bin"),
  "cars": ("", "cars_annos.mat"),
  "products": ("Stanford_Online_Products", "Ebay_train.txt"),
}


def _unpacked(benchmark, folder) -> pathlib.Path | None:
  """The folder, in or below `folder`, that an archive was unpacked into."""
  if benchmark.kind == "ilsvrc":
    # One class of each split: else it is one split of a ready folder.
    few = {split: name for name, split in benchmark.split_of().items()}
    for below in (".", "train", "ILSVRC/Data/CLS-LOC/train"):
      if all((folder / below / name).is_dir() for name in few.values()):
        return folder / below
    return None
  name, sign = _SIGNS[benchmark.kind]
  found = (f for f in (folder, folder / name) if (f / sign).is_file())
  return next(found, None)


class _Member(NamedTuple):
  """A file in an archive or a folder.

  Attributes:
    name: its path in there, with slashes.
    content: gives its bytes, or the path where they lie.
    open: gives a file object.
  """

  name: str
  content: Callable[[], bytes | pathlib.Path]
  open: Callable[[], BinaryIO]


@contextlib.contextmanager
def _damage(path: pathlib.Path):
  """Says which file is damaged, and what to do."""
  try:
    yield
  except (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError),
    *(gzip.BadGzipFile, NotImplementedError, RuntimeError),
  ) as error:
    # tarfile goes on to list what each kind of compression says.
    words = str(error).partition(":")[0].split()
    reason = " ".join(words) or type(error).__name__
    raise InputError(
      f"{str(path)!r} is damaged, or not the archive it should be ({reason}); "
      "fetch it again"
    ) from error
  except OSError as error:
    reason = error.strerror or error
    raise InputError(f"cannot read {str(path)!r}: {reason}") from error


def _members(path: pathlib.Path) -> Iterator[_Member]:
  """The regular files of an archive or a folder, in one pass.

  `content` and `open` of one must be called before the next is taken.
  """
  with _damage(path):
    if path.is_dir():
      yield from _files(path)
    elif zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
          if not info.is_dir():
            size, start = info.file_size, _bound(archive.open, info)
            yield _member(info.filename, size, start, path)
    else:
      with tarfile.open(path) as archive:
        for info in archive:
          if info.isfile():
            start = _bound(archive.extractfile, info)
            yield _member(info.name, info.size, start, path)


def _bound(function, argument):
  return lambda: function(argument)


def _member(name, size, start, path) -> _Member:
  def content():
    if size > _LARGEST:
      raise InputError(f"{str(path)!r}: {name!r} has {size} bytes: no image")
    with _damage(path), start() as file:
      return file.read()

  return _Member(name, content, start)


def _files(folder: pathlib.Path) -> Iterator[_Member]:
  for here, directories, names in os.walk(folder):
    directories.sort()
    for name in sorted(names):
      path = pathlib.Path(here, name)
      where = path.relative_to(folder).as_posix()
      yield _Member(where, _bound(pathlib.Path, path), _bound(path.open, "rb"))


def _texts(path: pathlib.Path, *names: str) -> list[str]:
  """The contents of some text files, found by their plain names."""
  found = {}
  for member in _members(path):
    plain = member.name.rpartition("/")[2]
    if plain in names and plain not in found:
      with _damage(path), member.open() as file:
        found[plain] = file.read(_LARGEST).decode("utf-8", "replace")
    if len(found) == len(names):
      return [found[name] for name in names]
  lacking = ", ".join(name for name in names if name not in found)
  raise InputError(f"{str(path)!r} holds no {lacking}: it is another archive")


def _shown(name: str) -> bool:
  return not name.rpartition("/")[2].startswith(".")


def _cub(path, classes: Collection[str], *, boxed: bool) -> Iterator[Item]:
  """CUB_200_2011.tgz: CUB_200_2011/images/<class>/<image>, and tables."""
  boxes = _boxes(path) if boxed else {}
  for member in _members(path):
    above, label, name = ["", "", *member.name.split("/")][-3:]
    if not (above == "images" and label in classes and _shown(name)):
      continue
    key = f"{label}/{name}"
    if boxed and key not in boxes:
      raise InputError(f"{str(path)!r} has no bounding box for {key!r}")
    yield Item(key, label, member.content(), boxes.get(key))


def _boxes(path) -> dict[str, tuple[float, ...]]:
  """{image: (left, top, width, height) in pixels}."""
  images, boxes = _texts(path, "images.txt", "bounding_boxes.txt")
  try:
    names = dict(line.split(None, 1) for line in images.splitlines())
    rows = [line.split() for line in boxes.splitlines()]
    return {names[row[0]].strip(): tuple(map(float, row[1:5])) for row in rows}
  except (ValueError, KeyError, IndexError) as error:
    raise InputError(
      f"{str(path)!r}: images.txt and bounding_boxes.txt do not fit each other "
      f"({error}); fetch it again"
    ) from error


def _cifar(path) -> Iterator[Item]:
  """cifar-100-binary.tar.gz: train.bin and test.bin, 3,074 bytes an image."""
  (text,) = _texts(path, "fine_label_names.txt")
  names = text.split()
  parts = {"train.bin", "test.bin"}
  for member in _members(path):
    part = member.name.rpartition("/")[2]
    if part not in parts:
      continue
    parts.discard(part)
    with _damage(path), member.open() as file:
      number = 0
      while record := file.read(_RECORD):
        if len(record) < _RECORD or record[1] >= len(names):
          raise InputError(
            f"{str(path)!r}: {part} is damaged at image {number}; fetch it "
            "again"
          )
        pixels = np.frombuffer(record, np.uint8, offset=2).reshape(3, 32, 32)
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        key = f"{part.removesuffix('.bin')}_{number:05d}"
        yield Item(key, names[record[1]], image)
        number += 1
  if parts:
    lacking = ", ".join(sorted(parts))
    raise InputError(f"{str(path)!r} holds no {lacking}; fetch it again")


def _ilsvrc(
  path, classes: Collection[str], numbers: Mapping[str, Collection[int]] | None
) -> Iterator[Item]:
  """ILSVRC2012_img_train.tar, a tar with one tar for each class; or a folder
  with one folder for each class.

  Args:
    path: of either.
    classes: wnids.
    numbers: of the images that are wanted, by class; None for all.
  """

  def wanted(label, name):
    stem, dot, suffix = name.partition(".")
    number = stem.removeprefix(f"{label}_")
    if number == stem or suffix.lower() not in ("jpeg", "jpg"):
      return False
    return numbers is None or (
      number.isdecimal() and int(number) in numbers[label]
    )

  if path.is_dir():
    for label in sorted(classes):
      for name in layouts.listdir(path / label):
        if wanted(label, name):
          yield Item(name, label, path / label / name)
    return
  for outer in _members(path):
    label = outer.name.rpartition("/")[2].removesuffix(".tar")
    if label not in classes:
      continue
    with _damage(path), outer.open() as file:
      with tarfile.open(fileobj=file, mode="r:") as archive:
        for info in archive:
          name = info.name.rpartition("/")[2]
          if info.isfile() and wanted(label, name):
            start = _bound(archive.extractfile, info)
            member = _member(name, info.size, start, path)
            yield Item(name, label, member.content())


def _products(path) -> Iterator[Item]:
  """Stanford_Online_Products.zip: <kind>_final/<image>, and the tables
  Ebay_train.txt and Ebay_test.txt: image_id class_id super_class_id path."""
  label_of = {}
  for text in _texts(path, "Ebay_train.txt", "Ebay_test.txt"):
    for line in text.splitlines()[1:]:
      try:
        _, number, _, name = line.split()
        label_of[name] = f"{int(number):05d}"
      except ValueError as error:
        raise InputError(
          f"{str(path)!r}: {line!r} is no line of Ebay_train.txt or "
          "Ebay_test.txt; fetch it again"
        ) from error
  yield from _listed(path, label_of)


def _cars(path) -> Iterator[Item]:
  """car_ims.tgz, and cars_annos.mat beside it; or the folder of both."""
  import scipy.io

  lists = splits.load("cars196")["splits"]
  names = [name for split in lists.values() for name in split]
  table = (path if path.is_dir() else path.parent) / "cars_annos.mat"
  if not table.is_file():
    raise InputError(
      f"there is no {str(table)!r}, which says what is on the images of "
      f"{str(path)!r}; put it there"
    )
  try:
    rows = scipy.io.loadmat(io.BytesIO(table.read_bytes()))["annotations"]
    label_of = {
      str(row["relative_im_path"].item()): names[int(row["class"].item()) - 1]
      for row in rows.ravel()
    }
  except Exception as error:  # scipy raises nearly anything on broken files
    raise InputError(
      f"{str(table)!r} is damaged, or not the table it should be; fetch it "
      "again"
    ) from error
  yield from _listed(path, label_of)


def _listed(path, label_of: dict[str, str]) -> Iterator[Item]:
  """The images that a table lists, by the last two parts of their paths; those
  that are not there come last, without content."""
  left = dict(label_of)
  for member in _members(path):
    key = "/".join(member.name.split("/")[-2:])
    if key in left:
      yield Item(key, left.pop(key), member.content())
  for key, label in left.items():
    yield Item(key, label, None)
