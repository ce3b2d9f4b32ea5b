"""A cache of encoded images that lasts between runs.

There is one file for each image. Its name consists of the digests of the model
and of the image's content. So a renamed image is found again, and a changed
image is not. A file begins with the SHA-256 of its name and its content, so
that a damaged or misplaced file counts as missing. The folder may be deleted at
any time.
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
_LARGEST = 256 * 2**20  # bytes of one encoding
_DIGEST = hashlib.sha256().digest_size
_STALE = 3600.0  # seconds after which a temporary file counts as abandoned


class Cache:
  """A cache of named arrays with the keys (model, image).

  If the disk is full, it stores nothing more and raises no error.
  """

  def __init__(self, directory, *, limit: int = LIMIT) -> None:
    """Opens the folder, and creates it if it is missing.

    Args:
      directory: the folder of the encodings, with a subdirectory per model.
      limit: the largest size after `prune`, in bytes.

    Raises:
      InputError: the folder cannot be created or written to.
    """
    self._root = pathlib.Path(directory)
    self._limit = limit
    self._wrote = False
    try:
      self._root.mkdir(parents=True, exist_ok=True)
      files.probe_beside(self._root / "probe")
    except OSError as error:
      raise InputError(
        f"cannot keep encodings in {str(directory)!r}: {error.strerror}; give "
        "another folder, or use no cache"
      ) from error

  def _path(self, model: str, image: str) -> pathlib.Path:
    return self._root / model[:32] / image[:2] / f"{image[2:]}.npz"

  def get(self, model: str, image: str) -> dict[str, np.ndarray] | None:
    """Returns the stored arrays {name: [...]}, or None.

    Args:
      model: hexadecimal digest of everything except the image that an encoding
        depends on.
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
    # The digest is no protection against an attacker who can write here, and
    # NumPy raises errors of many types for files that are no arrays.
    except Exception:
      return None
    return arrays

  def put(self, model: str, image: str, **arrays: np.ndarray) -> None:
    """Stores arrays under the keys of `get`."""
    path = self._path(model, image)
    file = io.BytesIO()
    # pyrefly: ignore[bad-argument-type]: no array is called allow_pickle
    np.savez(file, **arrays)
    content = file.getvalue()
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      # A link in the folder must not lead to another folder of the user.
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
    """Deletes the least recently used encodings until the limit is met.

    It also deletes temporary files of killed runs. It does nothing if no
    encoding was added since the last call.
    """
    if not self._wrote:
      return
    self._wrote = False
    encodings = []
    for path in self._root.rglob("*.npz"):
      with contextlib.suppress(OSError):  # another run may delete it, too
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
