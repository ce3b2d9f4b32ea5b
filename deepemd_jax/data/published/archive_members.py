"""Reads the files in an archive (tar, tar.gz, zip) or a folder, in one pass.

Paths in an archive cannot do harm: no file is ever written to such a path, and
links in the archive are not followed.
"""

import contextlib
import errno
import functools
import os
import pathlib
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from deepemd_jax.data import links
from deepemd_jax.errors import InputError

_LARGEST_MEMBER = 1 << 28  # bytes of an image file; real ones are smaller
_LARGEST_TABLE = 1 << 25  # bytes of a table; the longest has 60,000 lines
_MOST_NOTES = 100  # pax headers that apply to all files
_LONGEST_EXTRA = 1 << 14  # bytes of an extra header, such as a long name
_LONGEST_PADDING = 1 << 24  # bytes of zeros at the end of a tar; often 10,240


class Member(NamedTuple):
  """A file in an archive or a folder.

  Attributes:
    name: the path in the archive or folder, with slashes.
    content: returns the bytes of the file, or its path if it is in a folder.
    open: returns a file object.
  """

  name: str
  content: Callable[[], bytes | pathlib.Path]
  open: Callable[[], IO[bytes]]


@contextlib.contextmanager
def report_damage(path: pathlib.Path) -> Iterator[None]:
  """Turns any error of a damaged archive into one that says what to do.

  Raises:
    InputError: the archive at `path` cannot be read.
  """
  try:
    yield
  except InputError:
    raise
  except Exception as error:  # tarfile and zipfile raise errors of many types
    damage = (None, errno.EINVAL)  # the errors of gzip have no number
    if isinstance(error, OSError) and error.errno not in damage:
      raise InputError(
        f"cannot read {str(path)!r}: {error.strerror}"
      ) from error
    # After the colon, tarfile lists one error for each compression format.
    words = str(error).partition(":")[0].split()
    reason = " ".join(words)[:200] or type(error).__name__
    raise InputError(
      f"{str(path)!r} is damaged, or not the expected archive ({reason}); "
      "fetch it again"
    ) from error


def read_members(path: pathlib.Path) -> Iterator[Member]:
  """Yields the regular files of an archive or a folder, in one pass.

  Call `content` or `open` of a member before you take the next member.

  Raises:
    InputError: the archive is damaged.
  """
  with report_damage(path):
    if path.is_dir():
      yield from _files_in_folder(path)
    elif zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
          # Only with these two does zipfile decompress no more than requested.
          if info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
          ):
            raise zipfile.BadZipFile("an unusual compression")
          if not info.is_dir() and _is_regular(info):
            start = functools.partial(archive.open, info)
            yield _archive_member(info.filename, info.file_size, start, path)
    else:
      with open(path, "rb") as file:
        yield from tar_members(file, path)


def _is_regular(info: zipfile.ZipInfo) -> bool:
  """Returns whether an entry is a regular file or has no recorded type."""
  return stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)


