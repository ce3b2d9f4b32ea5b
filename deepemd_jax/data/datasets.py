"""Where images come from: two sources with the same two methods.

`counts(split)` tells classes and images without preparing or decoding anything,
so that an infeasible episode is refused at once; `load(split)` returns all
images of a split in memory, preparing the data set on first use.
"""

import collections
import dataclasses
import functools
import io
import os
import pathlib

import numpy as np
from PIL import Image

from deepemd_jax.data import builders, folder, splits
from deepemd_jax.errors import InputError

default_directory = builders.default_directory


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """The images of one split, decoded.

  Attributes:
    images: uint8 [N, S, S, 3], squashed to a square.
    labels: int32 [N], indexing `class_names`.
    class_names: of this split.
    keys: a name for each image.
    sizes: int32 [N, 2], original height and width.
  """

  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]
  keys: tuple[str, ...]
  sizes: np.ndarray


@dataclasses.dataclass(frozen=True)
class GlyphClutterSource:
  """The embedded data set; see `glyph_clutter`.

  Attributes:
    directory: of prepared TFDS data sets.
    variant: "default", or a clutter variant, which has the split test only.
  """

  directory: str
  variant: str = "default"

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
    builders.once(make())
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
    return ImageSet(
      images,
      np.array([index[label] for label in labels], np.int32),
      names,
      tuple(row["key"].decode() for row in rows),
      np.full((len(rows), 2), images.shape[1], np.int32),
    )


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """The user's images; see `folder`.

  Attributes:
    root: the image folder.
    size: side of the stored copies.
    fractions: shares of the classes for train, val and test.
    csv: a CSV that says more, or None.
    seed: shuffles the classes before they are shared out.
  """

  root: str
  size: int = 84
  fractions: tuple[float, float, float] = (0.64, 0.16, 0.2)
  csv: str | None = None
  seed: int = 0

  def _listing(self, split: str) -> dict[str, list[pathlib.Path]]:
    found = folder.listing(
      self.root, fractions=self.fractions, table=self.csv, seed=self.seed
    )
    if split not in found:
      raise InputError(f"no split {split!r}; use one of {', '.join(found)}")
    return dict(sorted(found[split].items()))

  def counts(self, split: str) -> dict[str, int]:
    """Images by class name; opens no image."""
    return {name: len(paths) for name, paths in self._listing(split).items()}

  def load(self, split: str) -> ImageSet:
    """Decodes the split.

    The first call of a process looks at the images of all splits, so that a bad
    test image is not found out only after training.

    Raises:
      InputError: some images cannot be read; it names them.
    """
    _check(self)
    classes = self._listing(split)
    if not classes:
      raise InputError(f"{self.root!r} has no classes for split {split!r}")
    paths = [path for found in classes.values() for path in found]
    images, sizes = folder.read(paths, self.size)
    labels = np.repeat(
      np.arange(len(classes)), [len(found) for found in classes.values()]
    )
    return ImageSet(
      images,
      labels.astype(np.int32),
      tuple(classes),
      tuple(os.path.relpath(path, self.root) for path in paths),
      sizes,
    )


@functools.lru_cache
def _check(source: FolderSource) -> None:
  """Refuses a folder with bad images in any split; once a process."""
  splits_of = (source._listing(split) for split in folder.SPLITS)
  folder.check(p for found in splits_of for ps in found.values() for p in ps)
