"""What the commands for a person's own images share.

A mistake is one line and exit code 2; Ctrl-C is one line and 130, at any time;
results are written when all of them are there, whole or not at all.
"""

import argparse
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterable
from typing import NoReturn

from deepemd_jax.errors import InputError
from deepemd_jax.inference import feature_cache


class Parser(argparse.ArgumentParser):
  """Argument parsing whose mistakes are `InputError`s; knows what all commands
  take."""

  def __init__(self, name: str, description: str) -> None:
    """Of `python -m deepemd_jax.NAME`."""
    super().__init__(
      prog=f"python -m deepemd_jax.{name}",
      description=description,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )

  def error(self, message: str) -> NoReturn:
    """Raises instead of exiting."""
    raise InputError(message)

  def add_checkpoint(self) -> None:
    """The flag that says which encoder."""
    self.add_argument(
      "--checkpoint",
      metavar="RUN",
      help="workdir of a training run, or what convert or "
      "export wrote (default runs/quickstart)",
    )

  def add_images(self, which: str) -> None:
    """The flags that say how `which` images are read, encoded and matched."""
    self.add_argument(
      "--skip-bad",
      action="store_true",
      help=f"leave out {which} images that cannot be read, and say so",
    )
    self.add_checkpoint()
    self.add_argument(
      "--variant", help="fcn, grid or sampling (default: the run's own)"
    )
    self.add_argument("--solver", help="of the EMD (default: the run's own)")
    self.add_argument(
      "--cache",
      metavar="DIR",
      default=os.path.join(feature_cache.default_directory(), "encodings"),
      help="where encodings are kept for the next time; may be deleted "
      "(default %(default)s)",
    )
    self.add_argument(
      "--no-cache",
      dest="cache",
      action="store_const",
      const=None,
      help="keep none",
    )


def run(
  parse: Callable[[list[str]], argparse.Namespace],
  work: Callable[[argparse.Namespace], tuple[dict[str, bytes], str]],
  arguments: list[str],
) -> int:
  """Runs a command.

  Args:
    parse: arguments to options; quick.
    work: options to the files to write, by path, and what to print.
    arguments: of the command line.

  Returns:
    The exit code. After 130 a thread may be at work still, which only
    `os._exit` ends at once.
  """
  result: list = []

  def target():
    try:
      result.append(work(options))
    except BaseException as error:
      result.append(error)

  try:
    options = parse(arguments)
    # Not here: this thread would hear of Ctrl-C only after a long computation.
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    while thread.is_alive():
      thread.join(0.1)
    (found,) = result
    if isinstance(found, BaseException):
      raise found
    files, text = found
    _write(files)
    # Names need not be text, nor fit the terminal's alphabet.
    alphabet = sys.stdout.encoding or "utf-8"
    print(
      text.encode(alphabet, "backslashreplace").decode(alphabet), flush=True
    )
  except InputError as error:
    message = " ".join(str(error).split())
    print(f"deepemd_jax: error: {message}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("\ninterrupted; nothing was written", file=sys.stderr)
    return 130
  except BrokenPipeError:  # `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  return 0


def leave(code: int) -> NoReturn:
  """Ends the process; does not wait for what was interrupted."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def check_output(path: str, inputs: Iterable) -> None:
  """Refuses a path that a result cannot go to, before any work.

  Args:
    path: of the result; a file that is there will be replaced.
    inputs: paths that must not be.

  Raises:
    InputError: its folder is missing or not writable, it is no file, or it is
      one of the inputs.
  """
  target = pathlib.Path(path).resolve()
  if target.exists() and not target.is_file():
    raise InputError(f"cannot write {path!r}: there is something, not a file")
  if not target.parent.is_dir():
    raise InputError(f"cannot write {path!r}: there is no such folder")
  if target.exists() and not os.access(target, os.W_OK):
    raise InputError(f"cannot write {path!r}: it is write-protected")
  scratch = _scratch(target, 0)
  try:
    scratch.touch()
    scratch.unlink()
  except OSError as error:
    raise InputError(f"cannot write {path!r}: {error.strerror}") from error
  if target in {pathlib.Path(x).resolve() for x in inputs}:
    raise InputError(f"{path!r} is one of the images; give another name")


def _scratch(target: pathlib.Path, number: int) -> pathlib.Path:
  return target.with_name(f".deepemd_jax.{os.getpid()}.{number}.tmp")


def _write(files: dict[str, bytes]) -> None:
  """Replaces files when all are on the disk, each whole or not at all."""
  # What a link points to, not the link.
  targets = {path: pathlib.Path(path).resolve() for path in files}
  scratch = {p: _scratch(t, k) for k, (p, t) in enumerate(targets.items())}
  try:
    for path, content in files.items():
      scratch[path].write_bytes(content)
    for path, target in targets.items():
      os.replace(scratch[path], target)
  except OSError as error:
    raise InputError(f"cannot write {path!r}: {error.strerror}") from error
  finally:
    for file in scratch.values():
      file.unlink(missing_ok=True)
