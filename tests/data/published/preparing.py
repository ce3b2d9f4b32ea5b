"""Reads the images of a source, or of a data set that is prepared from it."""

import io
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from deepemd_jax.data.published import archives, prepare


def prepared(benchmark, directory, source, **options):
  """Prepares a data set; returns {split: {key: row}} and its info."""
  prepare.prepare(benchmark, str(directory), source=source, **options)
  builder = prepare.make_builder(benchmark, str(directory))
  raw = {"image": tfds.decode.SkipDecoding()}
  names = builder.info.features["label"].names
  rows = {}
  for split in benchmark.splits:
    rows[split] = {}
    for row in builder.as_data_source(split, decoders=raw):
      key = row["key"].decode()
      assert key not in rows[split]
      rows[split][key] = row | {"label": names[row["label"]]}
  return rows, builder.info


def pixels(content):
  return np.asarray(Image.open(io.BytesIO(content)))


def read(benchmark, source):
  """Returns {key: (class, bytes or pixels, box)} of a source."""
  found = {}
  for item in archives.read(benchmark, source):
    content = item.content
    if isinstance(content, pathlib.Path):
      content = content.read_bytes()
    if isinstance(content, Image.Image):
      content = np.asarray(content).tobytes()
    assert item.key not in found
    found[item.key] = (item.label, content, item.box)
  return found


def labels(found):
  counts = {}
  for label, *_ in found.values():
    counts[label] = counts.get(label, 0) + 1
  return counts


def expected(benchmark):
  return {
    c: n for s in benchmark.splits for c, n in benchmark.counts(s).items()
  }
