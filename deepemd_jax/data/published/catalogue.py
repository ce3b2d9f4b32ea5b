"""The published data sets: what each is called, holds and is made from.

A name may say which copies are meant, `cub:84`: the side in pixels of the
squares that images are stored as. It decides which pixels random crops see, so
it is part of the protocol's name, which every result carries.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable

from deepemd_jax.data.published import splits
from deepemd_jax.errors import InputError

ORIGINAL = 0  # the side that stands for images as they are


@dataclasses.dataclass(frozen=True)
class Archive:
  """A file that a data set is made from.

  Attributes:
    file: what it is called.
    url: where it comes from.
    size: in bytes, about where there is no sha256; 0 if small.
    sha256: of its content, if known; else "".
    open: whether it may be fetched from `url` by http, without an account.
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
    name: in configs and on the command line.
    title: what it is, in one line: part of every result.
    splits: their names.
    side: of the stored copies, in pixels, unless a name says otherwise;
      `ORIGINAL` keeps the images as they are.
    native: side of every original, where all are squares of one size; else 0.
    version: of the recipe that makes it.
    kind: of the archive, see `archives.read`.
    archives: the files it is made from.
    lists: the published classes and numbers of images, as `splits.load`.
    boxed: whether images are cropped to the bounding boxes in the archive.
    layouts: of ready folders that hold the same images, see `layouts.LAYOUTS`.
  """

  name: str
  title: str
  splits: tuple[str, ...]
  side: int
  native: int
  version: str
  kind: str
  archives: tuple[Archive, ...]
  lists: Callable[[], dict]
  boxed: bool = False
  layouts: tuple[str, ...] = ()

  def counts(self, split: str) -> dict[str, int]:
    """Images by class, as published; at least so many unless `exact`.

    Raises:
      InputError: there is no such split.
    """
    rows = self._rows(split)
    return {
      name: row.get("images", row.get("images_at_least"))
      for name, row in rows.items()
    }

  def exact(self, split: str) -> bool:
    """Whether `counts` are the numbers of images, not lower bounds."""
    return all("images" in row for row in self._rows(split).values())

  def total(self, split: str) -> int:
    """Images of a split, as published."""
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

  def split_of(self) -> dict[str, str]:
    """{class name: its split}, of all classes in the order of their labels."""
    return {name: split for split in self.splits for name in self.counts(split)}


_FEW_SHOT = ("train", "val", "test")
_RETRIEVAL = ("train", "test")
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


def _benchmark(name, title, side, kind, archives, **more) -> Benchmark:
  lists = functools.partial(splits.load, more.pop("listed", name))
  settings = {"splits": _FEW_SHOT, "native": 0, "version": "1.0.0"} | more
  return Benchmark(
    name,
    title,
    side=side,
    kind=kind,
    archives=archives,
    lists=lists,
    **settings,
  )


BENCHMARKS = {
  benchmark.name: benchmark
  for benchmark in (
    _benchmark(
      "cub",
      "CUB-200-2011 cropped to its bounding boxes, FEAT's and DeepEMD's "
      "100/50/50 classes",
      *(160, "cub", (_CUB,)),
      boxed=True,
      layouts=_FOLDERS,
    ),
    _benchmark(
      "cub_full",
      "CUB-200-2011, whole images, FEAT's and DeepEMD's 100/50/50 classes",
      *(160, "cub", (_CUB,)),
      listed="cub",
      layouts=("lists",),
    ),
    _benchmark(
      "fc100",
      "FC100 (Oreshkin et al. 2018) from CIFAR-100, train and test pooled",
      *(32, "cifar", (_CIFAR,)),
      native=32,
      layouts=_FOLDERS,
    ),
    _benchmark(
      "cifar_fs",
      "CIFAR-FS (Bertinetto et al. 2019) from CIFAR-100, train and test pooled",
      *(32, "cifar", (_CIFAR,)),
      native=32,
      layouts=_FOLDERS,
    ),
    _benchmark(
      "miniimagenet",
      "miniImageNet, Ravi & Larochelle's 64/16/20 classes of ILSVRC-2012, 600 "
      "images each",
      *(160, "ilsvrc", (_ILSVRC,)),
      layouts=(*_FOLDERS, "lists"),
    ),
    _benchmark(
      "tieredimagenet",
      "tieredImageNet (Ren et al. 2018): all images of its classes in "
      "ILSVRC-2012",
      *(ORIGINAL, "ilsvrc", (_ILSVRC,)),
      layouts=(*_FOLDERS, "lists"),
    ),
    _benchmark(
      "cub_retrieval",
      "CUB-200-2011, whole images, first 100 classes train, last 100 test",
      *(160, "cub", (_CUB,)),
      splits=_RETRIEVAL,
    ),
    _benchmark(
      "cars196",
      "Cars196, whole images, classes 1 to 98 train, 99 to 196 test",
      *(160, "cars", _CARS),
      splits=_RETRIEVAL,
    ),
    _benchmark(
      "stanford_online_products",
      "Stanford Online Products, whole images, Ebay_train and Ebay_test",
      *(160, "products", (_PRODUCTS,)),
      splits=_RETRIEVAL,
    ),
  )
}


def parse(name: str) -> tuple[Benchmark, int]:
  """`cub:84` to the benchmark and the side of its stored copies, in pixels.

  Raises:
    InputError: there is no such data set, or its copies cannot be so.
  """
  plain, colon, suffix = name.partition(":")
  if plain not in BENCHMARKS:
    near = difflib.get_close_matches(plain, BENCHMARKS, 2)
    hint = (
      f"did you mean {' or '.join(near)}?"
      if near
      else f"there are {', '.join(BENCHMARKS)}"
    )
    raise InputError(f"no data set {plain!r}; {hint}")
  benchmark = BENCHMARKS[plain]
  if not colon:
    return benchmark, benchmark.side
  if suffix == "original":
    return benchmark, benchmark.native or ORIGINAL
  number = suffix.isascii() and suffix.isdecimal() and suffix[0] != "0"
  if not number or not 16 <= int(suffix) <= 1024:
    raise InputError(
      f"data set {name!r}: {suffix!r} is no size of stored copies; use "
      f"{plain}:original or a side of 16 to 1024 pixels, such as {plain}:84"
    )
  if benchmark.native and int(suffix) != benchmark.native:
    raise InputError(
      f"data set {name!r}: its images are {benchmark.native} pixels wide, and "
      f"are stored as they are; use {plain}"
    )
  return benchmark, int(suffix)


HELD_OUT = "every tenth training class held out for validation"


def part(benchmark: Benchmark, split: str) -> tuple[str, Callable[[int], bool]]:
  """The published split that `split` is, or is a part of, and which classes of
  it, by number, are in there.

  Where no validation classes were published, as in retrieval, every tenth
  training class is one: training leaves it out, and settings and checkpoints
  are chosen on it, not on the test classes.
  """
  if "val" in benchmark.splits or split not in ("train", "val"):
    return split, lambda number: True
  return "train", lambda number: (number % 10 == 9) == (split == "val")


def protocol(benchmark: Benchmark, side: int) -> str:
  """The full name, with the size of the stored copies: "cub:160"."""
  return f"{benchmark.name}:{side if side != ORIGINAL else 'original'}"


def folder_name(benchmark: Benchmark) -> str:
  """The name that TFDS knows it by: some have builders there that differ."""
  return f"deepemd_{benchmark.name}"
