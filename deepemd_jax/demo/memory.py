"""Has large pieces of memory go back to the system when they are freed."""

import ctypes

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_LARGE = 2**20  # bytes


def return_large_pieces() -> None:
  """Sets this for the whole process.

  Otherwise glibc raises what it takes for large up to 32 MiB, and keeps the
  pixels of a freed image for later, in a store for each thread: gigabytes after
  a few large images. Other C libraries do not, and have no such setting.
  """
  try:
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
  except (OSError, TypeError, AttributeError):
    pass
