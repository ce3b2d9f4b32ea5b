"""Work ahead: make the next batches while the device is busy with this one."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
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
) -> Iterator[Any]:
  """Yields make(start), ..., make(stop - 1) in order, computed ahead.

  What comes out is a function of the index alone: not of the number of threads
  or processes, and not of where a run was interrupted. Close it when leaving
  early: that ends the processes.

  Args:
    make: a pure function of the index. An exception in it comes out here. With
      workers it must be picklable, and its results trees of NumPy arrays.
    start: first index.
    stop: one past the last.
    threads: that run `make` when there are no workers.
    workers: processes that run `make` instead; each takes seconds to start.
    buffer: results kept ready at most; a worker keeps one or two of its own.
    shard: (i, n): only the indices that leave rest i when divided by n, which
      host i of n makes.
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

  Threads, one a core, are a few items ahead: of however many there are, only
  those are held. An exception of `function` comes out here.
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
  """`make` of a Python integer."""

  def __init__(self, make):
    self._make = make

  def __call__(self, index):
    return self._make(int(index))


def _parse_flags() -> None:
  """Grain asks absl's flags for its settings when it starts processes; where no
  program has parsed them, their defaults will do."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def _begin_worker(index: int, count: int) -> None:
  """A worker ends with its parent, whatever ends that, and not before: Ctrl-C
  reaches all processes of a terminal, but the parent wants to finish a step."""
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)
