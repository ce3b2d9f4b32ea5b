"""The source of the user's own images; see `folder` for their layout."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from deepemd_jax.data import folder, pixel_cache, registry
from deepemd_jax.data.image_set import CachedImages, EncodedImages, ImageSet
from deepemd_jax.data.sources import DataSpec
from deepemd_jax.errors import InputError


def open_folder(spec: DataSpec, name: str, variant: str) -> "FolderSource":
  """Returns the source of a user's images; called by `sources.open_source`."""
  del variant  # a folder has no variants
  return FolderSource(
    spec.folder,
    spec.directory,
    side=registry.folder_side(name, spec.image_size),
    fractions=spec.fractions,
    csv=spec.csv or None,
    seed=spec.seed,
  )


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """The user's images, a `sources.Source`.

  Attributes:
    root: the image folder.
    directory: the folder whose subfolder `stored` contains the copies.
    side: side of the copies in pixels; 0 keeps no copies and decodes images
      whenever they are read.
    fractions: shares of the classes for train, val and test.
    csv: a CSV that assigns classes or files to splits, or None.
    seed: the seed that shuffles the classes before they are split.
  """

  root: str
  directory: str
  side: int = 160
  fractions: tuple[float, float, float] = (0.64, 0.16, 0.2)
  csv: str | None = None
  seed: int = 0

  @property
  def protocol(self) -> str:
    """The full name, such as "folder:160"."""
    return f"folder:{pixel_cache.side_name(self.side)}"

  @property
  def title(self) -> str:
    """A description in one line, with the rule for the splits."""
    how = f"by folders, or fractions {self.fractions} and seed {self.seed}"
    if self.csv:
      how = f"by {self.csv}"
    return f"images of {self.root}, split {how}"

  def check(self) -> None:
    """Does nothing, because `counts` refuses an unsuitable folder."""

  def _listing(self) -> dict[str, dict[str, list[pathlib.Path]]]:
    return folder.listing(
      self.root, fractions=self.fractions, table=self.csv, seed=self.seed
    )

  def _classes(self, split: str) -> dict[str, list[pathlib.Path]]:
    listing = self._listing()
    if split not in listing:
      raise InputError(f"no split {split!r}; use one of {', '.join(listing)}")
    return dict(sorted(listing[split].items()))

  def counts(self, split: str) -> dict[str, int]:
    """Returns {class name: number of images} without opening any image."""
    return {name: len(paths) for name, paths in self._classes(split).items()}

  def load(self, split: str) -> ImageSet:
    """Opens a split; the first call decodes the images of all splits.

    So a bad test image is found before training and not after it. The copies do
    not depend on the splits, which change with the seed.

    Raises:
      InputError: some images cannot be read, and the error names them; or the
        copies cannot be written, or would be larger than the images.
    """
    classes = self._classes(split)
    if not classes:
      raise InputError(f"{self.root!r} has no classes for split {split!r}")
    every = sorted(
      path
      for split_classes in self._listing().values()
      for paths in split_classes.values()
      for path in paths
    )
    keys = {path: os.path.relpath(path, self.root) for path in every}
    cache = pixel_cache.load(
      self._copies_folder(),
      lambda: (pixel_cache.ImageFile(str(p), keys[p]) for p in every),
      count=len(every),
      side=self.side,
      made_from=_fingerprint(keys),
      name=f"the images in {self.root}",
      data_set="folder",
    )
    row_of = {key: row for row, key in enumerate(cache.keys)}
    paths = [path for each in classes.values() for path in each]
    rows = np.array([row_of[keys[path]] for path in paths])
    fields = {
      "labels": np.repeat(
        np.arange(len(classes), dtype=np.int32),
        [len(each) for each in classes.values()],
      ),
      "class_names": tuple(classes),
      "keys": tuple(keys[path] for path in paths),
      "sizes": cache.sizes[rows],
    }
    if cache.pixels is None:  # no copies are stored
      return EncodedImages(files=Paths(tuple(map(str, paths))), **fields)
    return CachedImages(images=cache.pixels.only(rows), **fields)

  def _copies_folder(self) -> pathlib.Path:
    root = pathlib.Path(self.root).resolve()
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    side = pixel_cache.side_name(self.side)
    return pathlib.Path(self.directory, "stored", "folder", name, side)


def _fingerprint(keys: dict[pathlib.Path, str]) -> str:
  """Returns a hash of the names, sizes and times of a folder's images."""
  digest = hashlib.sha256()
  for path, key in keys.items():
    try:
      stat = path.stat()
      line = f"{key}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
    except OSError:  # a broken link, which decoding reports
      line = f"{key}\0\n"
    digest.update(os.fsencode(line))
  return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Paths:
  """Image files; `image_set.Files`.

  Attributes:
    paths: path of the image of each row.
  """

  paths: tuple[str, ...]

  def read(self, rows: Sequence[int]) -> list[str]:
    """Returns the path of each row."""
    return [self.paths[row] for row in rows]
