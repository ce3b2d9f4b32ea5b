"""A lock between processes: one of them makes what all of them read."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def locked(path: str | os.PathLike, what: str) -> Iterator[None]:
  """Holds a lock file, so that one process at a time does `what`.

  A process that has to wait says so on stderr. The lock of a killed process is
  free.

  Args:
    path: of the lock file, which is made if it is not there.
    what: the work, as the message calls it.
  """
  with open(path, "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f"another process is at {what}: waiting", file=sys.stderr)
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield
