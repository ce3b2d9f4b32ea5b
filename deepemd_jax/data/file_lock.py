"""A lock between processes, so that one process makes a file that all read."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from deepemd_jax.utils.terminal import note


@contextlib.contextmanager
def locked(path: str | os.PathLike, what: str) -> Iterator[None]:
  """Holds a lock file, so that one process at a time does `what`.

  A process that has to wait prints a message to stderr. If the process that
  holds the lock is killed, the lock becomes free.

  Args:
    path: path of the lock file, which is created if necessary.
    what: the name of the work in the message.
  """
  with open(path, "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      note(f"another process is working on {what}; waiting")
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield
