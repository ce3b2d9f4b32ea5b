"""Encodings of images, kept between runs.

One file an image, found by what the model is and what the image's file holds,
not by its name: renamed images are found again, changed ones are not. Files are
written whole or not at all; what is damaged counts as absent. The folder may be
deleted at any time.
"""

import contextlib
import os
import pathlib
import time
import zipfile

import numpy as np

from deepemd_jax.errors import InputError

LIMIT = 2 * 2**30  # bytes; the longest unused go first
_STALE = 3600.0  # seconds after which a scratch file is nobody's


def default_directory() -> str:
  """Of the encodings and the compiled programs of this user."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return os.path.join(home, "deepemd_jax")


class Cache:
  """Named arrays by (model, image). One that cannot be written to any more, on
  a full disk say, keeps nothing and does not complain."""

  def __init__(self, directory, *, limit: int = LIMIT) -> None:
    """Opens the folder; makes it where it is missing.

    Args:
      directory: of the encodings, one subdirectory a model.
      limit: bytes that `prune` leaves.

    Raises:
      InputError: it cannot be made or written to.
    """
    self._root = pathlib.Path(directory)
    self._limit = limit
    self._wrote = False
    try:
      self._root.mkdir(parents=True, exist_ok=True)
      probe = self._root / f".{os.getpid()}.tmp"
      probe.touch()
      probe.unlink()
    except OSError as error:
      raise InputError(
        f"cannot keep encodings in {str(directory)!r}: {error.strerror}; name "
        "another folder or do without"
      ) from error

  def _path(self, model: str, image: str) -> pathlib.Path:
    return self._root / model[:32] / image[:2] / f"{image[2:]}.npz"

  def get(self, model: str, image: str) -> dict[str, np.ndarray] | None:
    """What was put there, or None.

    Args:
      model: hexadecimal digest of all else that an encoding depends on.
      image: hexadecimal digest of the image.
    """
    path = self._path(model, image)
    try:
      with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
      os.utime(path)
    # zipfile has a checksum of each array, and several ways to be displeased.
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
      return None
    return found

  def put(self, model: str, image: str, **arrays: np.ndarray) -> None:
    """Keeps arrays; see `get`."""
    path = self._path(model, image)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      try:
        with open(scratch, "wb") as file:
          np.savez(file, **arrays)
        os.replace(scratch, path)
      finally:
        scratch.unlink(missing_ok=True)
      self._wrote = True
    except OSError:
      pass

  def prune(self) -> None:
    """Deletes the longest unused encodings beyond the limit, if any were added
    since the last time, and scratch files that a killed run left."""
    if not self._wrote:
      return
    self._wrote = False
    files = []
    for path in self._root.rglob("*.npz"):
      with contextlib.suppress(OSError):  # another run deletes too
        found = path.stat()
        files.append((found.st_mtime, found.st_size, path))
    spare = sum(size for _, size, _ in files) - self._limit
    for _, size, path in sorted(files):
      if spare <= 0:
        break
      path.unlink(missing_ok=True)
      spare -= size
    for path in self._root.rglob("*.tmp"):
      with contextlib.suppress(OSError):
        if path.stat().st_mtime < time.time() - _STALE:
          path.unlink()
