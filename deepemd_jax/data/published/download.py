"""Downloads of archives that may be fetched by anybody, with checksums."""

import concurrent.futures
import contextlib
import fcntl
import logging
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterator

from deepemd_jax.data.published import catalogue
from deepemd_jax.errors import InputError


class FetchError(InputError):
  """An archive cannot be fetched, or is not the one that it should be."""


def folder(directory: str) -> pathlib.Path:
  """Where archives are fetched to, and looked for."""
  return pathlib.Path(directory) / "downloads" / "deepemd_jax"


def manual(directory: str) -> pathlib.Path:
  """Where TFDS looks for files that a person has put there."""
  return pathlib.Path(directory) / "downloads" / "manual"


def fetch(
  archive: catalogue.Archive,
  directory: str,
  progress: Callable[[int, int], None],
) -> pathlib.Path:
  """The archive's path on this machine, downloaded if it is not there yet.

  One put into the `manual` folder is taken, once its checksum is right.

  Args:
    archive: an open one.
    directory: of prepared TFDS data sets.
    progress: called with the number of bytes fetched and of all.

  Raises:
    FetchError: it cannot be fetched, or the checksum is another.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import downloader

  # Ten, each waiting twice as long, would be minutes without a word.
  downloader.MAX_RETRIES = 3
  place = folder(directory)
  place.mkdir(parents=True, exist_ok=True)
  urls = {
    archive.url: tfds.download.checksums.UrlInfo(
      size=archive.size, checksum=archive.sha256, filename=archive.file
    )
  }
  with locked(place / ".lock", f"the download of {archive.file}"):
    for ruin in place.glob("*.tmp.*"):  # of a killed process
      shutil.rmtree(ruin)
    manager = tfds.download.DownloadManager(
      download_dir=place,
      extract_dir=place,
      manual_dir=manual(directory),
      url_infos=urls,
    )
    try:
      with _watched(place, archive.size, progress), quiet():
        return pathlib.Path(manager.download(archive.url))
    except tfds.download.download_manager.NonMatchingChecksumError as error:
      put = manual(directory) / archive.file
      remedy = f"remove {put}" if put.exists() else "try again"
      raise FetchError(
        f"{archive.file} from {archive.url} has the wrong size or checksum; "
        f"{remedy}"
      ) from error
    except Exception as error:  # requests, urllib3 and TFDS have their own
      raise FetchError(
        f"cannot fetch {archive.url} ({_reason(error)})"
      ) from error
    finally:
      for ruin in place.glob("*.tmp.*"):
        shutil.rmtree(ruin, ignore_errors=True)


def _reason(error: Exception) -> str:
  """Why a download has failed, in a few words."""
  import requests

  if isinstance(error, requests.exceptions.ConnectionError):
    return "no connection to that host"
  return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """TFDS draws bars of its own, and urllib3 warns of each try that failed."""
  import tensorflow_datasets as tfds

  warnings_of = logging.getLogger("urllib3")
  level = warnings_of.level
  warnings_of.setLevel(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    yield
  finally:
    tfds.enable_progress_bar()
    warnings_of.setLevel(level)


@contextlib.contextmanager
def _watched(place: pathlib.Path, total: int, progress) -> Iterator[None]:
  """Calls `progress` now and then with the size of what has arrived: TFDS tells
  nobody but its own bars."""
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


@contextlib.contextmanager
def locked(path: pathlib.Path, what: str) -> Iterator[None]:
  """Holds a lock file, so that one process at a time does `what`; says on
  stderr when it has to wait. The lock of a killed process is free."""
  with open(path, "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f"another process is at {what}: waiting", file=sys.stderr)
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield
