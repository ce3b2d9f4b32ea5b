"""Work ahead: make the next batches while the device is busy with this one."""

from collections.abc import Callable, Iterator
from typing import Any


def prefetch(
  make: Callable[[int], Any],
  start: int,
  stop: int,
  *,
  threads: int = 2,
  buffer: int = 4,
) -> Iterator[Any]:
  """Yields make(start), ..., make(stop - 1) in order, computed in threads.

  Args:
    make: a pure function of the index. An exception in it comes out here.
    start: first index.
    stop: one past the last.
    threads: that run `make`.
    buffer: results kept ready at most.
  """
  import grain

  if stop <= start:
    return
  data = grain.MapDataset.range(start, stop).map(lambda i: make(int(i)))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
  yield from data.to_iter_dataset(options)
