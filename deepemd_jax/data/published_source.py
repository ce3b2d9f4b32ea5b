"""The published data sets as sources; see `published.catalogue`."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from deepemd_jax.data import pixel_cache
from deepemd_jax.data.image_set import CachedImages, EncodedImages, ImageSet
from deepemd_jax.data.published import catalogue, prepare
from deepemd_jax.data.sources import DataSpec


def open_published(
  spec: DataSpec, name: str, variant: str
) -> "PublishedSource":
  """Returns the source of a published set; see `sources.open_source`."""
  del variant  # they have none
  return PublishedSource(name, spec.directory)


@dataclasses.dataclass(frozen=True)
class PublishedSource:
  """A published data set, a `sources.Source`.

  Attributes:
    name: as in configs: "cub", or "cub:84" for copies of another side.
    directory: where TFDS keeps prepared data sets; the copies are in its
      subfolder `stored`.
  """

  name: str
  directory: str

  @property
  def protocol(self) -> str:
    """The name in full, "cub:160"; of what the pixels were, once it is known.

    A folder of ready squares has no originals, whatever the name asked for.
    """
    benchmark, side = self._prepared()
    return catalogue.protocol(benchmark, side or benchmark.squares)

  def _prepared(self) -> tuple[catalogue.Benchmark, int]:
    """Returns what is read, and the side of its copies; see `prepare.find`."""
    benchmark, side = catalogue.parse(self.name)
    return prepare.find(benchmark, side, self.directory), side

  @property
  def title(self) -> str:
    """What it is, in one line: archive, crop and split.

    Once the data set is prepared, the line also says what it was made from and
    how many images are missing.
    """
    benchmark, _ = self._prepared()
    held_out = "" if "val" in benchmark.splits else f"; {catalogue.HELD_OUT}"
    if not prepare.is_ready(benchmark, self.directory):
      return benchmark.title + held_out
    metadata = prepare.metadata(benchmark, self.directory)
    bad = len(metadata["skipped"])
    left_out = f"; {bad} bad images left out" if bad else ""
    return metadata["source"] + held_out + left_out

  def check(self) -> None:
    """Checks that the data set is prepared; opens none of it.

    Raises:
      MissingData: it is not; the message tells how to get it.
    """
    benchmark, side = self._prepared()
    if not prepare.is_ready(benchmark, self.directory):
      raise prepare.missing(benchmark, self.directory, side=side)

  def counts(self, split: str) -> dict[str, int]:
    """Returns the images by class.

    These are the images that are there, or, before the data set is prepared,
    those that were published.
    """
    benchmark, _ = self._prepared()
    whole, belongs = catalogue.published_split(benchmark, split)
    counts = enumerate(self._stored_counts(whole).items())
    return {name: count for i, (name, count) in counts if belongs(i)}

  def _stored_counts(self, split: str) -> dict[str, int]:
    """Returns the same of a split as it was published and is stored."""
    benchmark, _ = self._prepared()
    published = benchmark.counts(split)
    if not prepare.is_ready(benchmark, self.directory):
      return published
    return prepare.metadata(benchmark, self.directory)["counts"][split]

  def load(self, split: str) -> ImageSet:
    """Opens a split; makes its copies if they are not there yet.

    Raises:
      MissingData: the data set is not prepared.
      InputError: the copies cannot be written, or would be larger than the
        images.
    """
    self.check()
    benchmark, side = self._prepared()
    classes = tuple(self.counts(split))
    whole, _ = catalogue.published_split(benchmark, split)
    prepared = prepare.prepared_folder(benchmark, self.directory)
    records = Records(str(prepared), whole)
    copies = pathlib.Path(self.directory, "stored", benchmark.folder)
    cache = pixel_cache.load(
      copies / benchmark.version / pixel_cache.side_name(side) / whole,
      records.items,
      count=sum(self._stored_counts(whole).values()),
      side=side,
      made_from=_fingerprint(prepared),
      name=f"{self.protocol}, {whole}",
      data_set=benchmark.name,
    )
    index = {name: i for i, name in enumerate(classes)}
    # -1 marks the classes of the other part of a published split.
    labels = np.array([index.get(c, -1) for c in cache.labels], np.int32)
    # Sorted by class and key, so that an episode is the same whatever archive
    # or folder the data set was prepared from.
    order = np.lexsort((np.array(cache.keys), labels))
    order = order[labels[order] >= 0]
    fields = {
      "labels": labels[order],
      "class_names": classes,
      "keys": tuple(cache.keys[i] for i in order),
      "sizes": cache.sizes[order],
    }
    if cache.pixels is None:  # no copies are stored
      files = dataclasses.replace(records, order=order)
      return EncodedImages(files=files, **fields)
    return CachedImages(images=cache.pixels.only(order), **fields)


def _fingerprint(prepared: pathlib.Path) -> str:
  """Identifies a prepared data set by what TFDS notes about it.

  It stays the same when the folder is copied to another machine.
  """
  digest = hashlib.sha256()
  for path in sorted(prepared.glob("*.json")):
    digest.update(path.read_bytes())
  return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """The encoded images of a prepared data set; `image_set.Files`.

  Attributes:
    prepared: its folder.
    split: which split of it.
    order: int [N], the record of each row; None if row i is record i.
  """

  prepared: str
  split: str
  order: np.ndarray | None = None

  def read(self, rows: Sequence[int]) -> list[bytes]:
    """Returns the file of each row."""
    numbers = rows if self.order is None else self.order[rows]
    records = _open_records(self.prepared, self.split)
    return [
      row["image"] for row in records.__getitems__(list(map(int, numbers)))
    ]

  def items(self) -> Iterator[pixel_cache.ImageFile]:
    """Yields all images, with keys and class names."""
    records = _open_records(self.prepared, self.split)
    label = records.dataset_info.features["label"]
    for i in range(len(records)):
      row = records[i]
      yield pixel_cache.ImageFile(
        row["image"],
        row["key"].decode(),
        label.int2str(row["label"]),
        (int(row["height"]), int(row["width"])),
      )


@functools.lru_cache(maxsize=8)
def _open_records(prepared: str, split: str):
  """Opens a split once a process; threads may read from it."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(prepared)
  # Pillow decodes: TFDS has its own idea of what CMYK and palettes are.
  raw = {"image": tfds.decode.SkipDecoding()}
  return builder.as_data_source(split, decoders=raw)
