"""What a program says to the person at the terminal."""

import functools
import sys
import warnings

_silent = False


def silence() -> None:
  """Makes this process say nothing more: no notes and no progress.

  Call it in all processes of a distributed run but the first.
  """
  global _silent
  _silent = True


def is_silent() -> bool:
  """Whether `silence` was called."""
  return _silent


def hush_libraries() -> None:
  """Keeps Pillow from warning of oddities in files that it reads nevertheless;
  for a command, whose process is its own."""
  warnings.filterwarnings("ignore", module="PIL")


def note(message: str) -> None:
  """Writes one line to stderr."""
  if not _silent:
    print(harmless(message), file=sys.stderr, flush=True)


@functools.lru_cache(maxsize=1000)
def note_once(message: str) -> None:
  """As `note`, but not the same line again, however often it is asked for."""
  note(message)


def harmless(text: str) -> str:
  """The text without characters that steer a terminal: names in it may come
  from anybody's files. Line feeds stay."""
  return "".join(
    c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text
  )


def printable(name: str) -> str:
  """The name of a file in a form that cannot steer the terminal: itself, or
  its `repr`."""
  return name if name.isprintable() else repr(name)


def human_size(count: int) -> str:
  """A number of bytes in words: 1150585339 is "1.2 GB"."""
  for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= size:
      return f"{count / size:.1f} {unit}"
  return f"{count} B"
