"""Decoded copies of images, in a file that is mapped into memory.

The copies are made once and read by all processes, because decoding costs far
more than the rest of reading. A set of copies is a folder with two files:
`pixels`, which is only uint8 [N, side, side, 3], and `index.json`, which
describes the copies. The folder is written beside its final place, synced and
renamed, so it never appears incomplete. If images are decoded whenever they are
read (side 0), there is only the index.

Copies are squares of one side, whatever the shape of the images, and that side
is part of a data set's name. Copies that would enlarge the images are refused,
because the name would then promise more pixels than the originals had.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from deepemd_jax.data import image_io, image_set, loader
from deepemd_jax.data.file_lock import locked
from deepemd_jax.data.published import catalogue
from deepemd_jax.errors import InputError
from deepemd_jax.utils.progress import Progress
from deepemd_jax.utils.terminal import note

_FORMAT = 1
_LISTED = 10  # number of bad images that an error names
_SAMPLED = 64  # number of copies whose checksums are compared on opening


class ImageFile(NamedTuple):
  """An image file to make a copy of.

  Attributes:
    file: the content of the file, or its path.
    key: the name of the image.
    label: the name of its class, or "" if the class may change.
    size: height and width in pixels of an image that is known to be good, or
      None. Such an image is not decoded if no copies are made.
  """

  file: bytes | str
  key: str
  label: str = ""
  size: tuple[int, int] | None = None


class PixelMap:
  """Copies on disk, indexed like an array: uint8 [N, side, side, 3].

  A pickled map contains the path and not the pixels, so another process opens
  the file itself.
  """

  def __init__(self, path, shape, rows=None, stamp=None):
    """Maps a file into memory.

    Args:
      path: path of the pixels.
      shape: the shape of all copies in the file, (all, side, side, 3).
      rows: int [N], the copies that this map shows, in this order; None shows
        all copies.
      stamp: identifies the file as it was when the map was pickled, or None.

    Raises:
      InputError: the file is no longer the one that `stamp` identifies.
    """
    self._path, self._whole, self._rows = path, shape, rows
    stat = os.stat(path)
    self._stamp = stat.st_ino, stat.st_mtime_ns, stat.st_size
    if stamp not in (None, self._stamp):
      raise InputError(
        f"{str(path)!r} was rewritten while it was in use; start again"
      )
    # NumPy's class for mapped files is slower to index than a plain array.
    self._pixels = np.asarray(np.memmap(path, np.uint8, "r", shape=shape))

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape, (N, side, side, 3)."""
    count = self._whole[0] if self._rows is None else len(self._rows)
    return (count, *self._whole[1:])

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    return self._pixels[rows if self._rows is None else self._rows[rows]]

  def __reduce__(self):
    return PixelMap, (self._path, self._whole, self._rows, self._stamp)

  def only(self, rows: np.ndarray) -> "PixelMap":
    """Returns a map [k, side, side, 3] of these rows only, int [k]."""
    return PixelMap(self._path, self._whole, rows, self._stamp)


@dataclasses.dataclass(frozen=True)
class PixelCache:
  """A complete set of copies.

  Attributes:
    keys: the name of each image.
    labels: the name of the class of each image, or "".
    sizes: int32 [N, 2], original height and width in pixels.
    pixels: the copies, uint8 [N, side, side, 3]; None if there are none (side
      0).
  """

  keys: tuple[str, ...]
  labels: tuple[str, ...]
  sizes: np.ndarray
  pixels: PixelMap | None


def load(
  place: pathlib.Path,
  items: Callable[[], Iterable[ImageFile]],
  *,
  count: int,
  side: int,
  made_from: str,
  name: str,
  data_set: str,
) -> PixelCache:
  """Opens a set of copies, and makes it if it is missing, outdated or damaged.

  Args:
    place: the folder of the copies.
    items: returns the images; called only to make the copies.
    count: number of images.
    side: side of the copies in pixels; 0 makes no copies and only checks
      the images.
    made_from: identifies the images; copies that were made from other images
      are made again.
    name: the name of the images in messages.
    data_set: the name of the data set without a side, for messages that propose
      another side.

  Raises:
    InputError: some images cannot be read, and the error names them; most
      images are smaller than the copies would be; or the folder cannot be
      written.
  """
  cache = _open_or_explain(place, side, made_from)
  if isinstance(cache, PixelCache):
    # An older version, which enlarged images, may have made these copies.
    _refuse_enlargements(cache.sizes, side, name, data_set)
    return cache
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = place.parent / f".{place.name}.lock"
    with locked(lock, f"copies of {name}"):
      for unfinished in place.parent.glob(f"incomplete.{place.name}.*"):
        shutil.rmtree(unfinished)  # of a killed process, as we hold the lock
      # Another process may have made the copies while this one waited.
      cache = _open_or_explain(place, side, made_from)
      if isinstance(cache, str):
        if place.exists():
          note(f"the copies of {name} in {place} {cache}; they are made again")
          # Renaming first ensures that no half-deleted folder has this name.
          old = place.with_name(f"incomplete.{place.name}.old")
          os.rename(place, old)
          shutil.rmtree(old)
        _build(place, items, count, side, made_from, name, data_set)
        cache = _open_or_explain(place, side, made_from)
  except OSError as error:
    raise InputError(
      f"cannot write copies of {name} to {place}: "
      f"{error.strerror or error}; make room, or choose another place with "
      "--config.data.directory"
    ) from error
  if isinstance(cache, str):
    raise InputError(f"the copies of {name} in {place} {cache}")
  return cache


