"""The source of the generated data set, which `glyph_clutter` describes."""

import collections
import dataclasses
import functools
import io

import numpy as np
from PIL import Image

from deepemd_jax.data import registry
from deepemd_jax.data.image_set import CachedImages, ImageSet
from deepemd_jax.data.published import prepare, splits
from deepemd_jax.data.sources import DataSpec
from deepemd_jax.errors import InputError

_VARIANTS = registry.DATA_SETS["glyph_clutter"].variants


def open_glyphs(
  spec: DataSpec, name: str, variant: str
) -> "GlyphClutterSource":
  """Returns the source of glyph_clutter, as `sources.open_source` calls it."""
  registry.check_name(name, spec.image_size)
  return GlyphClutterSource(spec.directory, variant)


@dataclasses.dataclass(frozen=True)
class GlyphClutterSource:
  """The generated data set glyph_clutter, a `sources.Source`.

  Attributes:
    directory: the TFDS folder of prepared data sets.
    variant: "default", or a clutter variant, which has only a test split.
  """

  directory: str
  variant: str = "default"

  protocol = "glyph_clutter:64"
  title = "glyph_clutter, made on the spot: characters in 64 x 64 scenes"

  def check(self) -> None:
    """Does nothing, because no images have to be fetched."""

  def counts(self, split: str) -> dict[str, int]:
    """Returns {class name: number of images}."""
    scenes = 1 if self.variant == "default" else 3
    classes = self._classes(split)
    return {name: row["images"] // scenes for name, row in classes.items()}

  def _classes(self, split: str) -> dict:
    lists = splits.load("glyph_clutter")["splits"]
    if self.variant not in ("default", *_VARIANTS):
      raise InputError(
        f"glyph_clutter has no variant {self.variant!r}; use one of "
        f"{', '.join(_VARIANTS)}"
      )
    if split not in lists or (self.variant != "default" and split != "test"):
      raise InputError(
        f"glyph_clutter, variant {self.variant!r}, has no split {split!r}"
      )
    return lists[split]

  def load(self, split: str) -> ImageSet:
    """Decodes a split, and prepares the data set first if it does not exist.

    Raises:
      InputError: the data set cannot be written, or its images are not the
        expected ones.
    """
    import tensorflow_datasets as tfds

    from deepemd_jax.data import glyph_clutter

    names = tuple(self._classes(split))
    make_builder = functools.partial(
      glyph_clutter.GlyphClutter,
      config=self.variant,
      data_dir=self.directory,
      file_format="array_record",
    )
    prepare.prepare_once(make_builder())
    # The first builder may have read its info before the info existed.
    builder = make_builder()
    # Pillow decodes, because TFDS would ask for OpenCV on stderr.
    raw = {"image": tfds.decode.SkipDecoding()}
    rows = list(builder.as_data_source(split, decoders=raw))
    labels = [builder.info.features["label"].int2str(r["label"]) for r in rows]
    if dict(collections.Counter(labels)) != self.counts(split):
      # The fonts have another version, or somebody changed a file.
      raise InputError(
        f"the data set in {builder.data_path} does not contain the expected "
        "images; delete that folder, and it will be prepared again"
      )
    index = {name: i for i, name in enumerate(names)}
    images = np.stack(
      [np.asarray(Image.open(io.BytesIO(row["image"]))) for row in rows]
    )
    return CachedImages(
      images=images,
      labels=np.array([index[label] for label in labels], np.int32),
      class_names=names,
      keys=tuple(row["key"].decode() for row in rows),
      sizes=np.full((len(rows), 2), images.shape[1], np.int32),
    )
