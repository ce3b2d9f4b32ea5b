"""The TFDS builder of the published data sets; needs no TensorFlow.

One pass over the archive looks at every image, and writes those of all splits
side by side, so that an archive is unpacked once and a bad image of the last
split is known before anything is taken for whole.

Files are kept as they came where they are upright RGB JPEG or PNG. Crops (CUB)
are PNG: a second JPEG would change the pixels, and lossless the 11,788 crops
take between one and two GB, no more than about the archive itself.
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

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import dataset_builder

from deepemd_jax.data import image_io, loader
from deepemd_jax.data.published import archives, catalogue
from deepemd_jax.data.published.layouts import Item
from deepemd_jax.errors import InputError

_SHARD = 8192  # examples a file: below 1 GB where images are photographs
_BATCH = 256  # examples between two looks at the list of shards
_NAMED = 5


class BadImages(InputError):
  """Some images cannot be read.

  Attributes:
    lines: one for each of them: its key, and why.
  """

  def __init__(self, lines: list[str], total: int):
    super().__init__(
      f"{len(lines)} of {total} images cannot be read; repair them, or leave "
      "them out with --skip-bad"
    )
    self.lines = lines


@dataclasses.dataclass(frozen=True)
class Work:
  """How to prepare.

  Attributes:
    source: the archive or folder to read.
    skip_bad: leave unreadable images out, and note them, instead of failing.
    progress: called with the number of images done and of all.
  """

  source: str | os.PathLike
  skip_bad: bool
  progress: Callable[[int, int], None]


class Published(dataset_builder.FileReaderBuilder, skip_registration=True):
  """A builder that gets its benchmark from `make`."""

  VERSION = tfds.core.Version("0.0.0")
  name = "published"
  benchmark: catalogue.Benchmark

  def __init__(self, *, work: Work | None = None, **settings):
    self._work = work
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
    del dl_manager, download_config  # `fetch` has been there before
    items = archives.read(self.benchmark, self._work.source)
    info = self._info()  # of the scratch folder, for the while
    skipped, counts = self._write(items, info)
    _sync(pathlib.Path(self.data_dir), counts)
    # Only now: the splits of `info` know their files.
    self.info.set_splits(tfds.core.splits.SplitDict(info.splits.values()))
    self.info.metadata.update(
      source=f"{self.benchmark.title}; "
      f"{archives.describe(self.benchmark, self._work.source)}",
      skipped=skipped,
      counts=counts,
    )

  def _write(self, items: Iterable[Item], info):
    """Writes all splits; returns the skipped and the counts."""
    benchmark = self.benchmark
    split_of = benchmark.split_of()
    total = sum(benchmark.total(split) for split in benchmark.splits)
    writer = tfds.core.SequentialWriter(
      info, max_examples_per_shard=_SHARD, file_format="array_record"
    )
    writer.initialize_splits(list(benchmark.splits))
    keys, bad = set(), []
    written, skipped = collections.Counter(), collections.Counter()
    looked = loader.in_order(_look, items)
    while batch := list(itertools.islice(looked, _BATCH)):
      examples = {split: [] for split in benchmark.splits}
      for item, (content, problem) in batch:
        if item.key in keys:
          raise InputError(f"image {item.key!r} comes twice; drop one of them")
        keys.add(item.key)
        if problem:
          bad.append((item.key, problem))
          skipped[item.label] += 1
          continue
        written[item.label] += 1
        image, height, width = content
        examples[split_of[item.label]].append(
          {
            "image": image,
            "label": item.label,
            "key": item.key,
            "height": height,
            "width": width,
          }
        )
      # Even if some are bad and this will fail: the disk may be full, too.
      with _disk_errors():
        writer.add_examples({s: rows for s, rows in examples.items() if rows})
      self._work.progress(len(keys), max(total, len(keys)))
    if bad and not self._work.skip_bad:
      lines = [f"{key}: {problem}" for key, problem in bad]
      raise BadImages(lines, len(keys))
    compare(benchmark, written, skipped)
    with _disk_errors():
      writer.close_all()
    counts = {
      split: {c: written[c] for c, s in split_of.items() if s == split}
      for split in benchmark.splits
    }
    return [list(pair) for pair in bad], counts


@contextlib.contextmanager
def _disk_errors():
  """array_record reports a full disk as a RuntimeError."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(str(error).partition(";")[0]) from error


def compare(
  benchmark: catalogue.Benchmark,
  written: collections.Counter,
  skipped: collections.Counter,
) -> None:
  """Compares the images by class with the published ones.

  Args:
    benchmark: says how many there should be.
    written: images by class.
    skipped: bad images by class.

  Raises:
    InputError: they differ; it names the classes.
  """
  found = written + skipped
  problems = []
  for split in benchmark.splits:
    exact = benchmark.exact(split)
    for name, wanted in benchmark.counts(split).items():
      if found[name] < wanted or (exact and found[name] > wanted):
        least = "" if exact else "at least "
        problems.append(
          f"class {name!r} ({split}) has {found[name]} images and should have "
          f"{least}{wanted}"
        )
    has = sum(found[name] for name in benchmark.counts(split))
    if not exact and has != benchmark.total(split):
      problems.append(
        f"split {split} has {has} images and should have "
        f"{benchmark.total(split)}"
      )
  if problems:
    more = len(problems) - _NAMED
    raise InputError(
      f"this is not the published {benchmark.name}: "
      f"{'; '.join(problems[:_NAMED])}{f'; and {more} more' * (more > 0)}; is "
      "the source whole?"
    )


def _look(item: Item):
  """((bytes, height, width), None), or (None, why it is bad)."""
  if item.content is None:
    return None, "it is listed, but not there"
  try:
    return image_io.as_rgb_file(item.content, item.box), None
  except Exception as error:  # decoders raise nearly anything on broken files
    return None, image_io.reason(error)


def _sync(folder: pathlib.Path, counts: dict[str, dict[str, int]]) -> None:
  """Makes sure that what was written is on the disk, all of it."""
  found = 0
  for path in folder.glob("*.array_record-*"):
    with open(path, "rb") as file:
      os.fsync(file.fileno())
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    found += reader.num_records()
    reader.close()
  wanted = sum(sum(classes.values()) for classes in counts.values())
  if found != wanted:
    raise OSError(f"{found} of {wanted} images were written; is the disk full?")


@functools.cache
def builder_class(benchmark: catalogue.Benchmark) -> type[Published]:
  """The builder class of one data set."""
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
