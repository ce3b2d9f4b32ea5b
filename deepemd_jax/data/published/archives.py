"""The images of a published data set: from its archive, or from a folder."""

import os
import pathlib
from collections.abc import Iterator

from deepemd_jax.data.published import archive_formats, layouts
from deepemd_jax.data.published.catalogue import Benchmark
from deepemd_jax.data.published.layouts import SourceImage
from deepemd_jax.errors import InputError


def read(
  benchmark: Benchmark, source: str | os.PathLike
) -> Iterator[SourceImage]:
  """Returns the images of a data set's classes, in the order of `source`.

  Each image comes once, in one pass.

  Args:
    benchmark: which data set.
    source: its archive, a folder with that archive in it, the folder it was
      unpacked into, or a ready folder (see `layouts`).

  Raises:
    InputError: the source is missing, damaged, or something else; also while
      the images are taken from the iterator.
  """
  path, is_ready_folder = _locate(benchmark, source)
  if is_ready_folder:
    return layouts.read(benchmark, path)
  return archive_formats.FORMATS[benchmark.kind].read(benchmark, path)


def describe(benchmark: Benchmark, source: str | os.PathLike) -> str:
  """Returns what `source` is, in words that hold on any machine."""
  _, is_ready_folder = _locate(benchmark, source)
  words = f"made from {pathlib.Path(source).resolve().name}"
  if is_ready_folder:
    return f"{words}, a ready folder, its images as they were"
  if benchmark.name == "miniimagenet":
    return f"{words}, the 600 images a class that easyfsl lists"
  return words


def _locate(
  benchmark: Benchmark, source: str | os.PathLike
) -> tuple[pathlib.Path, bool]:
  """Finds the archive, or the folder it was unpacked into, or a ready folder.

  Returns:
    The path, and whether it is a ready folder.
  """
  source = pathlib.Path(source)
  if not source.exists():
    raise InputError(f"there is no file or folder {str(source)!r}")
  if not benchmark.archives:
    if not source.is_dir():
      raise InputError(
        f"{benchmark.name} is made from a folder of images, and "
        f"{str(source)!r} is a file; give the folder"
      )
    return source, True
  if not source.is_dir():
    return source, False
  archive = source / benchmark.archives[0].file
  if archive.is_file():
    return archive, False
  unpacked = _unpacked_folder(benchmark, source)
  return (unpacked, False) if unpacked else (source, True)


def _unpacked_folder(
  benchmark: Benchmark, folder: pathlib.Path
) -> pathlib.Path | None:
  """Returns the folder in or below `folder` that holds an unpacked archive."""
  if benchmark.kind == "ilsvrc":
    # One class of each split: else it is one split of a ready folder.
    some = {split: name for name, split in benchmark.split_of().items()}
    for below in (".", "train", "ILSVRC/Data/CLS-LOC/train"):
      if all((folder / below / name).is_dir() for name in some.values()):
        return folder / below
    return None
  kind = archive_formats.FORMATS[benchmark.kind]
  candidates = (folder, folder / kind.folder)
  return next((f for f in candidates if (f / kind.sign).is_file()), None)
