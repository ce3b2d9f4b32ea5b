"""The class lists of the data sets, JSON files that also state their source."""

import functools
import importlib.resources
import itertools
import json


def _read(name: str) -> dict:
  files = importlib.resources.files(__name__)
  return json.loads((files / f"{name}.json").read_text("utf-8"))


@functools.cache
def load(name: str) -> dict:
  """Returns a data set's list: {"source", "splits": {split: {class: row}}}.

  Each row has `images`, the number of images of that class. If this number is
  not known, the row has `images_at_least`, and the list also has
  {"totals": {split: number of images}}.
  """
  lists = _read(name)
  for split, (first, last) in lists.pop("numbered", {}).items():
    # The names of these classes are numbers.
    names = (f"{number:05d}" for number in range(first, last + 1))
    lists["splits"][split] = {name: {"images_at_least": 1} for name in names}
  return lists


@functools.cache
def file_numbers(name: str) -> dict[str, frozenset[int]]:
  """Returns {wnid: numbers N} of the files of a data set from ILSVRC-2012.

  The files are called <wnid>_<N>.JPEG.
  """
  steps = _read(f"{name}_files")["steps"]
  return {c: frozenset(itertools.accumulate(row)) for c, row in steps.items()}