def side_name(side: int) -> str:
  """Returns the name of copies of this side in folders and protocols."""
  return str(side) if side else "original"


def _open_or_explain(
  place: pathlib.Path, side: int, made_from: str
) -> PixelCache | str:
  """Returns the set of copies, or a text that says what is wrong with it.

  A folder appears only when it is complete, but disks fail and people change
  files. Comparing every pixel would mean reading the whole file from the disk,
  so only the file's length and a few evenly spaced images are compared.
  """
  try:
    index = json.loads((place / "index.json").read_text("utf-8"))
    if index["format"] != _FORMAT or index["side"] != side:
      return "were made by another version"
    if index["made_from"] != made_from:
      return "were made from other images"
    sizes = np.array(index["sizes"], np.int32)
    keys, labels = tuple(index["keys"]), tuple(index["labels"])
    pixels = None
    if side:
      shape = (len(keys), side, side, 3)
      path = place / "pixels"
      if path.stat().st_size != np.prod(shape):
        return "are incomplete"
      pixels = PixelMap(path, shape)
      for row in np.linspace(0, len(keys) - 1, _SAMPLED).astype(int):
        # NumPy's stubs declare the buffer only from Python 3.12 on.
        # pyrefly: ignore[bad-argument-type]
        if zlib.crc32(pixels[row]) != index["checksums"][row]:
          return "are damaged"
  except FileNotFoundError:
    return "are missing"
  except (OSError, ValueError, KeyError, TypeError, IndexError):
    return "cannot be read"
  return PixelCache(keys, labels, sizes, pixels)


def _refuse_enlargements(sizes, side: int, name: str, data_set: str) -> None:
  """Raises an error if more than half of the images are smaller than copies.

  Some images may be smaller, because photographs have many sizes, but the
  copies of a set have only one.

  Args:
    sizes: [N, 2], height and width of the images in pixels.
    side: side of the copies in pixels; 0 if there are none.
    name: the name of the images in the message.
    data_set: the name of the data set without a side.
  """
  typical = int(np.median(np.max(sizes, axis=1))) if len(sizes) else side
  if side > typical:
    raise InputError(
      f"copies of {side} pixels would enlarge {name}: the longer side of the "
      f"median image is {typical}; use "
      f"{catalogue.name_of_side(data_set, typical)}"
    )


def _build(place, items, count, side, made_from, name, data_set) -> None:
  """Writes everything into a folder beside `place`, then renames it."""
  free = shutil.disk_usage(place.parent).free
  needed = count * side * side * 3
  if needed > free:
    raise OSError(f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
  scratch = place.with_name(f"incomplete.{place.name}.{os.getpid()}")
  scratch.mkdir()
  try:
    index = {"format": _FORMAT, "side": side, "made_from": made_from}
    index |= _write_pixels(scratch / "pixels", items(), count, side, name)
    _refuse_enlargements(index["sizes"], side, name, data_set)
    with open(scratch / "index.json", "w", encoding="utf-8") as file:
      json.dump(index, file)
      _sync(file)
    if not side:
      (scratch / "pixels").unlink()
    _sync_folder(scratch)
    os.rename(scratch, place)
    _sync_folder(place.parent)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def _write_pixels(path, items, count, side, name) -> dict:
  """Writes the copies one after the other and returns their part of the index.

  An ordinary write raises an error if the disk is full. A write into a mapped
  file would kill the process.
  """
  index = {"keys": [], "labels": [], "sizes": [], "checksums": []}
  bad = []
  copy = functools.partial(_copy, side=side)
  with Progress() as progress, open(path, "wb") as file:
    for item, (pixels, size, problem) in loader.in_order(copy, items):
      index["keys"].append(item.key)
      index["labels"].append(item.label)
      index["sizes"].append(size)
      progress(f"copies of {name}", len(index["keys"]), count)
      if problem:
        bad.append(f"{item.key} ({problem})")
      elif side and not bad:
        index["checksums"].append(zlib.crc32(pixels))
        file.write(pixels)
    _sync(file)
  if bad:
    more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    raise InputError(
      f"{len(bad)} of {len(index['keys'])} images of {name} cannot be read: "
      f"{', '.join(bad[:_LISTED])}{more}; repair or remove them"
    )
  return index


def _copy(
  item: ImageFile, side: int
) -> tuple[np.ndarray | None, tuple[int, int] | None, str | None]:
  """Returns (pixels, (height, width), None), or (None, None, the problem)."""
  if item.size and not side:
    return None, item.size, None
  try:
    return (*image_set.decode_copy(item.file, side or 1), None)
  except Exception as error:  # decoders raise errors of many types
    return None, None, image_io.reason(error)


def _sync(file) -> None:
  file.flush()
  os.fsync(file.fileno())


def _sync_folder(path: pathlib.Path) -> None:
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)