# tarfile reads the whole content of these headers, whatever size they state.
_EXTRA_HEADERS = (
  *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
  *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


class _Header(tarfile.TarInfo):
  """A tar header that raises an error if it is damaged.

  tarfile itself would take a damaged header for the end of the archive.
  """

  @classmethod
  def frombuf(cls, buf, encoding, errors):
    try:
      header = super().frombuf(buf, encoding, errors)
    except tarfile.HeaderError as error:
      if len(buf) == tarfile.BLOCKSIZE == buf.count(0):
        raise  # a block of zeros is the end of the archive
      raise tarfile.ReadError(str(error)) from error
    extra = header.type in _EXTRA_HEADERS
    # After a negative size, tarfile would read the same header forever.
    if header.size < 0 or (extra and header.size > _LONGEST_EXTRA):
      raise tarfile.ReadError("a file of impossible size")
    return header


def tar_members(
  file: IO[bytes], path: pathlib.Path, mode: str = "r:*"
) -> Iterator[Member]:
  """Yields the regular files of a tar, and reads the tar to its end.

  Call it inside `report_damage`.

  Args:
    file: the tar.
    path: path of the archive, for messages.
    mode: the mode of `tarfile.open`.
  """
  # pyrefly: ignore[no-matching-overload]: the stubs want a literal mode
  with tarfile.open(fileobj=file, mode=mode, tarinfo=_Header) as archive:
    end = 0
    for info in archive:
      # An extra header may replace the size that `_Header` checked.
      if info.size < 0 or archive.offset <= end:
        raise tarfile.ReadError("a file of impossible size")
      # A sparse file with a large hole or many pieces would take hours to read.
      if info.issparse() or info.type == tarfile.GNUTYPE_SPARSE:
        raise tarfile.ReadError("a file with holes")
      if len(archive.pax_headers) > _MOST_NOTES:
        raise tarfile.ReadError("too many global headers")
      end = archive.offset
      if info.isfile():
        start = functools.partial(archive.extractfile, info)
        yield _archive_member(info.name, info.size, start, path)
      # Otherwise tarfile keeps every header in memory, each with a copy of the
      # pax headers that apply to all files.
      archive.members.clear()
    _read_padding(archive.fileobj)


def _read_padding(file: IO[bytes]) -> None:
  """Reads the zeros at the end of a tar.

  gzip compares its checksum and length only at the end of the file.
  """
  length = 0
  while block := file.read(1 << 16):
    length += len(block)
    if block.count(0) < len(block) or length > _LONGEST_PADDING:
      raise tarfile.ReadError("data follow its end")


def _archive_member(
  name: str, size: int, start: Callable[[], IO[bytes]], path: pathlib.Path
) -> Member:
  """Returns a member of the archive at `path`.

  Args:
    name: its path in the archive.
    size: its size in bytes, as the archive states it.
    start: opens the member.
    path: path of the archive, for messages.
  """

  def content():
    if size > _LARGEST_MEMBER:
      raise InputError(
        f"{str(path)!r}: {name[-99:]!r} has {size} bytes, too many for an image"
      )
    with report_damage(path), start() as file:
      return file.read()

  return Member(name, content, start)


def _files_in_folder(folder: pathlib.Path) -> Iterator[Member]:
  inside = os.path.realpath(folder)

  def start(path):
    links.refuse_outside(path, inside)
    return path.open("rb")

  for here, directories, names in os.walk(folder, onerror=_raise):
    directories.sort()
    for name in directories:
      links.refuse_outside(os.path.join(here, name), inside)
    for name in sorted(names):
      path = pathlib.Path(here, name)
      if os.path.isfile(path):  # opening a pipe would wait for a writer
        yield Member(
          path.relative_to(folder).as_posix(),
          functools.partial(pathlib.Path, path),
          functools.partial(start, path),
        )


def _raise(error: OSError):
  raise error


def read_texts(path: pathlib.Path, *names: str) -> list[str]:
  """Returns the contents of text files in an archive.

  Args:
    path: path of the archive or the folder.
    *names: the names of the files, without folders.

  Raises:
    InputError: a file is missing, or the archive is damaged.
  """
  texts = {}
  for member in read_members(path):
    plain = member.name.rpartition("/")[2]
    if plain in names and plain not in texts:
      with report_damage(path), member.open() as file:
        content = file.read(_LARGEST_TABLE + 1)
      if len(content) > _LARGEST_TABLE:
        raise InputError(
          f"{str(path)!r}: {plain} has more than {_LARGEST_TABLE} bytes: "
          "this is not the expected archive"
        )
      texts[plain] = content.decode("utf-8", "replace")
    if len(texts) == len(names):
      return [texts[name] for name in names]
  missing = ", ".join(name for name in names if name not in texts)
  raise InputError(
    f"{str(path)!r} holds no {missing}: this is not the expected archive"
  )
