"""Downloads the archives that need no account, and checks their checksums."""

import concurrent.futures
import contextlib
import logging
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator

from deepemd_jax.data.file_lock import locked
from deepemd_jax.data.published import catalogue
from deepemd_jax.errors import InputError


class FetchError(InputError):
  """An archive cannot be downloaded, or its content is wrong."""


def download_folder(directory: str) -> pathlib.Path:
  """Returns the folder that archives are downloaded to."""
  return pathlib.Path(directory) / "downloads" / "deepemd_jax"


def manual_folder(directory: str) -> pathlib.Path:
  """Returns the folder in which TFDS expects the user's own downloads."""
  return pathlib.Path(directory) / "downloads" / "manual"


def fetch(
  archive: catalogue.Archive,
  directory: str,
  progress: Callable[[int, int], None],
) -> pathlib.Path:
  """Downloads an archive, unless it exists already, and returns its path.

  If the manual folder has the file with the right checksum, that file is used
  instead.

  Args:
    archive: an archive that may be downloaded (`open`).
    directory: the TFDS folder of prepared data sets.
    progress: called with the number of bytes downloaded, and the total.

  Raises:
    FetchError: the archive cannot be downloaded, or its checksum is wrong.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import downloader

  # By default TFDS tries ten times and doubles its waiting time after each try.
  # That would be minutes without a message.
  downloader.MAX_RETRIES = 3
  place = download_folder(directory)
  place.mkdir(parents=True, exist_ok=True)
  urls = {
    archive.url: tfds.download.checksums.UrlInfo(
      size=archive.size, checksum=archive.sha256, filename=archive.file
    )
  }
  with locked(place / ".lock", f"the download of {archive.file}"):
    _remove_partial_downloads(place)  # a killed process left them
    manager = tfds.download.DownloadManager(
      download_dir=place,
      extract_dir=place,
      manual_dir=manual_folder(directory),
      url_infos=urls,
    )
    try:
      with _report_arrivals(place, archive.size, progress), silence_tfds():
        return pathlib.Path(manager.download(archive.url))
    except tfds.download.download_manager.NonMatchingChecksumError as error:
      put = manual_folder(directory) / archive.file
      remedy = f"remove {put}" if put.exists() else "try again"
      raise FetchError(
        f"{archive.file} from {archive.url} has the wrong size or checksum; "
        f"{remedy}"
      ) from error
    except Exception as error:  # errors of requests, urllib3 and TFDS
      raise FetchError(
        f"cannot fetch {archive.url} ({_reason(error)})"
      ) from error
    finally:
      _remove_partial_downloads(place)


def _remove_partial_downloads(place: pathlib.Path) -> None:
  for partial in place.glob("*.tmp.*"):
    shutil.rmtree(partial, ignore_errors=True)


def _reason(error: Exception) -> str:
  """Returns why a download failed, in a few words."""
  import requests

  if isinstance(error, requests.exceptions.ConnectionError):
    return "no connection to that host"
  return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def silence_tfds() -> Iterator[None]:
  """Hides the progress bars of TFDS and the retry warnings of urllib3."""
  import tensorflow_datasets as tfds

  urllib3_log = logging.getLogger("urllib3")
  level = urllib3_log.level
  urllib3_log.setLevel(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    yield
  finally:
    tfds.enable_progress_bar()
    urllib3_log.setLevel(level)


@contextlib.contextmanager
def _report_arrivals(
  place: pathlib.Path, total: int, progress: Callable[[int, int], None]
) -> Iterator[None]:
  """Calls `progress` twice a second with the number of bytes downloaded.

  TFDS reports this number only to its own progress bars, so a thread looks at
  the files.
  """
  done = threading.Event()

  def watch():
    while not done.wait(0.5):
      with contextlib.suppress(OSError):
        arrived = sum(p.stat().st_size for p in place.glob("*.tmp.*/*"))
        if arrived:
          progress(arrived, max(total, arrived))

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pool.submit(watch)
    try:
      yield
    finally:
      done.set()
