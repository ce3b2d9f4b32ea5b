"""Where images come from: three kinds of sources with the same methods.

`counts(split)` tells classes and images without preparing or decoding anything,
so that an infeasible episode is refused at once; `check()` refuses data that
have to be fetched first; `load(split)` gives an `images.ImageSet`, preparing
copies on first use. `protocol` and `title` say what it is, shortly and in one
line: part of every result.
"""

import collections
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from deepemd_jax.data import folder, pixel_cache
from deepemd_jax.data.image_set import Copies, ImageSet, Originals
from deepemd_jax.data.published import catalogue, prepare, splits
from deepemd_jax.errors import InputError

default_directory = prepare.default_directory


@dataclasses.dataclass(frozen=True)
class GlyphClutterSource:
  """The embedded data set; see `glyph_clutter`.

  Attributes:
    directory: of prepared TFDS data sets.
    variant: "default", or a clutter variant, which has the split test only.
  """

  directory: str
  variant: str = "default"

  protocol = "glyph_clutter:64"
  title = "glyph_clutter, made on the spot: characters in 64 x 64 scenes"

  def check(self) -> None:
    """Nothing has to be fetched."""

  def counts(self, split: str) -> dict[str, int]:
    """Images by class name."""
    scenes = 1 if self.variant == "default" else 3
    classes = self._classes(split)
    return {name: row["images"] // scenes for name, row in classes.items()}

  def _classes(self, split: str) -> dict:
    lists = splits.load("glyph_clutter")["splits"]
    known = [f"d{k}_{b}" for b in ("plain", "relief", "busy") for k in range(4)]
    if self.variant not in ("default", *known):
      raise InputError(
        f"glyph_clutter has no variant {self.variant!r}; use one of "
        f"{', '.join(known)}"
      )
    if split not in lists or (self.variant != "default" and split != "test"):
      raise InputError(
        f"glyph_clutter, variant {self.variant!r}, has no split {split!r}"
      )
    return lists[split]

  def load(self, split: str) -> ImageSet:
    """Decodes the split; prepares the data set when it is not there yet."""
    import tensorflow_datasets as tfds

    from deepemd_jax.data import glyph_clutter

    names = tuple(self._classes(split))
    make = functools.partial(
      glyph_clutter.GlyphClutter,
      config=self.variant,
      data_dir=self.directory,
      file_format="array_record",
    )
    prepare.once(make())
    # A new one: the other may have read its info before there was any.
    builder = make()
    # Decoded by Pillow here: TFDS would ask, on stderr, for OpenCV.
    raw = {"image": tfds.decode.SkipDecoding()}
    rows = list(builder.as_data_source(split, decoders=raw))
    labels = [builder.info.features["label"].int2str(r["label"]) for r in rows]
    if dict(collections.Counter(labels)) != self.counts(split):
      # Another version of the fonts, or somebody's hand.
      raise InputError(
        f"the data set in {builder.data_path} does not hold the images it "
        "should; delete that folder, and it will be prepared again"
      )
    index = {name: i for i, name in enumerate(names)}
    images = np.stack([Image.open(io.BytesIO(row["image"])) for row in rows])
    return Copies(
      images=images,
      labels=np.array([index[label] for label in labels], np.int32),
      class_names=names,
      keys=tuple(row["key"].decode() for row in rows),
      sizes=np.full((len(rows), 2), images.shape[1], np.int32),
    )


@dataclasses.dataclass(frozen=True)
class BenchmarkSource:
  """A published data set, see `catalogue` and `builders`.

  Attributes:
    name: as in configs: "cub", or "cub:84" for other copies than the usual.
    directory: of prepared TFDS data sets; the copies are kept in `stored/`.
  """

  name: str
  directory: str

  @property
  def protocol(self) -> str:
    """The name in full: "cub:160"."""
    return catalogue.protocol(*catalogue.parse(self.name))

  @property
  def title(self) -> str:
    """One line for people: archive, crop and split; once it is prepared also
    what from, and how many images are lacking."""
    benchmark, _ = catalogue.parse(self.name)
    held = "" if "val" in benchmark.splits else f"; {catalogue.HELD_OUT}"
    if not prepare.is_ready(benchmark, self.directory):
      return benchmark.title + held
    noted = prepare.metadata(benchmark, self.directory)
    bad = len(noted["skipped"])
    left_out = f"; {bad} bad images left out" if bad else ""
    return noted["source"] + held + left_out

  def check(self) -> None:
    """Looks whether the data set is prepared; opens none of it.

    Raises:
      MissingData: it is not; it tells how to get it.
    """
    benchmark, _ = catalogue.parse(self.name)
    if not prepare.is_ready(benchmark, self.directory):
      raise prepare.missing(benchmark, self.directory)

  def counts(self, split: str) -> dict[str, int]:
    """Images by class: those that are there once it is prepared, else those
    that were published."""
    benchmark, _ = catalogue.parse(self.name)
    whole, is_in = catalogue.part(benchmark, split)
    counts = enumerate(self._published(whole).items())
    return {name: count for i, (name, count) in counts if is_in(i)}

  def _published(self, split: str) -> dict[str, int]:
    """The same of a split as it was published and is stored."""
    benchmark, _ = catalogue.parse(self.name)
    published = benchmark.counts(split)
    if not prepare.is_ready(benchmark, self.directory):
      return published
    return prepare.metadata(benchmark, self.directory)["counts"][split]

  def load(self, split: str) -> ImageSet:
    """Opens the split; makes its copies when they are not there yet.

    Raises:
      MissingData: the data set is not prepared.
      InputError: the copies cannot be written.
    """
    self.check()
    benchmark, side = catalogue.parse(self.name)
    classes = tuple(self.counts(split))
    whole, _ = catalogue.part(benchmark, split)
    prepared = prepare.place(benchmark, self.directory)
    records = Records(str(prepared), whole)
    kept = pathlib.Path(self.directory, "stored", benchmark.name)
    found = pixel_cache.load(
      kept / benchmark.version / _side_name(side) / whole,
      records.items,
      count=sum(self._published(whole).values()),
      side=side,
      made_from=_content(prepared),
      name=f"{self.protocol}, {whole}",
    )
    index = {name: i for i, name in enumerate(classes)}
    # -1 is of the other part of a published split.
    labels = np.array([index.get(c, -1) for c in found.labels], np.int32)
    # By class and key: an episode is the same whatever archive or folder the
    # data set was prepared from.
    order = np.lexsort((np.array(found.keys), labels))
    order = order[labels[order] >= 0]
    known = {
      "labels": labels[order],
      "class_names": classes,
      "keys": tuple(found.keys[i] for i in order),
      "sizes": found.sizes[order],
    }
    if not side:
      files = dataclasses.replace(records, order=order)
      return Originals(files=files, **known)
    return Copies(images=found.pixels.only(order), **known)


def _side_name(side: int) -> str:
  return str(side) if side else "original"


def _content(prepared: pathlib.Path) -> str:
  """Tells a prepared data set from others: what TFDS notes about it, which
  stays the same when it is copied to another machine."""
  noted = hashlib.sha256()
  for path in sorted(prepared.glob("*.json")):
    noted.update(path.read_bytes())
  return noted.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """The encoded images of a prepared data set.

  Attributes:
    prepared: its folder.
    split: of it.
    order: int [N], where each row stands in there; None for as they stand.
  """

  prepared: str
  split: str
  order: np.ndarray | None = None

  def read(self, rows: Sequence[int]) -> list[bytes]:
    """The file of each row."""
    if self.order is not None:
      rows = self.order[rows]
    opened = _open_records(self.prepared, self.split)
    return [row["image"] for row in opened.__getitems__(list(map(int, rows)))]

  def items(self) -> Iterator[pixel_cache.Item]:
    """All of them, with keys and class names."""
    opened = _open_records(self.prepared, self.split)
    label = opened.dataset_info.features["label"]
    for i in range(len(opened)):
      row = opened[i]
      yield pixel_cache.Item(
        row["image"],
        row["key"].decode(),
        label.int2str(row["label"]),
        (int(row["height"]), int(row["width"])),
      )


@functools.lru_cache(maxsize=8)
def _open_records(prepared: str, split: str):
  """Once a process; reading from it is safe in threads."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(prepared)
  # Decoded by Pillow: TFDS has its own idea of what CMYK and palettes are.
  raw = {"image": tfds.decode.SkipDecoding()}
  return builder.as_data_source(split, decoders=raw)


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """The user's images; see `folder`.

  Attributes:
    root: the image folder.
    directory: the copies are kept in its `stored/`.
    side: of the copies, in pixels; 0 for none: images are decoded when read.
    fractions: shares of the classes for train, val and test.
    csv: a CSV that says more, or None.
    seed: shuffles the classes before they are shared out.
  """

  root: str
  directory: str
  side: int = 160
  fractions: tuple[float, float, float] = (0.64, 0.16, 0.2)
  csv: str | None = None
  seed: int = 0

  @property
  def protocol(self) -> str:
    """The name in full: "folder:160"."""
    return f"folder:{_side_name(self.side)}"

  @property
  def title(self) -> str:
    """One line for people."""
    how = f"by {self.csv}" if self.csv else "by folders, or fractions and seed"
    return f"images of {self.root}, split {how}"

  def check(self) -> None:
    """Nothing has to be fetched; `counts` refuses what does not fit."""

  def _listing(self) -> dict[str, dict[str, list[pathlib.Path]]]:
    return folder.listing(
      self.root, fractions=self.fractions, table=self.csv, seed=self.seed
    )

  def _classes(self, split: str) -> dict[str, list[pathlib.Path]]:
    found = self._listing()
    if split not in found:
      raise InputError(f"no split {split!r}; use one of {', '.join(found)}")
    return dict(sorted(found[split].items()))

  def counts(self, split: str) -> dict[str, int]:
    """Images by class name; opens no image."""
    return {name: len(paths) for name, paths in self._classes(split).items()}

  def load(self, split: str) -> ImageSet:
    """Opens the split; looks at the images of all splits when that has not been
    done yet, so that a bad test image is not found out only after training.

    The copies do not depend on the splits, which another seed changes.

    Raises:
      InputError: some images cannot be read, it names them; or the copies
        cannot be written.
    """
    classes = self._classes(split)
    if not classes:
      raise InputError(f"{self.root!r} has no classes for split {split!r}")
    every = sorted(
      path
      for found in self._listing().values()
      for paths in found.values()
      for path in paths
    )
    keys = {path: os.path.relpath(path, self.root) for path in every}
    root = pathlib.Path(self.root).resolve()
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    found = pixel_cache.load(
      pathlib.Path(
        *(self.directory, "stored", "folder", place, _side_name(self.side))
      ),
      lambda: (pixel_cache.Item(str(path), keys[path]) for path in every),
      count=len(every),
      side=self.side,
      made_from=_listed(keys),
      name=f"the images in {self.root}",
    )
    row_of = {key: row for row, key in enumerate(found.keys)}
    paths = [path for each in classes.values() for path in each]
    rows = np.array([row_of[keys[path]] for path in paths])
    known = {
      "labels": np.repeat(
        np.arange(len(classes), dtype=np.int32),
        [len(each) for each in classes.values()],
      ),
      "class_names": tuple(classes),
      "keys": tuple(keys[path] for path in paths),
      "sizes": found.sizes[rows],
    }
    if not self.side:
      return Originals(files=Paths(tuple(map(str, paths))), **known)
    return Copies(images=found.pixels.only(rows), **known)


def _listed(keys: dict[pathlib.Path, str]) -> str:
  """Tells a folder's images from what they were before a change."""
  noted = hashlib.sha256()
  for path, key in keys.items():
    found = path.stat()
    line = f"{key}\0{found.st_size}\0{found.st_mtime_ns}\n"
    noted.update(os.fsencode(line))
  return noted.hexdigest()


@dataclasses.dataclass(frozen=True)
class Paths:
  """Image files.

  Attributes:
    paths: of all.
  """

  paths: tuple[str, ...]

  def read(self, rows: Sequence[int]) -> list[str]:
    """The path of each row."""
    return [self.paths[row] for row in rows]


@dataclasses.dataclass(frozen=True)
class DataSpec:
  """(to be replaced at the merge)"""

  name: str
  test_name: str = ""
  directory: str = ""
  folder: str = ""
  csv: str = ""
  fractions: tuple[float, float, float] = (0.64, 0.16, 0.2)
  image_size: int = 84
  seed: int = 0
  workers: int = 0


def open_source(spec: DataSpec, *, variant: str = "default", split: str = ""):
  """(to be replaced at the merge)"""
  from deepemd_jax.data.registry import _folder_side

  name = spec.name
  if split == "test" and spec.test_name:
    name = spec.test_name
  directory = os.path.abspath(
    os.path.expanduser(spec.directory or default_directory())
  )
  if name == "glyph_clutter":
    return GlyphClutterSource(directory, variant=variant)
  if variant != "default":
    raise InputError(
      f"data set {name!r} has no variant {variant!r}; set "
      "config.evaluate.variants to ()"
    )
  if name.partition(":")[0] != "folder":
    return BenchmarkSource(name, directory)
  return FolderSource(
    spec.folder,
    directory,
    side=_folder_side(name, spec.image_size),
    fractions=spec.fractions,
    csv=spec.csv or None,
    seed=spec.seed,
  )
