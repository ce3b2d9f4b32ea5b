"""Encodings of images, kept between runs.

There is one file for each image. Its name is made of two digests: of the model
and of the image's content. So a renamed image is found again, and a changed one
is not. A file begins with the SHA-256 of its name and of what follows, so that
a damaged one, or one that was put in another's place, counts as absent. The
folder may be deleted at any time.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import time

import numpy as np

from deepemd_jax.errors import InputError
from deepemd_jax.utils import files

LIMIT = 2 * 2**30  # bytes
_LARGEST = 256 * 2**20  # bytes, of one encoding
_DIGEST = hashlib.sha256().digest_size
_STALE = 3600.0  # seconds after which nobody still writes a scratch file


class Cache:
  """Named arrays by (model, image).

  If the disk fills up, it keeps nothing more and does not complain.
  """

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
      files.probe_beside(self._root / "probe")
    except OSError as error:
      raise InputError(
        f"cannot keep encodings in {str(directory)!r}: {error.strerror}; name "
        "another folder or do without"
      ) from error

  def _path(self, model: str, image: str) -> pathlib.Path:
    return self._root / model[:32] / image[:2] / f"{image[2:]}.npz"

  def get(self, model: str, image: str) -> dict[str, np.ndarray] | None:
    """Returns the arrays {name: [...]} that were put there, or None.

    Args:
      model: hexadecimal digest of all else that an encoding depends on.
      image: hexadecimal digest of the image.
    """
    path = self._path(model, image)
    try:
      content = files.read_regular(path, _LARGEST)
      if content[:_DIGEST] != _digest(model, image, content[_DIGEST:]):
        return None
      file = io.BytesIO(content[_DIGEST:])
      with np.load(file, allow_pickle=False) as kept:
        arrays = {name: kept[name] for name in kept.files}
      os.utime(path)
    # Whoever can write here can write a digest, too, and NumPy raises nearly
    # anything at what is no array.
    except Exception:
      return None
    return arrays

  def put(self, model: str, image: str, **arrays: np.ndarray) -> None:
    """Keeps arrays; see `get`."""
    path = self._path(model, image)
    file = io.BytesIO()
    # pyrefly: ignore[bad-argument-type]: no array is called allow_pickle
    np.savez(file, **arrays)
    content = file.getvalue()
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      # A link in the folder must not lead to another place of the user's.
      relative = path.parent.relative_to(self._root)
      if os.path.realpath(path.parent) != os.path.join(
        os.path.realpath(self._root), relative
      ):
        return
      with files.replacing(path, follow=False) as scratch:
        scratch.write_bytes(_digest(model, image, content) + content)
      self._wrote = True
    except OSError:
      pass

  def prune(self) -> None:
    """Deletes the encodings that were not used for longest, down to the limit,
    and scratch files that a killed run left. Does nothing if none was added
    since the last time."""
    if not self._wrote:
      return
    self._wrote = False
    encodings = []
    for path in self._root.rglob("*.npz"):
      with contextlib.suppress(OSError):  # another run deletes too
        stat = path.stat()
        encodings.append((stat.st_mtime, stat.st_size, path))
    excess = sum(size for _, size, _ in encodings) - self._limit
    for _, size, path in sorted(encodings):
      if excess <= 0:
        break
      with contextlib.suppress(OSError):
        path.unlink()
      excess -= size
    for path in self._root.rglob("*.tmp"):
      with contextlib.suppress(OSError):
        if path.stat().st_mtime < time.time() - _STALE:
          path.unlink()


def _digest(model: str, image: str, content: bytes) -> bytes:
  return hashlib.sha256(f"{model}{image}".encode() + content).digest()
