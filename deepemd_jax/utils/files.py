"""Functions that write a file whole or not at all, and read untrusted files.

A scratch file beside the target is written first and renamed at the end, so
that nobody ever reads half of a file. If the disk is full, an `OSError` is
raised, the scratch file is removed, and the old content stays.
"""

import contextlib
import errno
import os
import pathlib
import secrets
import stat
from collections.abc import Iterator, Mapping
from typing import BinaryIO

# The names of all scratch files begin with this. A killed process may leave one
# behind.
SCRATCH_PREFIX = ".deepemd_jax."
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


@contextlib.contextmanager
def replacing(
  path: str | os.PathLike, *, follow: bool = True
) -> Iterator[pathlib.Path]:
  """Yields a scratch path to write to, which becomes `path` at the end.

  Args:
    path: path of the file, in a folder that exists.
    follow: whether to replace the file that a link points to; if not, the link
      itself is replaced.

  Raises:
    OSError: the file cannot be written.
  """
  target = pathlib.Path(path)
  target = target.resolve() if follow else target.absolute()
  scratch = scratch_beside(target)
  try:
    # The file must be new, and not a link of somebody who guessed the name.
    os.close(os.open(scratch, _NEW, 0o666))
    yield scratch
    os.replace(scratch, target)
  except OSError as error:
    if error.filename is None or str(error.filename) == str(scratch):
      error.filename = os.fspath(path)  # the path that the user knows
    raise
  finally:
    scratch.unlink(missing_ok=True)


def write(path: str | os.PathLike, content: bytes | str) -> None:
  """Writes a file whole or not at all; text is UTF-8.

  Raises:
    OSError: the file cannot be written.
  """
  with replacing(path) as scratch:
    scratch.write_bytes(_as_bytes(content))


def write_together(contents: Mapping[str, bytes | str]) -> None:
  """Writes several files; none is replaced before all are on the disk.

  Args:
    contents: path -> content.

  Raises:
    OSError: one of them cannot be written; `filename` says which.
  """
  with contextlib.ExitStack() as stack:
    for path, content in contents.items():
      scratch = stack.enter_context(replacing(path))
      scratch.write_bytes(_as_bytes(content))


@contextlib.contextmanager
def opened_regular(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a regular file to read. It refuses a pipe or device without waiting.

  Args:
    path: path of the file; a link is followed.

  Raises:
    OSError: the file cannot be read, or is not a regular file.
  """
  handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
  try:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
      raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    with open(handle, "rb", closefd=False) as file:
      yield file
  finally:
    os.close(handle)


def read_regular(path: str | os.PathLike, limit: int | None = None) -> bytes:
  """Returns the content of a regular file; see `opened_regular`.

  Args:
    path: path of the file.
    limit: the largest size in bytes; a larger file is not read.

  Raises:
    OSError: the file cannot be read, is not a regular file, or is too large.
  """
  with opened_regular(path) as file:
    if limit is not None and os.fstat(file.fileno()).st_size > limit:
      raise OSError(errno.EFBIG, f"larger than {limit} bytes", os.fspath(path))
    return file.read()


def scratch_beside(target: pathlib.Path) -> pathlib.Path:
  """Returns a new scratch path for `target`, in the same folder."""
  # It does not contain the target's name, because the whole might be too long
  # for a file system.
  return target.with_name(f"{SCRATCH_PREFIX}{secrets.token_hex(8)}.tmp")


def probe_beside(target: pathlib.Path) -> None:
  """Makes a scratch file and removes it; raises OSError if that fails."""
  scratch = scratch_beside(target)
  os.close(os.open(scratch, _NEW, 0o666))
  scratch.unlink()


def _as_bytes(content: bytes | str) -> bytes:
  return content.encode() if isinstance(content, str) else content
