"""The data sets that a config may name.

This module loads neither NumPy, TFDS nor JAX.
"""

import dataclasses

from deepemd_jax.data.published import catalogue
from deepemd_jax.errors import InputError
from deepemd_jax.utils import registry

# The nodes of an image are cells of its feature map ("fcn"), crops in rows and
# columns ("grid"), or crops at random places ("sampling"). See `views.View`.
NODE_KINDS = ("fcn", "grid", "sampling")


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A data set that a config may name.

  Attributes:
    title: a description in one line.
    source: the path, "module:function", of the function that opens it; see
      `sources.open_source`.
    variants: the names of its further test sets.
  """

  title: str
  source: str
  variants: tuple[str, ...] = ()


DATA_SETS = {
  "glyph_clutter": DataSet(
    "composed scenes of glyphs, made from fonts",
    "deepemd_jax.data.glyph_source:open_glyphs",
    variants=tuple(
      f"d{count}_{background}"
      for background in ("plain", "relief", "busy")
      for count in range(4)
    ),
  ),
  "folder": DataSet(
    "your own images, one folder per class",
    "deepemd_jax.data.folder_source:open_folder",
  ),
} | {
  benchmark.name: DataSet(
    benchmark.title, "deepemd_jax.data.published_source:open_published"
  )
  for benchmark in catalogue.BENCHMARKS.values()
}


def check_name(name: str, image_size: int) -> None:
  """Checks the name of a data set, such as "cub" or "cub:84".

  Args:
    name: the name of the data set, with the side of its stored copies if that
      is not the default side.
    image_size: side in pixels of the input of the network.

  Raises:
    InputError: there is no such data set, or its copies cannot have that size.
  """
  plain, colon, _ = name.partition(":")
  if plain in catalogue.BENCHMARKS:
    catalogue.parse(name)
  elif plain == "folder":
    folder_side(name, image_size)
  elif plain not in DATA_SETS or colon:
    raise unknown(name)


def unknown(name: str) -> InputError:
  """Returns the error about the name of an unknown data set."""
  hint = registry.hint(name.partition(":")[0], DATA_SETS)
  return InputError(f"there is no data set {name!r}; {hint}")


def folder_side(name: str, image_size: int) -> int:
  """Returns the side in pixels of the stored copies of a user's images.

  The default side is 160 if the input of the network has 84 pixels, and
  proportional to the input otherwise. Random crops of such copies differ from
  crops of the originals by less than 2 gray levels on average
  (`benchmarks/data.py`).

  Args:
    name: "folder", "folder:original" or a size, such as "folder:160".
    image_size: side in pixels of the input of the network.

  Returns:
    The side; `catalogue.ORIGINAL` means that no copies are stored.

  Raises:
    InputError: copies cannot have that size.
  """
  side = catalogue.stored_side(name)
  return -(-image_size * 160 // 84) if side is None else side
