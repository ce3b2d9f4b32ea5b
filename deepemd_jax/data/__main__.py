"""The published data sets on this machine.

python -m deepemd_jax.data list
python -m deepemd_jax.data prepare NAME [--from PATH] [--skip-bad]
"""

import argparse
import os
import pathlib
import sys
import textwrap
from typing import NoReturn

from deepemd_jax.data.published import catalogue, prepare
from deepemd_jax.errors import InputError, MissingData
from deepemd_jax.utils.progress import Progress


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise InputError(message)


def _parse(arguments: list[str]) -> argparse.Namespace:
  parser = _Parser(
    prog="python -m deepemd_jax.data",
    description="Lists the published data sets, and prepares them for use.",
  )
  commands = parser.add_subparsers(dest="command", required=True)
  listing = commands.add_parser(
    "list", help="all data sets, and which is ready"
  )
  making = commands.add_parser("prepare", help="make one ready")
  making.add_argument(
    "name",
    help="of the data set; cub:84 also makes copies of 84 pixels of its images "
    "instead of the usual ones",
  )
  making.add_argument(
    "--from",
    dest="source",
    metavar="PATH",
    help="the archive, the folder it was unpacked into, or a ready folder",
  )
  making.add_argument(
    "--skip-bad",
    action="store_true",
    help="leave out images that cannot be read, and note which",
  )
  for command in (listing, making):
    command.add_argument(
      "--directory",
      default=prepare.default_directory(),
      help="of prepared data sets (default %(default)s)",
    )
  return parser.parse_args(arguments)


def table(directory: str) -> str:
  """All data sets as text: what they hold, and what is there in `directory`."""
  rows = [("name", "classes", "images", "state", "on disk")]
  for benchmark in catalogue.BENCHMARKS.values():
    counts = [benchmark.counts(split) for split in benchmark.splits]
    places = (
      prepare.place(benchmark, directory),
      pathlib.Path(directory, "stored", benchmark.name),
    )
    ready = prepare.is_ready(benchmark, directory)
    state = "ready" if ready else "not prepared"
    totals = [benchmark.total(split) for split in benchmark.splits]
    if ready:
      found = prepare.metadata(benchmark, directory)
      totals = [sum(found["counts"][s].values()) for s in benchmark.splits]
      if found["skipped"]:
        state += f", {len(found['skipped'])} bad left out"
    rows.append(
      (
        catalogue.protocol(benchmark, benchmark.side),
        "/".join(str(len(classes)) for classes in counts),
        "/".join(f"{total:,}" for total in totals),
        state,
        prepare.human_size(sum(map(_size, places))) if ready else "-",
      )
    )
  rows.append(("glyph_clutter", "47/16/31", "made on first use", "-", "-"))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = [
    "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    for row in rows
  ]
  lines += ["classes and images: train/val/test, or train/test", ""]
  titles = {b.name: b.title for b in catalogue.BENCHMARKS.values()}
  titles["glyph_clutter"] = "composed scenes of glyphs, made from fonts"
  for name, title in titles.items():
    line = f"  {name}: {title}"
    lines += textwrap.wrap(line, 98, subsequent_indent="    ")
  return "\n".join(line.rstrip() for line in lines)


def _size(folder: pathlib.Path) -> int:
  return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def make_ready(options: argparse.Namespace) -> None:
  """Makes one data set ready, and its copies of the size that is wanted."""
  from deepemd_jax.data import sources

  if options.name == "glyph_clutter":
    if options.source or options.skip_bad:
      raise InputError("glyph_clutter is made of nothing: give its name alone")
    sources.GlyphClutterSource(options.directory).load("val")
    print(f"glyph_clutter is ready in {options.directory}")
    return
  benchmark, side = catalogue.parse(options.name)
  place = prepare.place(benchmark, options.directory)
  if options.source and prepare.is_ready(benchmark, options.directory):
    raise InputError(
      f"{benchmark.name} is ready in {place}; delete that folder to make it "
      "anew from another source"
    )
  progress = Progress()
  try:
    prepare.prepare(
      benchmark,
      options.directory,
      source=options.source,
      skip_bad=options.skip_bad,
      progress=progress,
    )
  finally:
    progress.close()
  name = catalogue.protocol(benchmark, side)
  for split in benchmark.splits:
    sources.BenchmarkSource(name, options.directory).load(split)
  skipped = prepare.metadata(benchmark, options.directory)["skipped"]
  for key, reason in skipped:
    print(f"left out {key}: {reason}")
  print(f"{name} is ready in {place}")


def main(arguments: list[str]) -> int:
  """Runs a command; returns the exit code: 0, 2 for a mistake, 130."""
  try:
    options = _parse(arguments)
    options.directory = os.path.abspath(os.path.expanduser(options.directory))
    if options.command == "list":
      print(table(options.directory))
    else:
      make_ready(options)
    sys.stdout.flush()
  except MissingData as error:
    return _refuse(*error.lines)
  except InputError as error:
    for line in getattr(error, "lines", ()):  # of BadImages
      print(line, file=sys.stderr)
    return _refuse(" ".join(str(error).split()))
  except KeyboardInterrupt:
    print("interrupted; nothing half-made is left", file=sys.stderr)
    return 130
  except BrokenPipeError:  # `list | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  return 0


def _refuse(*lines: str) -> int:
  print("deepemd_jax: error: " + "\n".join(lines), file=sys.stderr)
  return 2


if __name__ == "__main__":
  code = main(sys.argv[1:])
  sys.stdout.flush()
  sys.stderr.flush()
  # Not sys.exit: it would wait for the thread of an interrupted download.
  os._exit(code)
