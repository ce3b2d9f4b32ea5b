"""The one way to write a file: whole, or not at all.

A scratch file beside the target is written first and renamed at the end, so
nobody ever reads half of a file. If the disk is full, an `OSError` comes out,
the scratch file is removed, and the old content stays.
"""

import contextlib
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping

# Every scratch file's name begins so; a killed process may leave one behind.
SCRATCH_PREFIX = ".deepemd_jax."


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a scratch path to write to, which becomes `path` at the end.

  Args:
    path: of the file; its folder exists. A link is followed: what it points to
      is replaced.

  Raises:
    OSError: the file cannot be written.
  """
  target = pathlib.Path(path).resolve()
  scratch = scratch_beside(target)
  try:
    yield scratch
    os.replace(scratch, target)
  except OSError as error:
    if error.filename is None or str(error.filename) == str(scratch):
      error.filename = os.fspath(path)  # which a person knows
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


def scratch_beside(target: pathlib.Path) -> pathlib.Path:
  """The scratch path of this process for `target`, in the same folder."""
  # Not the name itself: together they might be too long for a file system.
  number = zlib.crc32(os.fsencode(target.name))
  return target.with_name(f"{SCRATCH_PREFIX}{os.getpid()}.{number:08x}.tmp")


def _as_bytes(content: bytes | str) -> bytes:
  return content.encode() if isinstance(content, str) else content
