"""Makes the next batches while the device is busy with the current one."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any


def prefetch(
  make: Callable[[int], Any],
  start: int,
  stop: int,
  *,
  threads: int = 2,
  workers: int = 0,
  buffer: int = 4,
  shard: tuple[int, int] = (0, 1),
) -> Generator[Any, None, None]:
  """Yields make(start), ..., make(stop - 1) in order, computed ahead.

  The results depend only on the index. They depend neither on the number of
  threads or processes nor on the point at which a run was interrupted. If you
  stop early, close the iterator to end the processes.

  Args:
    make: a pure function of the index. The iterator raises its exceptions. With
      workers, it must be picklable, and its results must be trees of NumPy
      arrays.
    start: the first index.
    stop: one past the last index.
    threads: how many threads run `make` if there are no workers.
    workers: how many processes run `make` instead; each takes seconds to start.
    buffer: the largest number of results that are kept ready in threads; a
      worker keeps one or two of its own.
    shard: (i, n) for host i of n hosts: only the indices that leave the
      remainder i when divided by n are used.
  """
  import grain

  index, count = shard
  mine = range(start + (index - start) % count, stop, count)
  if not mine:
    return
  data = grain.MapDataset.range(mine.start, mine.stop, mine.step)
  data = data.map(_OfIndex(make))
  if workers:
    _parse_flags()
    data = data.to_iter_dataset(grain.ReadOptions(0, 0)).mp_prefetch(
      grain.MultiprocessingOptions(min(workers, len(mine))),
      worker_init_fn=_begin_worker,
    )
  else:
    data = data.to_iter_dataset(grain.ReadOptions(threads, buffer))
  with contextlib.closing(iter(data)) as results:
    yield from results


def in_order(
  function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[tuple[Any, Any]]:
  """Yields (item, function(item)) in the order of the items.

  One thread per core works a few items ahead, and only those items are held in
  memory. The iterator raises the exceptions of `function`.
  """
  threads = os.cpu_count() or 1
  window = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for item in items:
      window.append((item, pool.submit(function, item)))
      if len(window) > 4 * threads:
        item, future = window.popleft()
        yield item, future.result()
    for item, future in window:
      yield item, future.result()


class _OfIndex:
  """Calls `make` with a Python integer instead of Grain's NumPy integer."""

  def __init__(self, make):
    self._make = make

  def __call__(self, index):
    return self._make(int(index))


def _parse_flags() -> None:
  """Marks the flags of absl as parsed, with their defaults if nobody set them.

  Grain reads these flags when it starts processes.
  """
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def _begin_worker(index: int, count: int) -> None:
  """Makes a worker end when its parent ends, for any reason, and not before.

  The worker ignores the Ctrl-C that reaches all processes of a terminal,
  because the parent finishes its current step.
  """
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  # pyrefly: ignore[missing-attribute]: a worker has a parent
  multiprocessing.parent_process().join()
  os._exit(1)
