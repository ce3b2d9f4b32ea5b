"""Prepares the published data sets, each either completely or not at all.

Only functions that need TFDS import it, so `is_ready` and `missing` are fast.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable

from deepemd_jax.data.file_lock import locked
from deepemd_jax.data.published import catalogue, download
from deepemd_jax.errors import InputError, MissingData
from deepemd_jax.utils.terminal import human_size, note

COMMAND = "python -m deepemd_jax data"  # for messages


def make_builder(benchmark: catalogue.Benchmark, directory: str, **settings):
  """Returns the TFDS builder of a data set, which need not be prepared.

  Args:
    benchmark: the data set.
    directory: the TFDS folder of prepared data sets.
    **settings: further arguments of the builder; `prepare` passes `work`.

  Returns:
    A builder whose examples have "image" (the bytes of an upright RGB JPEG or
    PNG, if decoding is skipped), "label" (numbered over the classes of all
    splits), "key" (a unique text), "height" and "width" in pixels. Its
    `info.metadata` has "source", "skipped" ([[key, reason], ...]) and "counts"
    ({split: {class: number of images}}).
  """
  from deepemd_jax.data.published import tfds_builder

  builder = tfds_builder.builder_class(benchmark)
  return builder(data_dir=directory, file_format="array_record", **settings)


def prepared_folder(
  benchmark: catalogue.Benchmark, directory: str
) -> pathlib.Path:
  """Returns the path of a data set's folder, which need not exist."""
  name = catalogue.folder_name(benchmark)
  return pathlib.Path(directory) / name / benchmark.version


def is_ready(benchmark: catalogue.Benchmark, directory: str) -> bool:
  """Returns whether a data set is prepared, without opening its records."""
  folder = prepared_folder(benchmark, directory)
  files = ("dataset_info.json", "features.json", "metadata.json")
  return all((folder / name).is_file() for name in files)


def ready(
  benchmark: catalogue.Benchmark, directory: str
) -> list[catalogue.Benchmark]:
  """Returns the prepared forms of a data set.

  The form made from the originals comes first. The forms made from ready
  squares follow, in ascending order of their side.
  """
  prefix = f"{catalogue.folder_name(benchmark)}_"
  suffixes = (
    path.name.removeprefix(prefix)
    for path in pathlib.Path(directory).glob(f"{prefix}[0-9]*")
  )
  sides = sorted(int(text) for text in suffixes if text.isdecimal())
  forms = [dataclasses.replace(benchmark, squares=side) for side in sides]
  return [form for form in (benchmark, *forms) if is_ready(form, directory)]


def find(
  benchmark: catalogue.Benchmark, side: int, directory: str
) -> catalogue.Benchmark:
  """Returns the prepared form of a data set that suits the copies to be made.

  Args:
    benchmark: the data set.
    side: side of the copies in pixels, or `catalogue.ORIGINAL`.
    directory: the TFDS folder of prepared data sets.

  Returns:
    The first of these forms that is ready: the one from squares of exactly this
    side, the one from the originals, and the one from the smallest larger
    squares. For `ORIGINAL` they are the one from the originals and the one from
    the largest squares. If none is ready, `benchmark` itself.
  """
  forms = {form.squares: form for form in ready(benchmark, directory)}
  order = [side, 0, *(squares for squares in forms if squares > side)]
  if side == catalogue.ORIGINAL:
    order = [0, *sorted(forms, reverse=True)]
  return next((forms[x] for x in order if x in forms), benchmark)


def metadata(benchmark: catalogue.Benchmark, directory: str) -> dict:
  """Reads `info.metadata` of a prepared data set, without loading TFDS.

  `make_builder` describes its content.

  Raises:
    InputError: the file is damaged.
  """
  folder = prepared_folder(benchmark, directory)
  try:
    return json.loads((folder / "metadata.json").read_text("utf-8"))
  except (OSError, ValueError) as error:
    raise _damaged(folder) from error


def _damaged(folder: pathlib.Path) -> InputError:
  return InputError(
    f"the data set in {folder} is damaged; delete that folder, and prepare the "
    "data set again"
  )


