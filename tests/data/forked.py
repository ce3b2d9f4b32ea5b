"""Starts processes fast, for tests that need a real process.

A server imports the preloaded modules once, and forks for each call.
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import sys
import tempfile
import traceback
from multiprocessing import forkserver

# `crashes` has the functions. It imports nearly all modules that they need.
PRELOADED = ["crashes", "deepemd_jax.data.published.tfds_builder"]


@functools.cache
def _context():
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(PRELOADED)
  before = os.environ.get("PYTHONPATH")
  os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
  try:
    forkserver.ensure_running()
  finally:
    del os.environ["PYTHONPATH"]
    if before is not None:
      os.environ["PYTHONPATH"] = before
  return context


@dataclasses.dataclass
class Forked:
  """A process that runs a function."""

  process: multiprocessing.Process
  folder: tempfile.TemporaryDirectory

  def communicate(self):
    """Waits for the end; returns (exit code, stdout, stderr)."""
    self.process.join(60)
    assert self.process.exitcode is not None, "it does not end"
    texts = [
      pathlib.Path(self.folder.name, name).read_text()
      for name in ("stdout", "stderr")
    ]
    self.folder.cleanup()
    return self.process.exitcode, *texts


def start(function, *arguments):
  """Calls a function of a preloaded module in a new process."""
  folder = tempfile.TemporaryDirectory()
  call = (folder.name, function, arguments)
  process = _context().Process(target=_call, args=call)
  process.start()
  return Forked(process, folder)


def run(function, *arguments):
  """Calls a function like `start`, and waits for its process."""
  return start(function, *arguments).communicate()


def _call(folder, function, arguments):
  """Calls a function, and ends the process with an exit code.

  The code is 0, or 1 after SystemExit, 130 after Ctrl-C, 70 after other errors.
  """
  for number, name in ((1, "stdout"), (2, "stderr")):
    file = os.open(pathlib.Path(folder, name), os.O_WRONLY | os.O_CREAT)
    os.dup2(file, number)
  with contextlib.ExitStack() as stack:
    out = stack.enter_context(open(1, "w", closefd=False))
    errors = stack.enter_context(open(2, "w", closefd=False))
    stack.enter_context(contextlib.redirect_stdout(out))
    stack.enter_context(contextlib.redirect_stderr(errors))
    code = 0
    try:
      function(*arguments)
    except SystemExit as error:
      print(error, file=errors)
      code = 1
    except KeyboardInterrupt:
      code = 130
    except BaseException:
      traceback.print_exc(file=errors)
      code = 70
  os._exit(code)
