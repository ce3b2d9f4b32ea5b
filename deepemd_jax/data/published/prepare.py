"""Preparing the published data sets: whole or not at all.

TFDS is imported where it is needed: `is_ready` and `missing` answer at once.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import sys
import warnings
from collections.abc import Callable

from deepemd_jax.data.published import catalogue, download
from deepemd_jax.errors import InputError, MissingData


def make(benchmark: catalogue.Benchmark, directory: str, **how):
  """The TFDS builder of a data set, prepared or not.

  Args:
    benchmark: which.
    directory: of prepared TFDS data sets.
    **how: further arguments of the builder; `prepare` gives `work`.

  Returns:
    A builder whose examples have "image" (the bytes of an upright RGB JPEG or
    PNG, if decoding is skipped), "label" (over the classes of all splits),
    "key" (text, unique), "height" and "width" in pixels. Its `info.metadata`
    has "source", "skipped" ([[key, reason], ...]) and "counts"
    ({split: {class: images}}).
  """
  from deepemd_jax.data.published import tfds_builder

  builder = tfds_builder.builder_class(benchmark)
  return builder(data_dir=directory, file_format="array_record", **how)


def place(benchmark: catalogue.Benchmark, directory: str) -> pathlib.Path:
  """The folder of a prepared data set."""
  name = catalogue.folder_name(benchmark)
  return pathlib.Path(directory) / name / benchmark.version


def is_ready(benchmark: catalogue.Benchmark, directory: str) -> bool:
  """Whether a data set is prepared, whole; opens none of its records."""
  folder = place(benchmark, directory)
  files = ("dataset_info.json", "features.json", "metadata.json")
  return all((folder / name).is_file() for name in files)


def metadata(benchmark: catalogue.Benchmark, directory: str) -> dict:
  """`info.metadata` of a prepared data set, see `make`, without TFDS.

  Raises:
    InputError: somebody has changed it.
  """
  folder = place(benchmark, directory)
  try:
    return json.loads((folder / "metadata.json").read_text("utf-8"))
  except (OSError, ValueError) as error:
    raise _damaged(folder) from error


def _damaged(folder: pathlib.Path) -> InputError:
  return InputError(
    f"the data set in {folder} is damaged; delete that folder, and prepare it "
    "again"
  )


def missing(
  benchmark: catalogue.Benchmark, directory: str, reason: str = ""
) -> MissingData:
  """The error that tells how to get a data set, in at most eight lines.

  Args:
    benchmark: which.
    directory: of prepared TFDS data sets.
    reason: what has failed, in a sentence; "" says that it is not prepared.
  """
  name = benchmark.name
  command = f"python -m deepemd_jax.data prepare {name}"
  if directory != default_directory():
    command += f" --directory {directory}"
  lines = [reason or f"data set {name} is not prepared in {directory}"]
  for archive in benchmark.archives:
    size = f" ({human_size(archive.size)})" if archive.size else ""
    lines.append(f"  needed: {archive.file}{size} from {archive.url}")
  lines.append(f"  put into: {download.manual(directory)}")
  if all(archive.open for archive in benchmark.archives):
    lines[-1] += " (or it is downloaded)"
  lines.append(f"  then run: {command}")
  other = "or unpacked" + ", or as a ready folder" * bool(benchmark.layouts)
  lines.append(f"  it may lie elsewhere, {other}: add --from PATH")
  return MissingData(lines)


def prepare(
  benchmark: catalogue.Benchmark,
  directory: str,
  *,
  source: str | os.PathLike | None = None,
  skip_bad: bool = False,
  progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
  """Prepares a data set, unless it is ready.

  It appears in `directory` in one piece: whatever happens on the way, there is
  nothing that could be taken for it, and what a killed process left behind is
  removed by the next one.

  Args:
    benchmark: which.
    directory: of prepared TFDS data sets.
    source: an archive or a folder, see `archives.read`; None looks for the
      archive in the folder for manual downloads, and fetches it if it may.
    skip_bad: leave unreadable images out, and note them in the metadata.
    progress: called with what is counted ("bytes" or "images"), the number done
      and of all.

  Raises:
    MissingData: the archive is not there and cannot be fetched.
    BadImages: some images cannot be read; it names them all.
    InputError: the source is not the published data set, or the directory
      cannot be written to.
  """
  if is_ready(benchmark, directory):
    return
  if place(benchmark, directory).exists():
    raise _damaged(place(benchmark, directory))
  if source is None:
    source = _source(benchmark, directory, progress)
  from deepemd_jax.data.published import tfds_builder

  work = tfds_builder.Work(
    source, skip_bad, lambda done, total: progress("images", done, total)
  )
  try:
    builder = make(benchmark, directory, work=work)
  except OSError as error:  # TFDS wants a temporary folder even for this
    raise _unwritable(pathlib.Path(directory), error) from error
  with warnings.catch_warnings():
    # Of Pillow, about oddities in files that it reads nevertheless.
    warnings.filterwarnings("ignore", module="PIL")
    once(builder)


def _source(benchmark, directory, progress) -> pathlib.Path:
  """Where the archive is found, or fetched to."""
  first = benchmark.archives[0]
  put = download.manual(directory) / first.file
  if all(archive.open for archive in benchmark.archives):
    try:
      return download.fetch(
        first, directory, lambda done, total: progress("bytes", done, total)
      )
    except download.FetchError as error:
      raise missing(benchmark, directory, str(error)) from error
    except OSError as error:
      raise _unwritable(pathlib.Path(directory), error) from error
  if put.is_file():
    return put
  raise missing(benchmark, directory)


def once(builder) -> None:
  """TFDS preparation by one process at a time; leaves no ruins.

  TFDS writes into a directory called incomplete and renames it at the end, so
  what is there is whole. What a killed process left is removed: under the lock
  nobody else is writing.

  Raises:
    InputError: the data set's folder cannot be written.
  """
  final = pathlib.Path(builder.data_path)
  if final.exists():
    return
  try:
    final.parent.mkdir(parents=True, exist_ok=True)
    config = builder.builder_config
    name = f"{builder.name}/{config.name}" if config else builder.name
    with download.locked(final.parent / ".lock", name):
      for ruin in final.parent.glob(f"incomplete.*_{final.name}"):
        shutil.rmtree(ruin)
      if not final.exists():
        print(f"preparing {name} in {final}", file=sys.stderr, flush=True)
        with download.quiet(), contextlib.redirect_stdout(io.StringIO()):
          builder.download_and_prepare()
  except OSError as error:
    raise _unwritable(final, error) from error


def _unwritable(path: pathlib.Path, error: OSError) -> InputError:
  return InputError(
    f"cannot prepare data in {path}: {error.strerror or error}; choose another "
    "place (--config.data.directory, or --directory of python -m "
    "deepemd_jax.data)"
  )


def default_directory() -> str:
  """Where TensorFlow Datasets keeps its data sets on this machine."""
  home = os.path.join("~", "tensorflow_datasets")
  return os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or home)


def human_size(count: int) -> str:
  """1150585339 to "1.2 GB"."""
  for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= size:
      return f"{count / size:.1f} {unit}"
  return f"{count} B"
