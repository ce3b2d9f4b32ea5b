"""Compares names that people and their systems write in several ways.

macOS writes "ü" as two characters (NFD), and other systems write one (NFC). A
table may have spaces at the end of a cell and other capitals than the folder.
Names are compared without these differences, and kept as they were given.
"""

import unicodedata
from collections.abc import Iterable

from deepemd_jax.errors import InputError


def same(name: str) -> str:
  """Returns a form that is equal for all spellings that look the same.

  The name may be a path.
  """
  name = unicodedata.normalize("NFC", name)
  return "/".join(part.strip() for part in name.split("/"))


def alike(name: str) -> str:
  """Returns a form that is equal for all spellings that mean the same name.

  Capitals, kinds of spaces and variants of letters (NFKC) make no difference.
  """
  name = unicodedata.normalize("NFKC", same(name)).casefold()
  return " ".join(unicodedata.normalize("NFKC", name).split())


class Names:
  """Known names, each of which can be found by any of its spellings."""

  def __init__(self, known: Iterable[str]) -> None:
    """Stores the names with their spelling."""
    self._known = list(known)
    self._exact = set(self._known)
    self._by = {same: _grouped(self._known, same)}

  def find(self, name: str) -> str | None:
    """Returns the known name that a name means, or None.

    An identical name comes first, then one that looks the same (`same`), and
    then one that is alike (`alike`).

    Raises:
      InputError: the name may mean several known names.
    """
    if name in self._exact:
      return name
    for key in (same, alike):
      if key not in self._by:  # built late, because few names need it
        self._by[key] = _grouped(self._known, key)
      found = self._by[key].get(key(name), [])
      if len(found) > 1:
        raise InputError(
          f"{name!r} may mean {' or '.join(map(repr, found[:3]))}; write it "
          "like one of them"
        )
      if found:
        return found[0]
    return None


def refuse_twins(names: Iterable[str], what: str) -> None:
  """Raises an error if two different names look the same.

  Args:
    names: the names, all of one kind.
    what: the kind for the message, such as "classes".

  Raises:
    InputError: there are two such names; one of them is probably a mistake.
  """
  for twins in _grouped(names, same).values():
    if len(twins) > 1:
      one, other = (ascii(name) for name in twins[:2])
      raise InputError(
        f"two {what} look the same, {twins[0]!r}, but are written {one} and "
        f"{other}; give them one name, or two names that look different"
      )


def _grouped(names: Iterable[str], key) -> dict[str, list[str]]:
  groups: dict[str, list[str]] = {}
  for name in dict.fromkeys(names):
    groups.setdefault(key(name), []).append(name)
  return groups
