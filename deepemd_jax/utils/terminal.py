"""Messages to the user at the terminal."""

import functools
import sys
import warnings

_silent = False


def silence() -> None:
  """Makes this process write no more notes and no more progress.

  Call it in all processes of a distributed run but the first.
  """
  global _silent
  _silent = True


def is_silent() -> bool:
  """Tells whether `silence` was called."""
  return _silent


def hush_libraries() -> None:
  """Turns off Pillow's warnings about odd files that it can still read.

  Only a command may call it, because it affects the whole process.
  """
  warnings.filterwarnings("ignore", module="PIL")


def note(message: str) -> None:
  """Writes one line to stderr."""
  if not _silent:
    print(harmless(message), file=sys.stderr, flush=True)


@functools.lru_cache(maxsize=1000)
def note_once(message: str) -> None:
  """Writes a line as `note` does, but the same line only once."""
  note(message)


def harmless(text: str) -> str:
  """Escapes characters that control a terminal; line feeds stay.

  Names in a text may come from untrusted files.
  """
  return "".join(
    c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text
  )


def printable(name: str) -> str:
  """Returns the name of a file, or its `repr` if the name could control the
  terminal."""
  return name if name.isprintable() else repr(name)


def human_size(count: int) -> str:
  """Formats a number of bytes: 1150585339 is "1.2 GB"."""
  for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= size:
      return f"{count / size:.1f} {unit}"
  return f"{count} B"
