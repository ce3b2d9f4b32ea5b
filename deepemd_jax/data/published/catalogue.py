"""The published data sets: their names, contents and archives.

To add a data set that people have as a folder of images, put its class list
into `splits/NAME.json` and one entry into `_ALL`. A data set that is made from
an archive also needs a reader in `archive_formats`.

A name may end in the side of the stored copies in pixels, as in `cub:84`. The
copies are squares. Their side determines the pixels that random crops see, so
it is part of the protocol's name, which every result contains.
"""

import dataclasses
import functools
from collections.abc import Callable

from deepemd_jax.data.published import splits
from deepemd_jax.errors import InputError
from deepemd_jax.utils import registry

ORIGINAL = 0  # the side that stands for the original images
SIDES = (16, 1024)  # the smallest and the largest side of stored copies
_FEW_SHOT = ("train", "val", "test")
_RETRIEVAL = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Archive:
  """A file that a data set is made from.

  Attributes:
    file: its name.
    url: its address.
    size: its size in bytes; rounded if there is no sha256, and 0 if the file is
      small.
    sha256: the SHA-256 of its content, or "" if it is not known.
    open: whether it can be downloaded from `url` over HTTP without an account.
  """

  file: str
  url: str
  size: int = 0
  sha256: str = ""
  open: bool = False


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A published data set with its splits.

  Attributes:
    name: its name in configs and on the command line.
    title: a description in one line, which is part of every result.
    side: the default side of the stored copies in pixels; `ORIGINAL` stores no
      copies.
    kind: the key of the archive's format in `archive_formats.FORMATS`; "" if
      the data set is always a ready folder.
    archives: the files it is made from; () if it is always a ready folder.
    layouts: the layouts of ready folders with the same images; see `layouts`.
    mirrored: what mirrors have instead of the archive; "" without mirrors.
    splits: the names of the splits.
    native: the side in pixels of the original images if all are squares of one
      size, otherwise 0.
    squares: the side in pixels of the ready squares that it is prepared from; 0
      if it is prepared from its originals. See `prepare.find`.
    boxed: whether images are cropped to the bounding boxes in the archive.
    version: the version of the code that prepares it.
    lists: returns the published classes and numbers of images in the form of
      `splits.load`; by default those of `splits/NAME.json`.
  """

  name: str
  title: str
  side: int = 160
  kind: str = ""
  archives: tuple[Archive, ...] = ()
  layouts: tuple[str, ...] = ()
  mirrored: str = ""
  splits: tuple[str, ...] = _FEW_SHOT
  native: int = 0
  squares: int = 0
  boxed: bool = False
  version: str = "1.0.0"
  lists: Callable[[], dict] = dict

  def __post_init__(self):
    if self.lists is dict:
      lists = functools.partial(splits.load, self.name)
      object.__setattr__(self, "lists", lists)

  def counts(self, split: str) -> dict[str, int]:
    """Returns {class: published number of images}, lower bounds unless `exact`.

    Raises:
      InputError: there is no such split.
    """
    rows = self._rows(split)
    return {
      name: row.get("images", row.get("images_at_least"))
      for name, row in rows.items()
    }

  def exact(self, split: str) -> bool:
    """Returns whether `counts` are exact numbers, not lower bounds."""
    return all("images" in row for row in self._rows(split).values())

  def total(self, split: str) -> int:
    """Returns the published number of images in a split."""
    if self.exact(split):
      return sum(self.counts(split).values())
    return self.lists()["totals"][split]

  def _rows(self, split: str) -> dict[str, dict]:
    if split not in self.splits:
      raise InputError(
        f"data set {self.name!r} has no split {split!r}; use one of "
        f"{', '.join(self.splits)}"
      )
    return self.lists()["splits"][split]

  def folders_of(self) -> dict[str, list[str]]:
    """Returns {class name: possible names of its folder}."""
    return {
      name: [name, *row.get("also", ())]
      for split in self.splits
      for name, row in self._rows(split).items()
    }

  def split_of(self) -> dict[str, str]:
    """Returns {class name: split}, in the order of the classes' labels."""
    return {name: split for split in self.splits for name in self.counts(split)}

  @property
  def folder(self) -> str:
    """The name of its folders, which are separate for each side of squares."""
    return f"{self.name}_{self.squares}" if self.squares else self.name


_CUB = Archive(
  "CUB_200_2011.tgz",
  "https://data.caltech.edu/records/65de6-vp158/files/"
  "CUB_200_2011.tgz?download=1",
  1150585339,
  "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
  open=True,
)
_CIFAR = Archive(
  "cifar-100-binary.tar.gz",
  "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
  168513733,
  "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
  open=True,
)
_ILSVRC = Archive(
  "ILSVRC2012_img_train.tar",
  "https://www.image-net.org (free account needed)",
  147897477120,
  "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
)
_PRODUCTS = Archive(
  "Stanford_Online_Products.zip",
  "ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
  3083860082,
  "b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
)
_CARS = (
  Archive(
    "car_ims.tgz",
    "http://ai.stanford.edu/~jkrause/car196/car_ims.tgz",
    1956000000,
  ),
  Archive(
    "cars_annos.mat", "http://ai.stanford.edu/~jkrause/car196/cars_annos.mat"
  ),
)
_FOLDERS = ("tables", "folders")
# Class folders suffice for data sets whose images need no crop.
_UNCROPPED = (*_FOLDERS, "classes")


