"""The files in an archive (tar, tar.gz, zip) or a folder, in one pass.

Nothing is ever written to the names that stand in an archive, and links in it
are not followed: paths in an archive cannot do harm.
"""

import contextlib
import functools
import gzip
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from deepemd_jax.errors import InputError

_LARGEST_MEMBER = 1 << 28  # bytes of an image file or a table; none is larger


class Member(NamedTuple):
  """A file in an archive or a folder.

  Attributes:
    name: its path in there, with slashes.
    content: returns its bytes, or, in a folder, its path.
    open: returns a file object.
  """

  name: str
  content: Callable[[], bytes | pathlib.Path]
  open: Callable[[], BinaryIO]


@contextlib.contextmanager
def report_damage(path: pathlib.Path) -> Iterator[None]:
  """Turns the errors of a damaged archive into one that says what to do.

  Raises:
    InputError: the archive at `path` cannot be read.
  """
  try:
    yield
  except (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError),
    *(gzip.BadGzipFile, NotImplementedError, RuntimeError),
  ) as error:
    # After the colon, tarfile lists what each kind of compression says.
    words = str(error).partition(":")[0].split()
    reason = " ".join(words) or type(error).__name__
    raise InputError(
      f"{str(path)!r} is damaged, or not the archive it should be ({reason}); "
      "fetch it again"
    ) from error
  except OSError as error:
    reason = error.strerror or error
    raise InputError(f"cannot read {str(path)!r}: {reason}") from error


def read_members(path: pathlib.Path) -> Iterator[Member]:
  """Yields the regular files of an archive or a folder, in one pass.

  Call a member's `content` or `open` before you take the next member.

  Raises:
    InputError: the archive is damaged.
  """
  with report_damage(path):
    if path.is_dir():
      yield from _files_in_folder(path)
    elif zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
          if not info.is_dir():
            start = functools.partial(archive.open, info)
            yield archive_member(info.filename, info.file_size, start, path)
    else:
      with tarfile.open(path) as archive:
        for info in archive:
          if info.isfile():
            start = functools.partial(archive.extractfile, info)
            yield archive_member(info.name, info.size, start, path)


def archive_member(
  name: str, size: int, start: Callable[[], BinaryIO], path: pathlib.Path
) -> Member:
  """Returns a member of the archive at `path`.

  Args:
    name: its path in there.
    size: in bytes, as the archive says.
    start: opens it.
    path: of the archive, for messages.
  """

  def content():
    if size > _LARGEST_MEMBER:
      raise InputError(f"{str(path)!r}: {name!r} has {size} bytes: no image")
    with report_damage(path), start() as file:
      return file.read()

  return Member(name, content, start)


def _files_in_folder(folder: pathlib.Path) -> Iterator[Member]:
  for here, directories, names in os.walk(folder):
    directories.sort()
    for name in sorted(names):
      path = pathlib.Path(here, name)
      yield Member(
        path.relative_to(folder).as_posix(),
        functools.partial(pathlib.Path, path),
        functools.partial(path.open, "rb"),
      )


def read_texts(path: pathlib.Path, *names: str) -> list[str]:
  """Returns the contents of text files in an archive, by their plain names.

  Raises:
    InputError: one of them is not there, or the archive is damaged.
  """
  texts = {}
  for member in read_members(path):
    plain = member.name.rpartition("/")[2]
    if plain in names and plain not in texts:
      with report_damage(path), member.open() as file:
        texts[plain] = file.read(_LARGEST_MEMBER).decode("utf-8", "replace")
    if len(texts) == len(names):
      return [texts[name] for name in names]
  missing = ", ".join(name for name in names if name not in texts)
  raise InputError(f"{str(path)!r} holds no {missing}: it is another archive")
