"""Reads GroceryStoreDataset for benchmarks, and copies it for `adapt`.

    python -m benchmarks.grocery GroceryStoreDataset DIR [train] [val]

copies the photographs of training classes, or of training and validation
classes, to DIR, one directory per class, as `deepemd_jax adapt` takes them.

A photograph is in one of the folders train, val and test of the checkout, which
come from different shops. The split of a class is that of `deepemd_jax` and
does not depend on these folders. Each class also has a picture from a catalog,
its icon. Pictures with clutter are composed of two photographs.
"""

import argparse
import dataclasses
import pathlib
import shutil
import tempfile

import numpy as np
from PIL import Image, ImageOps

from deepemd_jax.data.published import catalogue
from deepemd_jax.errors import InputError
from deepemd_jax.utils.random_streams import Stream, stream

PARTS = ("train", "val", "test")
# any: support and query are any photographs of a class.
# cross: support and query are from different shops.
# icon: the support is the picture from the catalog.
# half: the query is pasted at half its size on a photograph of another class.
# beside: the query and a photograph of another class are side by side.
PROTOCOLS = ("any", "cross", "icon", "half", "beside")
_SIDE = 448  # side of a composed picture in pixels


@dataclasses.dataclass(frozen=True)
class Class:
  """A class and its pictures.

  Attributes:
    name: its name in the split.
    parts: {folder: photographs}.
    icon: the picture from the catalog.
  """

  name: str
  parts: dict[str, list[pathlib.Path]]
  icon: pathlib.Path

  @property
  def photographs(self) -> list[pathlib.Path]:
    """The photographs of all folders."""
    return [path for paths in self.parts.values() for path in paths]


def classes(folder) -> dict[str, list[Class]]:
  """Returns the classes of each split.

  Args:
    folder: a checkout of the repository, or its folder `dataset`.

  Raises:
    InputError: the folder is not a checkout.
  """
  root = pathlib.Path(folder)
  root = root / "dataset" if (root / "dataset").is_dir() else root
  benchmark = catalogue.BENCHMARKS["grocery"]
  names = benchmark.folders_of()
  found: dict[str, list[Class]] = {split: [] for split in benchmark.splits}
  for name, split in benchmark.split_of().items():
    found[split].append(_class(root, name, names[name]))
  return found


def _class(root: pathlib.Path, name: str, folders: list[str]) -> Class:
  parts = {
    part: [
      path
      for folder in folders
      for path in sorted((root / part / folder).glob("*.jpg"))
    ]
    for part in PARTS
  }
  icons = root / "iconic-images-and-descriptions"
  found = [x for f in folders for x in sorted((icons / f).glob("*_Iconic.jpg"))]
  if not any(parts.values()) or not found:
    raise InputError(
      f"{str(root)!r} has no pictures of {name!r}; give a checkout of "
      "GroceryStoreDataset"
    )
  return Class(name, parts, found[0])


def arrange(
  protocol: str,
  chosen: list[Class],
  foreign: list[Class],
  seed: int,
  composed: int,
):
  """Returns the images of a protocol with their roles.

  Args:
    protocol: one of PROTOCOLS.
    chosen: the classes to use.
    foreign: other classes, whose photographs are the clutter.
    seed: seed of the clutter.
    composed: number of cluttered queries per class.

  Returns:
    The images (paths or pictures); for each class, the rows of its support
    images and of its queries; and int [N], the photograph of each row.
  """
  if protocol == "cross":  # omits classes that a shop does not have
    chosen = [x for x in chosen if x.parts["train"] and x.parts["test"]]
  images: list = []
  origin: list[int] = []

  def add(pictures, photographs=None) -> np.ndarray:
    first = len(images)
    images.extend(pictures)
    rows = np.arange(first, len(images))
    origin.extend(rows if photographs is None else photographs)
    return rows

  support, query = [], []
  for k, own in enumerate(chosen):
    if protocol == "cross":
      support.append(add(own.parts["train"]))
      query.append(add(own.parts["test"]))
      continue
    rows = add(own.photographs)
    if protocol == "icon":
      support.append(add([own.icon]))
      query.append(rows)
      continue
    support.append(rows)
    if protocol == "any":
      query.append(rows)
      continue
    rng = stream(seed, Stream.PICTURES, k)
    picked = np.sort(rng.permutation(rows)[:composed])
    pictures = [compose(protocol, images[i], foreign, rng) for i in picked]
    query.append(add(pictures, picked))
  return images, support, query, np.array(origin)


def compose(protocol: str, path, foreign: list[Class], rng) -> Image.Image:
  """Combines a photograph with one of another class in one picture."""
  others = foreign[rng.integers(len(foreign))].photographs
  other = _square(others[rng.integers(len(others))])
  own = _square(path)
  half = _SIDE // 2
  if protocol == "half":
    place = rng.integers(0, half + 1, 2).tolist()
    other.paste(own.resize((half, half), Image.Resampling.BICUBIC), place)
    return other
  left = int(rng.integers(2)) * half
  middle = own.crop((half // 2, 0, half // 2 + half, _SIDE))
  other.paste(middle, (left, 0))
  return other


def _square(path) -> Image.Image:
  with Image.open(path) as image:
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return upright.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def paint(folder: pathlib.Path) -> pathlib.Path:
  """Makes a small checkout of colored noise for `--smoke`; returns `folder`."""
  benchmark = catalogue.BENCHMARKS["grocery"]
  rng = np.random.default_rng(0)
  for name in benchmark.split_of():
    color = rng.integers(0, 256, 3)
    files = [
      *(folder / part / name / f"{i}.jpg" for part in PARTS for i in range(2)),
      folder / "iconic-images-and-descriptions" / name / "x_Iconic.jpg",
    ]
    for path in files:
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = color + rng.integers(-20, 20, (16, 16, 3))
      Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
  return folder


def copy(folder, target, splits) -> None:
  """Copies the photographs of some splits, one directory per class."""
  of_split = classes(folder)
  for own in (x for split in splits for x in of_split[split]):
    directory = pathlib.Path(target, own.name.replace("/", " "))
    directory.mkdir(parents=True)
    for part, paths in own.parts.items():
      for path in paths:  # files in two folders may have the same name
        name = f"{part} {path.parent.name} {path.name}"
        shutil.copyfile(path, directory / name)


def main() -> None:
  """Copies the photographs that the command line selects."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", nargs="?", help="GroceryStoreDataset")
  parser.add_argument("target", nargs="?", help="the folder to make")
  parser.add_argument("splits", nargs="*", metavar="train|val")
  parser.add_argument("--smoke", action="store_true")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    if options.smoke:
      root = pathlib.Path(directory)
      options.folder, options.target = paint(root / "made"), root / "copied"
    elif options.target is None:
      parser.error("give the folder of GroceryStoreDataset, and one to make")
    copy(options.folder, options.target, options.splits or ["train"])
    classes_made = sorted(pathlib.Path(options.target).iterdir())
    print(f"{options.target}: {len(classes_made)} classes")


if __name__ == "__main__":
  main()
