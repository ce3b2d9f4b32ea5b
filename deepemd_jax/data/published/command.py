"""The command `data`, which lists and prepares the published data sets."""

import argparse
import dataclasses
import os
import pathlib
import textwrap

from deepemd_jax.data import registry
from deepemd_jax.data.published import catalogue, prepare
from deepemd_jax.errors import InputError
from deepemd_jax.utils.progress import Progress
from deepemd_jax.utils.terminal import human_size, printable

HELP = "list the data sets, and prepare the published ones"
DESCRIPTION = "Lists the data sets, and prepares the published ones for use."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the subcommands `list` and `prepare`."""
  commands = parser.add_subparsers(
    dest="data_command", metavar="list|prepare", required=True
  )
  listing = commands.add_parser(
    "list", help="list all data sets, and show which are ready"
  )
  preparing = commands.add_parser("prepare", help="prepare a data set")
  preparing.add_argument(
    "name",
    help="name of the data set; cub:84 also makes copies of its images that "
    "are 84 pixels wide, not of the usual width",
  )
  preparing.add_argument(
    "--from",
    dest="source",
    metavar="PATH",
    help="the archive, the folder it was unpacked into, or a ready folder",
  )
  preparing.add_argument(
    "--skip-bad",
    action="store_true",
    help="leave out images that cannot be read, and list them",
  )
  for command in (listing, preparing):
    command.add_argument(
      "--directory",
      default=prepare.default_directory(),
      help="folder of the prepared data sets (default %(default)s)",
    )


def run(options: argparse.Namespace) -> str:
  """Runs the command and returns the text to print.

  Raises:
    MissingData: the data set is missing and cannot be downloaded.
    BadImages: some images cannot be read; its `lines` name them.
    InputError: the user has to change something else.
  """
  directory = os.path.abspath(os.path.expanduser(options.directory))
  if options.data_command == "list":
    return table(directory)
  if options.name == "glyph_clutter":
    return _prepare_glyphs(options, directory)
  return _prepare(options, directory)


def table(directory: str) -> str:
  """Returns a table of all data sets: their contents and which are ready."""
  rows = [("name", "classes", "images", "state", "on disk")]
  for benchmark in catalogue.BENCHMARKS.values():
    forms = prepare.ready(benchmark, directory)
    forms = [benchmark, *(form for form in forms if form.squares)]
    rows += [_row(form, directory) for form in forms]
  rows.append(("glyph_clutter", "47/16/31", "made on first use", "-", "-"))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    for row in rows
  ]
  lines += ["classes and images: train/val/test, or train/test", ""]
  for name, entry in registry.DATA_SETS.items():
    line = f"  {name}: {entry.title}"
    lines += textwrap.wrap(line, 98, subsequent_indent="    ")
  return "\n".join(line.rstrip() for line in lines)


def _row(benchmark: catalogue.Benchmark, directory: str) -> tuple[str, ...]:
  """Returns the cells of one line of the table."""
  classes = [len(benchmark.counts(split)) for split in benchmark.splits]
  images = [benchmark.total(split) for split in benchmark.splits]
  state, size = "not prepared", "-"
  if prepare.is_ready(benchmark, directory):
    metadata = prepare.metadata(benchmark, directory)
    images = [sum(metadata["counts"][s].values()) for s in benchmark.splits]
    state = "ready"
    if metadata["skipped"]:
      state += f", {len(metadata['skipped'])} bad images left out"
    folders = (
      prepare.prepared_folder(benchmark, directory),
      pathlib.Path(directory, "stored", benchmark.folder),
    )
    size = human_size(sum(map(_bytes_in_folder, folders)))
  return (
    catalogue.protocol(benchmark, benchmark.squares or benchmark.side),
    "/".join(map(str, classes)),
    "/".join(f"{count:,}" for count in images),
    state,
    size,
  )


def _bytes_in_folder(folder: pathlib.Path) -> int:
  return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _prepare(options: argparse.Namespace, directory: str) -> str:
  """Prepares a published data set and its copies; returns the text to print."""
  from deepemd_jax.data import published_source

  benchmark, side = catalogue.parse(options.name)
  if options.source:
    form = _form_of(benchmark, side, options.source)
    if prepare.is_ready(form, directory):
      raise InputError(
        f"{benchmark.name} is ready in "
        f"{prepare.prepared_folder(form, directory)}; delete that folder to "
        "prepare it from another source"
      )
  else:
    form = prepare.find(benchmark, side, directory)
  with Progress() as progress:
    prepare.prepare(
      form,
      directory,
      source=options.source,
      skip_bad=options.skip_bad,
      progress=progress,
    )
  source = published_source.PublishedSource(
    catalogue.protocol(benchmark, side), directory
  )
  for split in benchmark.splits:
    source.load(split)
  form = prepare.find(benchmark, side, directory)
  metadata = prepare.metadata(form, directory)
  lines = [
    f"left out {printable(key)}: {printable(reason)}"
    for key, reason in metadata["skipped"]
  ]
  folder = prepare.prepared_folder(form, directory)
  lines += [metadata["source"], f"{source.protocol} is ready in {folder}"]
  return "\n".join(lines)


def _form_of(
  benchmark: catalogue.Benchmark, side: int, source: str
) -> catalogue.Benchmark:
  """Returns the form of a data set that a source contains.

  The forms are the originals and the ready squares; see `prepare.find`.

  Raises:
    InputError: the source contains squares that are smaller than the copies.
  """
  from deepemd_jax.data.published import archives  # loads NumPy

  squares = archives.side_of_squares(benchmark, source)
  if 0 < squares < side:
    raise InputError(
      f"the images in {source!r} are {squares} pixels wide, and copies of "
      f"{side} would enlarge them; prepare "
      f"{catalogue.name_of_side(benchmark.name, squares)}"
    )
  return dataclasses.replace(benchmark, squares=squares)


def _prepare_glyphs(options: argparse.Namespace, directory: str) -> str:
  from deepemd_jax.data import glyph_source

  if options.source or options.skip_bad:
    raise InputError("glyph_clutter has no source: give only its name")
  glyph_source.GlyphClutterSource(directory).load("val")
  return f"glyph_clutter is ready in {directory}"