def missing(
  benchmark: catalogue.Benchmark,
  directory: str,
  reason: str = "",
  side: int | None = None,
) -> MissingData:
  """Returns the error that says how to get a data set, in at most eight lines.

  Args:
    benchmark: the data set.
    directory: the TFDS folder of prepared data sets.
    reason: a sentence that says what failed; "" says that the data set is not
      prepared.
    side: side of the copies in pixels; None means the default side.
  """
  name = benchmark.name
  if side is not None and side != benchmark.side:
    name = catalogue.protocol(benchmark, side)
  command = f"{COMMAND} prepare {name}"
  if directory != default_directory():
    command += f" --directory {directory}"
  lines = [reason or f"data set {name} is not prepared in {directory}"]
  if smaller := ready(benchmark, directory):
    there = catalogue.protocol(benchmark, smaller[-1].squares)
    lines[0] += f"; only smaller squares of it are ready: {there}"
  if not benchmark.archives:
    lines.append(f"  needed: a folder of its images ({benchmark.title})")
    lines.append(f"  then run: {command} --from FOLDER")
    return MissingData(lines)
  for archive in benchmark.archives:
    size = f" ({human_size(archive.size)})" if archive.size else ""
    lines.append(f"  needed: {archive.file}{size} from {archive.url}")
  if benchmark.mirrored:
    lines.append(f"  if it is not available, mirrors have {benchmark.mirrored}")
  lines.append(f"  put into: {download.manual_folder(directory)}")
  if _may_download(benchmark):
    lines[-1] += " (otherwise it is downloaded)"
  lines.append(f"  then run: {command}")
  other = "or unpacked" + ", or a ready folder" * bool(benchmark.layouts)
  lines.append(f"  if it is elsewhere, {other}: add --from PATH")
  return MissingData(lines)


def _may_download(benchmark: catalogue.Benchmark) -> bool:
  archives = benchmark.archives
  return bool(archives) and all(archive.open for archive in archives)


def prepare(
  benchmark: catalogue.Benchmark,
  directory: str,
  *,
  source: str | os.PathLike | None = None,
  skip_bad: bool = False,
  progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
  """Prepares a data set, unless it is ready.

  The data set's folder appears in `directory` only when it is complete. If a
  process is killed on the way, the next one removes its unfinished files.

  Args:
    benchmark: the data set.
    directory: the TFDS folder of prepared data sets.
    source: an archive or a folder, as for `archives.read`. None takes the
      archive from the folder for manual downloads, or downloads it if this
      needs no account.
    skip_bad: whether to omit unreadable images and list them in the metadata.
    progress: called with the unit ("bytes" or "images"), the number done, and
      the total.

  Raises:
    MissingData: the archive is missing and cannot be downloaded.
    BadImages: some images cannot be read; the error names them all.
    InputError: the source is not the published data set, or the directory
      cannot be written to.
  """
  if is_ready(benchmark, directory):
    return
  folder = prepared_folder(benchmark, directory)
  if folder.exists():
    raise _damaged(folder)
  if source is None:
    source = _find_archive(benchmark, directory, progress)
  from deepemd_jax.data.published import tfds_builder

  work = tfds_builder.Work(source, skip_bad, progress)
  try:
    builder = make_builder(benchmark, directory, work=work)
  except OSError as error:  # TFDS creates a temporary folder even here
    raise _unwritable(pathlib.Path(directory), error) from error
  prepare_once(builder)


def _find_archive(benchmark, directory, progress) -> pathlib.Path:
  """Returns the path of the archive, downloaded if this needs no account."""
  if not benchmark.archives:
    raise missing(benchmark, directory)
  first = benchmark.archives[0]
  if _may_download(benchmark):
    try:
      return download.fetch(
        first, directory, lambda done, total: progress("bytes", done, total)
      )
    except download.FetchError as error:
      raise missing(benchmark, directory, str(error)) from error
    except OSError as error:
      raise _unwritable(pathlib.Path(directory), error) from error
  path = download.manual_folder(directory) / first.file
  if path.is_file():
    return path
  raise missing(benchmark, directory)


def prepare_once(builder) -> None:
  """Calls a TFDS builder to prepare its data set, in one process at a time.

  TFDS writes into a folder whose name begins with "incomplete" and renames it
  at the end, so a data set that exists is complete. The function removes the
  unfinished folders of killed processes. A lock ensures that no other process
  is writing.

  Raises:
    InputError: the data set's folder cannot be written to.
  """
  final = pathlib.Path(builder.data_path)
  if final.exists():
    return
  try:
    final.parent.mkdir(parents=True, exist_ok=True)
    config = builder.builder_config
    name = f"{builder.name}/{config.name}" if config else builder.name
    with locked(final.parent / ".lock", name):
      for unfinished in final.parent.glob(f"incomplete.*_{final.name}"):
        shutil.rmtree(unfinished)
      if not final.exists():
        note(f"preparing {name} in {final}")
        with download.silence_tfds(), contextlib.redirect_stdout(io.StringIO()):
          builder.download_and_prepare()
  except OSError as error:
    raise _unwritable(final, error) from error


def _unwritable(path: pathlib.Path, error: OSError) -> InputError:
  return InputError(
    f"cannot prepare data in {path}: {error.strerror or error}; choose another "
    f"place (--config.data.directory, or --directory of {COMMAND})"
  )


def default_directory() -> str:
  """Returns the folder in which TensorFlow Datasets keeps its data sets."""
  home = os.path.join("~", "tensorflow_datasets")
  return os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or home)
