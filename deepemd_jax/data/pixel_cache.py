"""Decoded copies of images in a file that is mapped into memory.

Made once, read by all: decoding costs far more than the rest of reading. A set
of copies is a folder with `pixels`, uint8 [N, side, side, 3] and nothing else,
and `index.json`, which says what they are. It is written beside its final
place, synced and renamed: it is there as a whole or not at all. Of originals
that are to be decoded when read (side 0) there is the index alone.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from deepemd_jax.data import image_io, image_set, loader
from deepemd_jax.data.published import download
from deepemd_jax.errors import InputError
from deepemd_jax.utils.progress import Progress

_FORMAT = 1
_LISTED = 10
_LOOKED_AT = 64


class Item(NamedTuple):
  """An image to store.

  Attributes:
    file: its content, or its path.
    key: its name.
    label: its class, if it is of one for good; else "".
    size: height and width of an image that is known to be a good one; where no
      copies are wanted it is not decoded.
  """

  file: bytes | str
  key: str
  label: str = ""
  size: tuple[int, int] | None = None


class PixelMap:
  """Copies on disk, indexed like an array: uint8 [N, side, side, 3].

  Pickled it is a path, not its pixels: another process opens them itself.
  """

  def __init__(self, path, shape, rows=None, stamp=None):
    """Maps a file.

    Args:
      path: of the pixels.
      shape: of all of them.
      rows: int [N], which of them to show, in which order; None for all.
      stamp: what was seen of the file before, see `__reduce__`.
    """
    self._path, self._whole, self._rows = path, shape, rows
    found = os.stat(path)
    self._stamp = found.st_ino, found.st_mtime_ns, found.st_size
    if stamp not in (None, self._stamp):
      raise InputError(
        f"{str(path)!r} was made again while it was in use; start again"
      )
    # A plain view: NumPy's class of mapped arrays is slower to index.
    self._pixels = np.asarray(np.memmap(path, np.uint8, "r", shape=shape))

  @property
  def shape(self) -> tuple[int, ...]:
    """(N, side, side, 3)."""
    count = self._whole[0] if self._rows is None else len(self._rows)
    return (count, *self._whole[1:])

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    return self._pixels[rows if self._rows is None else self._rows[rows]]

  def __reduce__(self):
    return PixelMap, (self._path, self._whole, self._rows, self._stamp)

  def only(self, rows: np.ndarray) -> "PixelMap":
    """The same copies, but only these rows of them."""
    return PixelMap(self._path, self._whole, rows, self._stamp)


@dataclasses.dataclass(frozen=True)
class Stored:
  """A whole set of copies.

  Attributes:
    keys: the name of each image.
    labels: its class, where the items had one.
    sizes: int32 [N, 2], original height and width.
    pixels: the copies; None if there are none (side 0).
  """

  keys: tuple[str, ...]
  labels: tuple[str, ...]
  sizes: np.ndarray
  pixels: PixelMap | None


def load(
  place: pathlib.Path,
  items: Callable[[], Iterable[Item]],
  *,
  count: int,
  side: int,
  made_from: str,
  name: str,
) -> Stored:
  """Opens a set of copies; makes it if it is not there, or not what it should.

  Args:
    place: its folder.
    items: gives the images; called only to make the copies.
    count: how many there are.
    side: of the copies, in pixels; 0 for none: they are only looked at.
    made_from: tells these images from all others; copies that were made from
      something else are made again.
    name: for messages.

  Raises:
    InputError: some images cannot be read, it names them; or the place cannot
      be written to.
  """
  found = _opened(place, side, made_from)
  if isinstance(found, Stored):
    return found
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    with download.locked(
      place.parent / f".{place.name}.lock", f"copies of {name}"
    ):
      for ruin in place.parent.glob(f"incomplete.{place.name}.*"):
        shutil.rmtree(ruin)  # of a killed process: we hold the lock
      found = _opened(place, side, made_from)  # somebody else's, meanwhile
      if isinstance(found, str):
        if place.exists():
          _note(f"the copies of {name} in {place} {found}: making them again")
          # Renamed first: never is half of it there under its name.
          old = place.with_name(f"incomplete.{place.name}.old")
          os.rename(place, old)
          shutil.rmtree(old)
        _build(place, items, count, side, made_from, name)
        found = _opened(place, side, made_from)
  except OSError as error:
    raise InputError(
      f"cannot write copies of {name} to {place}: "
      f"{error.strerror or error}; make room, or choose another place with "
      "--config.data.directory"
    ) from error
  if isinstance(found, str):
    raise InputError(f"the copies of {name} in {place} {found}")
  return found


def _note(message: str) -> None:
  print(message, file=sys.stderr, flush=True)


def _opened(place: pathlib.Path, side: int, made_from: str) -> Stored | str:
  """The set of copies, or what is wrong with it.

  Folders appear whole; this is for failing disks and for hands in them. A look
  at every pixel would take as long as reading them all from the disk, so it is
  the file's length and a few images, spread evenly, that are compared.
  """
  try:
    index = json.loads((place / "index.json").read_text("utf-8"))
    if index["format"] != _FORMAT or index["side"] != side:
      return "are of another version"
    if index["made_from"] != made_from:
      return "were made from other images"
    sizes = np.array(index["sizes"], np.int32)
    keys, labels = tuple(index["keys"]), tuple(index["labels"])
    pixels = None
    if side:
      shape = (len(keys), side, side, 3)
      path = place / "pixels"
      if path.stat().st_size != np.prod(shape):
        return "are cut off"
      pixels = PixelMap(path, shape)
      for row in np.linspace(0, len(keys) - 1, _LOOKED_AT).astype(int):
        if zlib.crc32(pixels[row]) != index["checksums"][row]:
          return "are damaged"
  except FileNotFoundError:
    return "are not there"
  except (OSError, ValueError, KeyError, TypeError, IndexError):
    return "cannot be read"
  return Stored(keys, labels, sizes, pixels)


def _build(place, items, count, side, made_from, name) -> None:
  """Writes all into a folder beside `place`, then renames that."""
  free = shutil.disk_usage(place.parent).free
  needed = count * side * side * 3
  if needed > free:
    raise OSError(f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
  scratch = place.with_name(f"incomplete.{place.name}.{os.getpid()}")
  scratch.mkdir()
  try:
    index = {"format": _FORMAT, "side": side, "made_from": made_from}
    index |= _write_pixels(scratch / "pixels", items(), count, side, name)
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
  """Writes the copies one after the other; returns their part of the index.

  With ordinary writes: on a full disk those are an error, where writing into a
  mapped file would kill the process.
  """
  index = {"keys": [], "labels": [], "sizes": [], "checksums": []}
  bad = []
  progress = Progress()
  try:
    with open(path, "wb") as file:
      look = functools.partial(_look, side=side)
      for item, (pixels, size, problem) in loader.in_order(look, items):
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
  finally:
    progress.close()
  if bad:
    more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    raise InputError(
      f"{len(bad)} of {len(index['keys'])} images of {name} cannot be read: "
      f"{', '.join(bad[:_LISTED])}{more}; repair or remove them"
    )
  return index


def _look(item: Item, side: int):
  """(pixels, (height, width), None), or (None, None, why not)."""
  if item.size and not side:
    return None, item.size, None
  try:
    return (*image_set.copied(item.file, side or 1), None)
  except Exception as error:  # decoders raise nearly anything on broken files
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
