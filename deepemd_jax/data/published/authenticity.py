"""Checks by its SHA-256 whether a file is the official archive."""

import hashlib
import pathlib
from collections.abc import Callable

from deepemd_jax.data.published import catalogue

_BLOCK = 1 << 22  # bytes per read


def compare(
  archive: catalogue.Archive,
  path: pathlib.Path,
  progress: Callable[[int, int], None],
) -> str:
  """Says in a few words whether a file is an official archive.

  Args:
    archive: the official archive.
    path: path of the file.
    progress: called with the number of bytes read, and the total.

  Raises:
    OSError: the file cannot be read.
  """
  if not archive.sha256:
    return "its official SHA-256 is not known"
  total = path.stat().st_size
  if total != archive.size:  # saves the time to read 148 GB
    return "not the official file"
  digest, done = hashlib.sha256(), 0
  with open(path, "rb") as file:
    while block := file.read(_BLOCK):
      digest.update(block)
      done += len(block)
      progress(done, total)
  if digest.hexdigest() == archive.sha256:
    return "official, SHA-256 agrees"
  return "not the official file"
