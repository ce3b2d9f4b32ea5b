"""Names that people and their systems write in several ways.

macOS writes "ü" as two characters (NFD) and others as one (NFC); a table has
spaces at the end of a cell, other capitals than the folder, and paths with
Windows' backslashes. Names are compared without these differences, and kept as
they were given.
"""

import unicodedata
from collections.abc import Iterable

from deepemd_jax.errors import InputError


def same(name: str) -> str:
  """What all spellings of a name, or of a path, have in common that look the
  same."""
  name = unicodedata.normalize("NFC", name)
  return "/".join(part.strip() for part in name.split("/"))


def alike(name: str) -> str:
  """What all spellings of a name have in common that a person would take for
  one: capitals, kinds of spaces and of letters (NFKC) do not count."""
  name = unicodedata.normalize("NFKC", same(name)).casefold()
  return " ".join(unicodedata.normalize("NFKC", name).split())


class Names:
  """Names that are known, to be found by any spelling."""

  def __init__(self, known: Iterable[str]) -> None:
    """Takes the names as they are spelt."""
    self._known = list(known)
    self._exact = set(self._known)
    self._by = {same: _grouped(self._known, same)}

  def find(self, name: str) -> str | None:
    """The known name that this one means: the very same, else the one that
    looks the same, else the one that is alike; None if there is none.

    Raises:
      InputError: it may mean several.
    """
    if name in self._exact:
      return name
    for key in (same, alike):
      if key not in self._by:  # few names get this far
        self._by[key] = _grouped(self._known, key)
      found = self._by[key].get(key(name), [])
      if len(found) > 1:
        raise InputError(
          f"{name!r} may mean {' or '.join(map(repr, found[:3]))}; write it as "
          "one of them"
        )
      if found:
        return found[0]
    return None


def refuse_twins(names: Iterable[str], what: str) -> None:
  """Refuses different names that look the same: one of them is a mistake.

  Args:
    names: of one kind.
    what: they are, for the message: "classes".

  Raises:
    InputError: there are some.
  """
  for twins in _grouped(names, same).values():
    if len(twins) > 1:
      one, other = (ascii(name) for name in twins[:2])
      raise InputError(
        f"two {what} look the same, {twins[0]!r}, and are written {one} and "
        f"{other}; give them one name, or two that differ"
      )


def _grouped(names: Iterable[str], key) -> dict[str, list[str]]:
  groups: dict[str, list[str]] = {}
  for name in dict.fromkeys(names):
    groups.setdefault(key(name), []).append(name)
  return groups
