"""Reads the metrics.jsonl of a training stage."""

import json
import os
import pathlib


def read(path: str | os.PathLike) -> list[dict]:
  """Returns the rows of a metrics file without an incomplete last line."""
  rows = []
  path = pathlib.Path(path)
  text = path.read_text("utf-8", "replace") if path.exists() else ""
  for line in text.splitlines():
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  return rows
