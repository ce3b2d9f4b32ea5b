"""Makes the process return large pieces of memory to the system when freed."""

import ctypes

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_LARGE = 2**20  # bytes


def return_large_pieces() -> None:
  """Sets a fixed threshold for large pieces in the whole process.

  Otherwise glibc raises its threshold up to 32 MiB and keeps the pixels of
  freed images in a store for each thread. A few large images then hold
  gigabytes. Other C libraries do not do this and have no such setting.
  """
  try:
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
  except (OSError, TypeError, AttributeError):
    pass
