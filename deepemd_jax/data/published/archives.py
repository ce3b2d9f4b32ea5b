"""Reads the images of a published data set from its archive or a folder."""

import os
import pathlib
from collections.abc import Callable, Iterator

from deepemd_jax.data import image_io, links
from deepemd_jax.data.published import archive_formats, authenticity, layouts
from deepemd_jax.data.published.archive_members import report_damage
from deepemd_jax.data.published.catalogue import Benchmark
from deepemd_jax.data.published.layouts import SourceImage
from deepemd_jax.errors import InputError


def read(
  benchmark: Benchmark, source: str | os.PathLike
) -> Iterator[SourceImage]:
  """Returns an iterator of a data set's images, in the order of `source`.

  One pass over the source yields each image once.

  Args:
    benchmark: the data set.
    source: its archive, a folder that contains the archive, the folder that the
      archive was unpacked into, or a ready folder (see `layouts`).

  Raises:
    InputError: the source is missing, damaged, or not the data set, or a link
      in it leads out of it. The iterator may raise it, too.
  """
  path, is_ready_folder = _locate(benchmark, source)
  if is_ready_folder:
    images = layouts.read(benchmark, path)
  else:
    images = archive_formats.FORMATS[benchmark.kind].read(benchmark, path)
  return _without_links_outside(images, os.path.realpath(source))


def _without_links_outside(images, inside: str) -> Iterator[SourceImage]:
  for image in images:
    if isinstance(image.content, pathlib.Path):
      links.refuse_outside(image.content, inside)
    yield image


def side_of_squares(benchmark: Benchmark, source: str | os.PathLike) -> int:
  """Returns the side in pixels of ready squares, or 0.

  Ready squares are copies of the images that somebody has resized. The function
  reads the header of each file up to the first image that is not such a square.

  Args:
    benchmark: the data set.
    source: an archive or folder, as for `read`.

  Returns:
    The side, if `source` is a folder whose images are squares of one size, and
    the original images are not such squares themselves; otherwise 0.

  Raises:
    InputError: `read` cannot read the source.
  """
  path, _ = _locate(benchmark, source)
  if benchmark.native or not path.is_dir():
    return 0
  sides = set()
  for image in read(benchmark, source):
    size = _stated_size(image)
    if size is not None:
      sides.update(size)
    if len(sides) > 1 or image.box:
      return 0
  return max(sides, default=0)


def _stated_size(image: SourceImage) -> tuple[int, int] | None:
  """Returns the width and height that a file states, or None if it is bad."""
  try:
    # pyrefly: ignore[bad-argument-type]: other types raise an error as well
    with image_io.open_image(image.content) as opened:
      return opened.size
  except Exception:  # decoders raise errors of many types; reported later
    return None


def describe(
  benchmark: Benchmark,
  source: str | os.PathLike,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
  """Describes `source` in words that do not depend on the machine.

  If the source is an archive, the function reads the whole file to check
  whether it is the official one.

  Args:
    benchmark: the data set.
    source: an archive or folder, as for `read`.
    progress: called with the number of bytes read, and the total.

  Raises:
    InputError: the source is missing or not the data set.
  """
  path, is_ready_folder = _locate(benchmark, source)
  if path.is_dir():
    words = f"made from {os.path.basename(os.path.realpath(source))}"
    if is_ready_folder:
      words += ", a ready folder, its images unchanged"
    elif archive_formats.is_mirrored(path):
      words += ", a mirror's folders"
    else:
      words += ", an unpacked archive"
    if benchmark.squares:
      words += f", squares of {benchmark.squares} pixels"
    if is_ready_folder:
      return words
  else:
    words = f"made from {os.path.basename(os.path.realpath(path))}"
    with report_damage(path):
      how = authenticity.compare(benchmark.archives[0], path, progress)
    words += f" ({how})"
  if benchmark.name == "miniimagenet":
    return f"{words}, the 600 images per class that easyfsl lists"
  return words


def _locate(
  benchmark: Benchmark, source: str | os.PathLike
) -> tuple[pathlib.Path, bool]:
  """Finds the archive, the unpacked archive or the ready folder in `source`.

  Returns:
    The path, and whether it is a ready folder.
  """
  source = pathlib.Path(source)
  if not os.path.exists(source):
    raise InputError(f"there is no file or folder {str(source)!r}")
  if not benchmark.archives:
    if not source.is_dir():
      raise InputError(
        f"{benchmark.name} is made from a folder of images, but "
        f"{str(source)!r} is a file; give the folder"
      )
    return source, True
  if not source.is_dir():
    if not source.is_file():
      raise InputError(
        f"{str(source)!r} is not a regular file; give the archive or a folder"
      )
    return source, False
  archive = source / benchmark.archives[0].file
  found = archive if archive.is_file() else _unpacked_folder(benchmark, source)
  if found is None:
    return source, True
  links.refuse_outside(found, os.path.realpath(source))
  return found, False


def _has_ilsvrc_names(folder: pathlib.Path) -> bool:
  """Returns whether the images of a class folder have the archive's names.

  The images in copies of miniImageNet have other names.
  """
  return folder.is_dir() and any(
    name.startswith(f"{folder.name}_") for name in layouts.list_folder(folder)
  )


def _unpacked_folder(
  benchmark: Benchmark, folder: pathlib.Path
) -> pathlib.Path | None:
  """Returns the folder of an unpacked archive in `folder`, or None."""
  if benchmark.kind == "ilsvrc":
    # The folder must have a class of each split. A folder with only one split
    # is part of a ready folder.
    some = {split: name for name, split in benchmark.split_of().items()}
    for below in (".", "train", "ILSVRC/Data/CLS-LOC/train"):
      if all(_has_ilsvrc_names(folder / below / x) for x in some.values()):
        return folder / below
    return None
  kind = archive_formats.FORMATS[benchmark.kind]
  candidates = (folder, folder / kind.folder)
  return next(
    (f for f in candidates for sign in kind.signs if (f / sign).exists()), None
  )
