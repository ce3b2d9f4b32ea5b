"""The sources of the published data sets; see `published.catalogue`."""

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
  """Returns the source of a published set; called by `sources.open_source`."""
  del variant  # published data sets have no variants
  return PublishedSource(name, spec.directory)


@dataclasses.dataclass(frozen=True)
class PublishedSource:
  """A published data set, a `sources.Source`.

  Attributes:
    name: the name in configs, such as "cub", or "cub:84" for copies of another
      side.
    directory: the TFDS folder of prepared data sets; the copies are
      in its subfolder `stored`.
  """

  name: str
  directory: str

  @property
  def protocol(self) -> str:
    """The full name, such as "cub:160".

    If the data set was prepared from ready squares and the original images are
    requested, the name has the side of the squares.
    """
    benchmark, side = self._prepared()
    return catalogue.protocol(benchmark, side or benchmark.squares)

  def _prepared(self) -> tuple[catalogue.Benchmark, int]:
    """Returns the form found by `prepare.find`, and the side of the copies."""
    benchmark, side = catalogue.parse(self.name)
    return prepare.find(benchmark, side, self.directory), side

  @property
  def title(self) -> str:
    """A description in one line: the archive, crop and split.

    If the data set is prepared, the line also names its source and the number
    of bad images that were left out.
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
    """Checks that the data set is prepared, without opening its records.

    Raises:
      MissingData: it is not prepared; the message says how to get it.
    """
    benchmark, side = self._prepared()
    if not prepare.is_ready(benchmark, self.directory):
      raise prepare.missing(benchmark, self.directory, side=side)

  def counts(self, split: str) -> dict[str, int]:
    """Returns {class: number of images}.

    The numbers are those of the prepared data set, or the published ones if it
    is not prepared yet.
    """
    benchmark, _ = self._prepared()
    whole, belongs = catalogue.published_split(benchmark, split)
    counts = enumerate(self._stored_counts(whole).items())
    return {name: count for i, (name, count) in counts if belongs(i)}

  def _stored_counts(self, split: str) -> dict[str, int]:
    """Returns {class: number of images} of a published split."""
    benchmark, _ = self._prepared()
    published = benchmark.counts(split)
    if not prepare.is_ready(benchmark, self.directory):
      return published
    return prepare.metadata(benchmark, self.directory)["counts"][split]

  def load(self, split: str) -> ImageSet:
    """Opens a split, and makes its copies if they do not exist yet.

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
    # -1 marks the classes of a published split that are not in this split.
    labels = np.array([index.get(c, -1) for c in cache.labels], np.int32)
    # The rows are sorted by class and key, so that episodes do not depend on
    # the archive or folder that the data set was prepared from.
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
  """Returns a hash of the JSON files of a prepared data set.

  It stays the same if the folder is copied to another machine.
  """
  digest = hashlib.sha256()
  for path in sorted(prepared.glob("*.json")):
    digest.update(path.read_bytes())
  return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """The encoded images of a prepared data set; `image_set.Files`.

  Attributes:
    prepared: the folder of the data set.
    split: the name of the split.
    order: int [N], the number of the record of each row; None if row i is
      record i.
  """

  prepared: str
  split: str
  order: np.ndarray | None = None

  def read(self, rows: Sequence[int]) -> list[bytes]:
    """Returns the bytes of the file of each row."""
    numbers = rows if self.order is None else self.order[rows]
    records = _open_records(self.prepared, self.split)
    return [
      row["image"] for row in records.__getitems__(list(map(int, numbers)))
    ]

  def items(self) -> Iterator[pixel_cache.ImageFile]:
    """Yields all images with their keys and class names."""
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
  """Opens a split once per process; several threads may read from it."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(prepared)
  # Pillow decodes, because TFDS treats CMYK and palettes differently.
  raw = {"image": tfds.decode.SkipDecoding()}
  return builder.as_data_source(split, decoders=raw)
