"""A lock between processes: one of them makes what all of them read."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from deepemd_jax.utils.terminal import note


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
      note(f"another process is at {what}: waiting")
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield
