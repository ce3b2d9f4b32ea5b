"""Class lists of the data sets, as data with their provenance."""

import functools
import importlib.resources
import json


@functools.cache
def load(name: str) -> dict:
  """The list of one data set: {"source", "splits": {split: {class: row}}}.

  Each row holds `images`, the number of images of that class.
  """
  files = importlib.resources.files(__name__)
  return json.loads((files / f"{name}.json").read_text("utf-8"))
