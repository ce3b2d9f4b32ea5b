"""Rows of a training stage's metrics.jsonl."""

import json
import os
import pathlib


def read(path: str | os.PathLike) -> list[dict]:
  """The rows of a metrics file; a torn last line is left out."""
  rows = []
  path = pathlib.Path(path)
  text = path.read_text("utf-8", "replace") if path.exists() else ""
  for line in text.splitlines():
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  return rows
