"""Several processes, on one machine or many, that work on one run.

They start together and end together. JAX alone does not see to the second: a
process that stops, hangs or fails leaves its peers waiting, for minutes or for
ever. So each has a `watch.Watch`. A run of one process has nothing of this.

JAX is imported where it is used: whether this process is the first is asked by
commands that do without it.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import time
import traceback
import zlib
from typing import NoReturn

from deepemd_jax.distributed.watchdog import EVERY, FAREWELL, Watch
from deepemd_jax.errors import LOST, STOPPED, InputError, StopRequested

_WAITING = 20.0  # seconds without all processes, and a person hears of it
_MEETING = 290.0  # seconds in all; JAX gives up after 300, by an abort
_VERDICT = 45.0  # seconds to find out who is to blame for an error

_index, _count = 0, 1
_watch: Watch | None = None
_turns = 0
_signal = 0


def is_main() -> bool:
  """Whether this is process 0, which alone writes logs, results and figures."""
  return _index == 0


def is_distributed() -> bool:
  """Whether the run has more than one process."""
  return _count > 1


def is_launched(environment=os.environ) -> bool:
  """Whether a launcher says that it has started several processes: srun,
  mpirun, or GKE for a TPU slice."""
  counts = [environment.get("SLURM_STEP_NUM_TASKS", "")]
  counts += [environment.get("OMPI_COMM_WORLD_SIZE", "")]
  hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
  return "," in hosts or any(c.isdecimal() and int(c) > 1 for c in counts)


def initialize(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
) -> None:
  """Connects the processes; before anything computes. If some do not come,
  this one ends; they have minutes, since those of a pod start unevenly.

  Args:
    coordinator: host:port of process 0; None lets JAX ask SLURM, Open MPI,
      Kubernetes or the Cloud TPU. `count` and `index` likewise.
    count: of processes.
    index: of this one.

  Raises:
    InputError: nobody can tell, or they do not find each other.
  """
  global _index, _count
  import jax

  met = threading.Event()
  threading.Thread(target=_wait_for, args=(met,), daemon=True).start()
  try:
    jax.distributed.initialize(coordinator, count, index)
  except (ValueError, RuntimeError) as error:
    raise InputError(
      f"the processes cannot be connected: {str(error).splitlines()[0]}; use "
      "--distributed=off for one process, or give --coordinator, "
      "--num_processes and --process_id"
    ) from error
  finally:
    met.set()
  _index, _count = jax.process_index(), jax.process_count()
  if _count > 1:
    signal.signal(signal.SIGINT, _stop_all)


def _wait_for(met: threading.Event) -> None:
  """Tells that others are missing, and then ends this process."""
  began = time.monotonic()
  if met.wait(_WAITING):
    return
  sys.stderr.write(
    f"deepemd_jax: waiting for the other processes, {_MEETING:.0f} s at most\n"
  )
  sys.stderr.flush()
  if met.wait(began + _MEETING - time.monotonic()):
    return
  sys.stderr.write(
    f"deepemd_jax: not all processes have come within {_MEETING:.0f} s, and "
    "this one ends; look at what the others say; the same command goes on\n"
  )
  end(LOST)


def _stop_all(number, frame) -> None:
  """Ctrl-C acts as TERM, of which XLA's handler tells all processes; a second
  one acts as usual."""
  del number, frame
  signal.signal(signal.SIGINT, signal.default_int_handler)
  os.kill(os.getpid(), signal.SIGTERM)


def check_same(text: str) -> None:
  """Refuses a run whose processes were not started alike.

  Args:
    text: what they must agree on.

  Raises:
    InputError: in all of them; it names those that differ from process 0.
  """
  if not is_distributed():
    return
  import numpy as np
  from jax.experimental import multihost_utils

  own = np.uint32(zlib.crc32(text.encode()))
  found = np.asarray(multihost_utils.process_allgather(own)).ravel()
  others = [str(i) for i, x in enumerate(found) if x != found[0]]
  if others:
    raise InputError(
      f"process {', '.join(others)} of {_count} was started with another "
      "config than process 0; give all of them the same flags"
    )


def start_watchdog(workdir: pathlib.Path) -> None:
  """Begins to give, and to look for, signs of life; all processes together."""
  global _watch
  if not is_distributed():
    return
  import numpy as np
  from jax.experimental import multihost_utils

  token = int(multihost_utils.broadcast_one_to_all(np.int32(time.time() % 1e9)))
  folder = workdir / ".processes"
  if is_main():
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
  place = folder / str(token)
  place.mkdir(parents=True, exist_ok=True)
  _watch = Watch(place, _index, _count, end)
  barrier("watch")


def barrier(name: str) -> None:
  """Returns when all processes are here."""
  if is_distributed():
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def mark_progress() -> None:
  """To be called by all processes when they have what they need for the next
  computation of all, which may wait for those that have not yet: one that does
  not come as far for long is stuck."""
  if _watch:
    _watch.turns += 1


def should_stop() -> bool:
  """To be called by all processes at the same points of their work, once a
  step. Whether a signal to any of them asks all to stop here."""
  global _turns
  if not is_distributed():
    return bool(_signal)
  from jax.experimental import multihost_utils

  mark_progress()
  _turns += 1
  return bool(multihost_utils.reached_preemption_sync_point(_turns))


def raise_if_stopping(name: str) -> None:
  """`should_stop`, for work that has nothing to save.

  Raises:
    StopRequested: a signal asked to stop.
  """
  if should_stop():
    raise StopRequested(f"{name} stopped; the same command goes on")


def abort(error: BaseException) -> NoReturn:
  """Ends this process, of several, because of an error that nothing handles.

  If it comes from a peer's end it is that one that is named. JAX's own way out
  would wait for peers which wait for this one.
  """
  import jax

  line = f"{type(error).__name__}: {error}".splitlines()[0]
  theirs = isinstance(error, jax.errors.JaxRuntimeError)
  # Of a computation that could not begin, XLA's error comes as another type.
  theirs = theirs or bool(re.match("[A-Z_]+: ", str(error)))
  if theirs and not _watch:
    sys.stderr.write(
      f"deepemd_jax: another process has ended before the first step ({line}); "
      "this one ends too; the same command goes on\n"
    )
    end(LOST)
  if theirs:
    _watch.look()
    if _watch.say(f"{line}\nlooking for a process that has ended ...\n"):
      _watch.ended.wait(_VERDICT)
  if _watch and _watch.ended.is_set():
    time.sleep(2 * FAREWELL)  # the watching thread is ending this process
  traceback.print_exception(error)
  end(1, line)


def shutdown(code: int) -> NoReturn:
  """Ends this process, of several, with the others: after the same work, or for
  a mistake that all have found alike."""
  import jax

  if code in (0, STOPPED):
    jax.distributed.shutdown()  # waits for all
  elif is_main() and not _watch:
    time.sleep(EVERY)  # nothing says yet when the others have ended; see `end`
  end(code)


def end(code: int, why: str = "") -> NoReturn:
  """Ends this process, of several, at once; the others hear of it. Process 0
  lets them end first: without it JAX ends them in its own way, by a signal."""
  if _watch:
    _watch.stop(code, why)
    if is_main() and code not in (0, STOPPED):
      _watch.outlast()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


@contextlib.contextmanager
def stop_on_signal():
  """(to be replaced at the merge)"""
  global _signal
  _signal, before = 0, {}

  def note(number, frame):
    global _signal
    _signal = number
    signal.signal(number, before[number])

  if not is_distributed():
    for number in (signal.SIGTERM, signal.SIGINT):
      before[number] = signal.signal(number, note)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    _signal = 0