_ALL = (
  Benchmark(
    "cub",
    "CUB-200-2011 cropped to its bounding boxes, FEAT's and DeepEMD's "
    "100/50/50 classes",
    kind="cub",
    archives=(_CUB,),
    layouts=_FOLDERS,
    boxed=True,
  ),
  Benchmark(
    "cub_full",
    "CUB-200-2011, whole images, FEAT's and DeepEMD's 100/50/50 classes",
    kind="cub",
    archives=(_CUB,),
    layouts=("lists",),
    lists=functools.partial(splits.load, "cub"),
  ),
  Benchmark(
    "fc100",
    "FC100 (Oreshkin et al. 2018) from CIFAR-100, train and test pooled",
    side=32,
    kind="cifar",
    archives=(_CIFAR,),
    layouts=_UNCROPPED,
    native=32,
  ),
  Benchmark(
    "cifar_fs",
    "CIFAR-FS (Bertinetto et al. 2019) from CIFAR-100, train and test pooled",
    side=32,
    kind="cifar",
    archives=(_CIFAR,),
    layouts=_UNCROPPED,
    native=32,
  ),
  Benchmark(
    "miniimagenet",
    "miniImageNet, Ravi & Larochelle's 64/16/20 classes of ILSVRC-2012, 600 "
    "images each",
    kind="ilsvrc",
    archives=(_ILSVRC,),
    layouts=(*_UNCROPPED, "lists"),
  ),
  Benchmark(
    "tieredimagenet",
    "tieredImageNet (Ren et al. 2018): all images of its classes in "
    "ILSVRC-2012",
    side=ORIGINAL,
    kind="ilsvrc",
    archives=(_ILSVRC,),
    layouts=(*_FOLDERS, "lists"),
  ),
  Benchmark(
    "grocery",
    "GroceryStoreDataset (Klasson et al. 2019): photographs in shops, 30/10/41 "
    "classes",
    side=ORIGINAL,
    layouts=("classes",),
  ),
  Benchmark(
    "cub_retrieval",
    "CUB-200-2011, whole images, first 100 classes train, last 100 test",
    kind="cub",
    archives=(_CUB,),
    splits=_RETRIEVAL,
  ),
  Benchmark(
    "cars196",
    "Cars196, whole images, classes 1 to 98 train, 99 to 196 test",
    kind="cars",
    archives=_CARS,
    mirrored="cars_train/, cars_test/, cars_train_annos.mat and "
    "cars_test_annos_withlabels.mat, the tables in devkit/ or beside it",
    splits=_RETRIEVAL,
  ),
  Benchmark(
    "stanford_online_products",
    "Stanford Online Products, whole images, Ebay_train and Ebay_test",
    kind="products",
    archives=(_PRODUCTS,),
    splits=_RETRIEVAL,
  ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}


def stored_side(name: str) -> int | None:
  """Returns the side in pixels at the end of a name, or None without one.

  `cub:84` gives 84, and `cub:original` gives `ORIGINAL`.

  Raises:
    InputError: copies cannot have that size.
  """
  plain, colon, suffix = name.partition(":")
  if not colon:
    return None
  if suffix == "original":
    return ORIGINAL
  number = suffix.isascii() and suffix.isdecimal() and suffix[0] != "0"
  if number and SIDES[0] <= int(suffix) <= SIDES[1]:
    return int(suffix)
  raise InputError(
    f"data set {name!r}: {suffix!r} is not a size of copies; use "
    f"{plain}:original or a side of {SIDES[0]} to {SIDES[1]} pixels, such as "
    f"{plain}:84"
  )


def parse(name: str) -> tuple[Benchmark, int]:
  """Returns the benchmark of a name like `cub:84` and the side of its copies.

  Raises:
    InputError: there is no such data set, or its copies cannot have that size.
  """
  plain = name.partition(":")[0]
  if plain not in BENCHMARKS:
    hint = registry.hint(plain, BENCHMARKS)
    raise InputError(f"no data set {plain!r}; {hint}")
  benchmark, side = BENCHMARKS[plain], stored_side(name)
  if side is None:
    return benchmark, benchmark.side
  if side == ORIGINAL:
    return benchmark, benchmark.native or ORIGINAL
  if benchmark.native and side != benchmark.native:
    raise InputError(
      f"data set {name!r}: its images are {benchmark.native} pixels wide, and "
      f"are stored as they are; use {plain}"
    )
  return benchmark, side


HELD_OUT = "every tenth training class held out for validation"


def published_split(
  benchmark: Benchmark, split: str
) -> tuple[str, Callable[[int], bool]]:
  """Returns the published split that contains `split`, and a class filter.

  Data sets for retrieval have no published validation classes. For them, every
  tenth training class is a validation class: training omits these classes, and
  settings and checkpoints are chosen on them, not on the test classes.

  Returns:
    The name of the published split, and a function that returns whether the
    n-th class of that split belongs to `split`.
  """
  if "val" in benchmark.splits or split not in ("train", "val"):
    return split, lambda number: True
  return "train", lambda number: (number % 10 == 9) == (split == "val")


def protocol(benchmark: Benchmark, side: int) -> str:
  """Returns the name with the side of the stored copies, such as "cub:160"."""
  return f"{benchmark.name}:{side if side != ORIGINAL else 'original'}"


def name_of_side(data_set: str, side: int) -> str:
  """Returns the name of copies with this side, or of the originals.

  The originals are named if copies would be too small for `SIDES`.
  """
  return f"{data_set}:{side if side >= SIDES[0] else 'original'}"


def folder_name(benchmark: Benchmark) -> str:
  """Returns the name in TFDS, which must differ from TFDS's own data sets."""
  return f"deepemd_{benchmark.folder}"
