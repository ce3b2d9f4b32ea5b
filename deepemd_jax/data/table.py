"""Reads CSV tables with various separators and text encodings.

A table may have commas, semicolons, tabs or bars, a line `sep=;`, and capitals
and spaces in its header. It may be in UTF-8, in UTF-16 with a byte order mark,
or else in Windows-1252. Any other table is refused. If one line is wrong, the
error names it.
"""

import codecs
import contextlib
import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deepemd_jax.errors import InputError
from deepemd_jax.utils import files
from deepemd_jax.utils.terminal import note_once

_SEPARATORS = (",", ";", "\t", "|")
_LARGEST = 2**30  # bytes
_SEP = re.compile(r"\s*\"?sep=(.)\"?\s*(?:\r\n|\r|\n|\Z)", re.IGNORECASE)


class Row(NamedTuple):
  """One row of a table.

  Attributes:
    line: number of the line on which it ends, counted from 1.
    fields: {name of the column: text without outer spaces}.
  """

  line: int
  fields: dict[str, str]


def read(path: str | os.PathLike, *choices: Sequence[str]) -> list[Row]:
  """Reads a table and omits empty rows.

  Args:
    path: path of the file.
    *choices: alternative sets of columns. The table must have all columns of
      one set, in any order, and may have others. If two sets fit, the first
      one is used.

  Returns:
    The rows, at least one, with the columns of that set. No field is empty.

  Raises:
    InputError: the table cannot be read, has other columns, or a row is wrong.
  """
  where = f"CSV {os.fspath(path)!r}"
  text = _text(path, where)
  first_line = 1
  if sep := _SEP.match(text):
    text, first_line = text[sep.end() :], 2
  separators = [sep[1]] if sep else _SEPARATORS
  for columns in choices:
    for separator in separators:
      lines = _lines(text, separator, where, first_line)
      header = _header(lines)
      if set(columns) <= set(header):
        _refuse_twice(header, columns, where)
        return _rows(lines, header, columns, where)
  names = " or ".join(",".join(columns) for columns in choices)
  first = text.strip().splitlines()[:1]
  found = f"its first line is {first[0][:100]!r}" if first else "it is empty"
  raise InputError(f"{where} needs a header with {names}; {found}")


def _text(path, where: str) -> str:
  try:
    content = files.read_regular(path, _LARGEST)
  except OSError as error:
    raise InputError(
      f"cannot read the {where}: {error.strerror or error}"
    ) from error
  if content.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
    raise InputError(
      f"cannot read the {where}: it is a workbook; save it as CSV (UTF-8)"
    )
  if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    alphabets = ["utf-16"]
  else:
    alphabets = ["utf-8-sig", "cp1252"]
  for alphabet in alphabets:
    try:
      text = content.decode(alphabet)
    except UnicodeDecodeError:
      continue
    if "\0" in text:
      break
    if alphabet == "cp1252":
      note_once(f"{where} is not UTF-8; it was read as Windows-1252")
    return text
  raise InputError(
    f"cannot read the {where}: it is not text in UTF-8; save it as CSV (UTF-8)"
  )


def _lines(text: str, separator: str, where: str, first_line: int):
  """Yields (line, fields) of each record, beginning with the header."""
  # Without `strict`, an unclosed quotation mark would swallow the rows below.
  reader = csv.reader(
    io.StringIO(text, newline=""), delimiter=separator, strict=True
  )
  while True:
    start = reader.line_num + first_line
    try:
      with _fields_of_any_length(len(text)):
        fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      raise InputError(
        f"{where} line {start}: {error}; is there a quotation mark too few "
        "or too many?"
      ) from error
    yield reader.line_num + first_line - 1, fields


@contextlib.contextmanager
def _fields_of_any_length(length: int) -> Iterator[None]:
  """Raises the csv module's field limit, 131,072 for the whole process."""
  before = csv.field_size_limit()
  csv.field_size_limit(max(before, length))
  try:
    yield
  finally:
    csv.field_size_limit(before)


def _header(lines) -> list[str]:
  """Returns the names of the columns, or [] if the separator is wrong."""
  try:
    fields = next((x for _, x in lines if any(x)), [])
  except InputError:
    return []
  return [field.strip().lower() for field in fields]


def _refuse_twice(header: list[str], columns, where: str) -> None:
  for name in columns:
    if header.count(name) > 1:
      raise InputError(
        f"{where} has {header.count(name)} columns {name!r}; keep one"
      )


def _rows(lines, header, columns, where: str) -> list[Row]:
  rows = []
  for line, fields in lines:
    fields = [field.strip() for field in fields]
    if not any(fields):
      continue
    if any(fields[len(header) :]):
      raise InputError(
        f"{where} line {line}: {len(fields)} fields, but the header has "
        f"{len(header)}; put quotation marks around a field with a separator"
      )
    row = dict(zip(header, fields, strict=False))
    empty = [name for name in columns if not row.get(name)]
    if empty:
      raise InputError(
        f"{where} line {line}: {empty[0]} is empty; fill it in, or remove the "
        "line"
      )
    rows.append(Row(line, {name: row[name] for name in columns}))
  if not rows:
    raise InputError(f"{where} has no rows below its header; add some")
  return rows
