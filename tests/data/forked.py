"""Processes without their start-up time, for tests that need a real one.

A server imports once what is preloaded, and forks for each call.
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

# `crashes` has the functions, and imports nearly all that they need.
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
    """Waits; returns (exit code, what it printed, what it wrote to stderr)."""
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
  """As `start`, and waits for it."""
  return start(function, *arguments).communicate()


def _call(folder, function, arguments):
  """Ends the process with 0, what it raises as SystemExit, 130 or 1."""
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
