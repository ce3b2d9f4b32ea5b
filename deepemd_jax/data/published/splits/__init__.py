"""Class lists of the data sets, as data with their provenance."""

import functools
import importlib.resources
import itertools
import json


def _read(name: str) -> dict:
  files = importlib.resources.files(__name__)
  return json.loads((files / f"{name}.json").read_text("utf-8"))


@functools.cache
def load(name: str) -> dict:
  """The list of one data set: {"source", "splits": {split: {class: row}}}.

  Each row holds `images`, the number of images of that class; or, where that
  is not known, `images_at_least`. Then there is also {"totals": {split: n}}.
  """
  lists = _read(name)
  for split, (first, last) in lists.pop("numbered", {}).items():
    # Classes that have numbers for names.
    names = (f"{number:05d}" for number in range(first, last + 1))
    lists["splits"][split] = {name: {"images_at_least": 1} for name in names}
  return lists


@functools.cache
def file_numbers(name: str) -> dict[str, frozenset[int]]:
  """{wnid: the N of the files <wnid>_<N>.JPEG of ILSVRC-2012 that a data set
  consists of}."""
  steps = _read(f"{name}_files")["steps"]
  return {c: frozenset(itertools.accumulate(row)) for c, row in steps.items()}
