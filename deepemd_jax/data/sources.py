"""The sources of images, and the settings that name them.

This module loads neither NumPy, TFDS nor JAX. Each source loads what it needs.
"""

import dataclasses
import os
from typing import TYPE_CHECKING, Protocol

from deepemd_jax.data.published import prepare
from deepemd_jax.data.registry import DATA_SETS, unknown
from deepemd_jax.errors import InputError
from deepemd_jax.utils import registry

if TYPE_CHECKING:
  from deepemd_jax.data.image_set import ImageSet


@dataclasses.dataclass(frozen=True)
class DataSpec:
  """The images of a run: the fields of `config.data`, and two more.

  Attributes:
    name: the name of the data set in `registry.DATA_SETS`; "cub:84" asks for
      copies with a side of 84 pixels instead of the default.
    test_name: the name of another data set to test on; "" tests on the same
      one.
    directory: the TFDS folder of prepared data sets; "" means
      $TFDS_DATA_DIR or ~/tensorflow_datasets.
    folder: the user's image folder, for "folder".
    csv: a CSV that assigns classes or files to splits, for "folder".
    fractions: shares of the classes for train, val and test, for "folder".
    image_size: side in pixels of the input of the network.
    seed: the seed that shuffles the classes of "folder" before they are split.
    workers: number of processes that read batches; 0 reads them in threads.
  """

  name: str
  test_name: str = ""
  directory: str = ""
  folder: str = ""
  csv: str = ""
  fractions: tuple[float, float, float] = (0.64, 0.16, 0.2)
  image_size: int = 84
  seed: int = 0
  workers: int = 0


class Source(Protocol):
  """A data set that can be opened.

  Attributes:
    protocol: its full name, such as "cub:160", which is part of every result.
    title: a description in one line, which is part of every result.
  """

  protocol: str
  title: str

  def check(self) -> None:
    """Raises MissingData if the images have to be downloaded first."""

  def counts(self, split: str) -> dict[str, int]:
    """Returns {class: number of images} without preparing or decoding any.

    So episodes that need too many images are refused at once.
    """

  def load(self, split: str) -> "ImageSet":
    """Opens a split, and prepares the data set and its copies on first use."""


def open_source(
  spec: DataSpec, *, variant: str = "default", split: str = ""
) -> Source:
  """Returns the source that `spec` names, without reading any images.

  Args:
    spec: the settings of the images.
    variant: "default", or one of the data set's variants, which have only a
      test split.
    split: the name of the split; "test" selects `spec.test_name` if that is not
      "".

  Raises:
    InputError: there is no such data set, or it has no such variant.
  """
  name = spec.name
  if split == "test" and spec.test_name:
    name = spec.test_name
  entry = DATA_SETS.get(name.partition(":")[0])
  if entry is None:
    raise unknown(name)
  if variant != "default" and not entry.variants:
    raise InputError(
      f"data set {name!r} has no variant {variant!r}; set "
      "config.evaluate.variants to ()"
    )
  directory = os.path.expanduser(spec.directory or prepare.default_directory())
  spec = dataclasses.replace(spec, directory=os.path.abspath(directory))
  return registry.load(entry.source)(spec, name, variant)
