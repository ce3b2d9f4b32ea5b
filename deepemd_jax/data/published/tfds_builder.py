"""The TFDS builder of the published data sets; it needs no TensorFlow.

One pass over the archive decodes every image and writes all splits. So an
archive is unpacked only once, and every bad image is known before the data set
counts as complete.

An upright RGB JPEG or PNG file is stored unchanged. Crops (CUB) are stored as
PNG, because a second JPEG compression would change the pixels. The 11,788
lossless crops take between one and two GB, about as much as the archive itself.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import dataset_builder

from deepemd_jax.data import image_io, loader
from deepemd_jax.data.published import archives, catalogue, checks
from deepemd_jax.data.published.layouts import SourceImage
from deepemd_jax.errors import InputError

_SHARD = 8192  # examples per file, which is below 1 GB for photographs
_BATCH = 256  # examples per write


@dataclasses.dataclass(frozen=True)
class Work:
  """The inputs of a preparation.

  Attributes:
    source: the archive or folder to read.
    skip_bad: whether to omit unreadable images and list them in the metadata,
      instead of raising an error.
    progress: called with the unit ("bytes" that are compared, or "images"), the
      number done, and the total.
  """

  source: str | os.PathLike
  skip_bad: bool
  progress: Callable[[str, int, int], None]


class Published(dataset_builder.FileReaderBuilder, skip_registration=True):
  """The base class of the builders that `builder_class` makes."""

  VERSION = tfds.core.Version("0.0.0")
  name = "published"
  benchmark: catalogue.Benchmark

  def __init__(self, *, work: Work | None = None, **settings):
    self._work: Any = work  # None if the builder only reads prepared data
    super().__init__(**settings)

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(
          names=list(self.benchmark.split_of())
        ),
        "key": tfds.features.Text(),
        "height": tfds.features.Scalar(np.int32),
        "width": tfds.features.Scalar(np.int32),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self,
      features=features,
      description=self.benchmark.title,
      metadata=tfds.core.MetadataDict(),
    )

  def _download_and_prepare(self, dl_manager, download_config) -> None:
    del dl_manager, download_config  # `download.fetch` did the download
    source = self._work.source
    origin = archives.describe(
      self.benchmark, source, functools.partial(self._work.progress, "bytes")
    )
    images = archives.read(self.benchmark, source)
    info = self._info()  # it has the path of the temporary folder
    skipped, counts = self._write(images, info)
    _sync(pathlib.Path(self.data_dir), counts)
    # The splits of `info` know their files only after the writing.
    self.info.set_splits(tfds.core.splits.SplitDict(info.splits.values()))
    self.info.metadata.update(
      source=f"{self.benchmark.title}; {origin}",
      skipped=skipped,
      counts=counts,
    )

  def _write(
    self, images: Iterable[SourceImage], info: tfds.core.DatasetInfo
  ) -> tuple[list[list[str]], dict[str, dict[str, int]]]:
    """Writes all splits.

    Returns:
      [[key, reason], ...] of the bad images, and {split: {class: number of
      images}}.
    """
    benchmark, split_of = self.benchmark, self.benchmark.split_of()
    total = sum(benchmark.total(split) for split in benchmark.splits)
    writer = tfds.core.SequentialWriter(
      info, max_examples_per_shard=_SHARD, file_format="array_record"
    )
    writer.initialize_splits(list(benchmark.splits))
    keys, bad = set(), []
    written, skipped = collections.Counter(), collections.Counter()
    encoded = loader.in_order(_encode, images)
    while batch := list(itertools.islice(encoded, _BATCH)):
      examples = collections.defaultdict(list)
      for image, (example, problem) in batch:
        if image.key in keys:
          raise InputError(f"image {image.key!r} occurs twice; remove one")
        keys.add(image.key)
        if problem:
          bad.append([image.key, problem])
          skipped[image.label] += 1
        else:
          checks.compare_size(benchmark, example)
          written[image.label] += 1
          examples[split_of[image.label]].append(example)
      # This goes on after a bad image, because a full disk must be reported,
      # too.
      with _disk_errors():
        writer.add_examples(dict(examples))
      self._work.progress("images", len(keys), max(total, len(keys)))
    if bad and not self._work.skip_bad:
      lines = [f"{key}: {problem}" for key, problem in bad]
      raise checks.BadImages(lines, len(keys))
    checks.compare_counts(benchmark, written, skipped)
    with _disk_errors():
      writer.close_all()
    counts = {
      split: {c: written[c] for c, s in split_of.items() if s == split}
      for split in benchmark.splits
    }
    return bad, counts


@contextlib.contextmanager
def _disk_errors():
  """Turns the RuntimeError of array_record at a full disk into an OSError."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(str(error).partition(";")[0]) from error


def _encode(image: SourceImage) -> tuple[dict | None, str | None]:
  """Returns (the example to write, None), or (None, why the image is bad)."""
  if image.content is None:
    return None, "it is listed, but missing"
  try:
    image.key.encode()
  except UnicodeEncodeError:
    return None, "its name is not UTF-8"
  try:
    # pyrefly: ignore[bad-argument-type]: a box has four numbers
    content, height, width = image_io.as_rgb_file(image.content, image.box)
  except Exception as error:  # decoders raise errors of many types
    return None, image_io.reason(error)
  example = {
    "image": content,
    "label": image.label,
    "key": image.key,
    "height": height,
    "width": width,
  }
  return example, None


def _sync(folder: pathlib.Path, counts: dict[str, dict[str, int]]) -> None:
  """Flushes the written files to the disk and checks their image count."""
  on_disk = 0
  for path in folder.glob("*.array_record-*"):
    with open(path, "rb") as file:
      os.fsync(file.fileno())
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    on_disk += reader.num_records()
    reader.close()
  expected = sum(sum(classes.values()) for classes in counts.values())
  if on_disk != expected:
    raise OSError(
      f"{on_disk} of {expected} images were written; is the disk full?"
    )


@functools.cache
def builder_class(benchmark: catalogue.Benchmark) -> type[Published]:
  """Returns the builder class of one data set."""
  fields = {
    "name": catalogue.folder_name(benchmark),
    "benchmark": benchmark,
    "VERSION": tfds.core.Version(benchmark.version),
    "__module__": __name__,
    "__doc__": benchmark.title,
  }
  return types.new_class(
    benchmark.name.title().replace("_", ""),
    (Published,),
    {"skip_registration": True},
    lambda namespace: namespace.update(fields),
  )
