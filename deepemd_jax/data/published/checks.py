"""Checks that a source contains the published data set."""

import collections

from deepemd_jax.data.published import catalogue
from deepemd_jax.errors import InputError

_LISTED = 5  # classes that an error names


class BadImages(InputError):
  """Some images of a published data set cannot be read.

  Attributes:
    lines: one line for each bad image, with its key and the reason.
  """

  def __init__(self, lines: list[str], total: int):
    super().__init__(
      f"{len(lines)} of {total} images cannot be read; repair them, or leave "
      "them out with --skip-bad"
    )
    self.lines = lines


def compare_size(benchmark: catalogue.Benchmark, example: dict) -> None:
  """Checks the size of an image if all images of its data set have one size.

  Args:
    benchmark: the data set; its `native` or `squares` is that size, if any.
    example: the "key", "height" and "width" of the image.

  Raises:
    InputError: the size differs.
  """
  side = benchmark.native or benchmark.squares
  height, width = example["height"], example["width"]
  if side and (height, width) != (side, side):
    raise InputError(
      f"image {example['key']!r} has {width} x {height} pixels, but all of "
      f"{benchmark.name}:{side} have {side} x {side}; use the originals"
    )


def compare_counts(
  benchmark: catalogue.Benchmark,
  written: collections.Counter,
  skipped: collections.Counter,
) -> None:
  """Compares the numbers of images in the classes with the published ones.

  Args:
    benchmark: the data set, which has the published numbers.
    written: number of written images of each class.
    skipped: number of bad images of each class.

  Raises:
    InputError: the numbers differ; the message names the classes.
  """
  counts = written + skipped
  problems = []
  for split in benchmark.splits:
    exact = benchmark.exact(split)
    for name, expected in benchmark.counts(split).items():
      if counts[name] < expected or (exact and counts[name] > expected):
        least = "" if exact else "at least "
        problems.append(
          f"class {name!r} ({split}) has {counts[name]} images, but should "
          f"have {least}{expected}"
        )
    has = sum(counts[name] for name in benchmark.counts(split))
    if not exact and has != benchmark.total(split):
      problems.append(
        f"split {split} has {has} images, but should have "
        f"{benchmark.total(split)}"
      )
  if problems:
    more = len(problems) - _LISTED
    raise InputError(
      f"this is not the published {benchmark.name}: "
      f"{'; '.join(problems[:_LISTED])}{f'; and {more} more' * (more > 0)}; is "
      "the source complete?"
    )
