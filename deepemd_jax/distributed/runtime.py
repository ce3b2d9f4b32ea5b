"""Processes, on one machine or many, that work on one run.

They start together and end together. JAX does not ensure that they end: when a
process stops, hangs or fails, its peers wait for it, for minutes or forever. So
each process has a watchdog (see `watchdog`). A run of one process has no
watchdog and no overhead.

JAX is imported inside the functions, because `is_main` also serves commands
that never need it.
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
from collections.abc import Iterator
from typing import NoReturn

from deepemd_jax.distributed.watchdog import (
  FAREWELL_SECONDS,
  WRITE_SECONDS,
  Watchdog,
)
from deepemd_jax.errors import LOST, STOPPED, InputError, StopRequested

_PATIENCE_SECONDS = 20.0  # then a message says that processes are missing
_MEETING_SECONDS = 290.0  # then this process ends; JAX would abort it after 300
_VERDICT_SECONDS = 45.0  # to find out which process caused an error

_index, _count = 0, 1
_watchdog: Watchdog | None = None
_stop_checks = 0  # how often this process has called `should_stop`
_signaled = False  # whether TERM or INT came inside `stop_on_signal`


def is_main() -> bool:
  """Tells whether this is process 0, which alone writes logs, results and
  figures."""
  return _index == 0


def is_distributed() -> bool:
  """Tells whether the run has more than one process."""
  return _count > 1


def is_launched(environment=os.environ) -> bool:
  """Tells whether a launcher has started several processes: srun, mpirun, or
  GKE for a TPU slice."""
  counts = [environment.get("SLURM_STEP_NUM_TASKS", "")]
  counts += [environment.get("OMPI_COMM_WORLD_SIZE", "")]
  hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
  return "," in hosts or any(c.isdecimal() and int(c) > 1 for c in counts)


def initialize(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
) -> None:
  """Connects this process to the others. Call it before any computation.

  It waits for minutes, because the machines of a large run start at different
  times. If some processes never come, this one ends with code `LOST`.

  Args:
    coordinator: host:port of process 0; None lets JAX ask SLURM, Open MPI,
      Kubernetes or the Cloud TPU. None does the same for `count` and `index`.
    count: the number of processes.
    index: the number of this process.

  Raises:
    InputError: JAX cannot tell which processes there are, or cannot connect.
  """
  global _index, _count
  import jax

  connected = threading.Event()
  threading.Thread(
    target=_end_unless_connected, args=(connected,), daemon=True
  ).start()
  try:
    jax.distributed.initialize(coordinator, count, index)
  except (ValueError, RuntimeError) as error:
    raise InputError(
      f"the processes cannot be connected: {str(error).splitlines()[0]}; use "
      "--distributed=off for one process, or give --coordinator, "
      "--num_processes and --process_id"
    ) from error
  finally:
    connected.set()
  _index, _count = jax.process_index(), jax.process_count()
  if _count > 1:
    signal.signal(signal.SIGINT, _interrupt_as_terminate)


def _end_unless_connected(connected: threading.Event) -> None:
  """Reports that processes are missing; later ends this process."""
  began = time.monotonic()
  if connected.wait(_PATIENCE_SECONDS):
    return
  limit = f"{_MEETING_SECONDS:.0f} s"
  sys.stderr.write(
    f"deepemd_jax: waiting for the other processes, {limit} at most\n"
  )
  sys.stderr.flush()
  if connected.wait(began + _MEETING_SECONDS - time.monotonic()):
    return
  sys.stderr.write(
    f"deepemd_jax: not all processes have connected within {limit}, so this "
    "one ends; see the messages of the others; the same command continues the "
    "run\n"
  )
  end(LOST)


def _interrupt_as_terminate(number, frame) -> None:
  """Makes Ctrl-C act as TERM, which XLA's own handler passes on to all
  processes. A second Ctrl-C raises KeyboardInterrupt.
  """
  del number, frame
  signal.signal(signal.SIGINT, signal.default_int_handler)
  os.kill(os.getpid(), signal.SIGTERM)


def check_same(text: str) -> None:
  """Raises an error if processes were started with different settings.

  Args:
    text: the settings as text, which must be equal on all processes.

  Raises:
    InputError: some differ from process 0. Every process raises it, and the
      message names them.
  """
  if not is_distributed():
    return
  import numpy as np
  from jax.experimental import multihost_utils

  checksum = np.uint32(zlib.crc32(text.encode()))
  checksums = np.ravel(multihost_utils.process_allgather(checksum))
  others = [str(i) for i, x in enumerate(checksums) if x != checksums[0]]
  if others:
    raise InputError(
      f"process {', '.join(others)} of {_count} was started with another "
      "config than process 0; give all processes the same flags"
    )


def start_watchdog(workdir: pathlib.Path) -> None:
  """Starts this process's watchdog. Call it on all processes together.

  Args:
    workdir: a folder that all processes see, for the signs of life.
  """
  global _watchdog
  if not is_distributed():
    return
  import numpy as np
  from jax.experimental import multihost_utils

  folder = workdir / ".processes"
  if is_main():
    # Remove the signs of an earlier run before the others can write theirs.
    shutil.rmtree(folder, ignore_errors=True)
  token = int(multihost_utils.broadcast_one_to_all(np.int32(time.time() % 1e9)))
  place = folder / str(token)
  place.mkdir(parents=True, exist_ok=True)
  _watchdog = Watchdog(place, _index, _count, end)
  barrier("watch")
  # Every process has given a first sign of life. Once it is read, the end of a
  # process on this machine is noticed at once, and not only after a silence.
  _watchdog.check_peers()


def barrier(name: str) -> None:
  """Waits until all processes have called it."""
  if is_distributed():
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def mark_progress() -> None:
  """Counts a collective. Call it on every process right before each one.

  A process that falls behind is reported as stuck.
  """
  if _watchdog:
    _watchdog.progress += 1


@contextlib.contextmanager
def stop_on_signal() -> Iterator[None]:
  """Makes the first TERM or INT set `should_stop`, not end the process.

  A second signal of the same kind goes to the previous handler.

  With several processes, this context does nothing, because there a signal to
  any process makes `should_stop` true on all, inside and outside of it.
  """
  global _signaled
  before = {}

  def note(number, frame):
    global _signaled
    del frame
    _signaled = True
    signal.signal(number, before[number])

  if not is_distributed():
    for number in (signal.SIGTERM, signal.SIGINT):
      before[number] = signal.signal(number, note)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    _signaled = False


def should_stop() -> bool:
  """Tells whether a signal has asked this run to stop.

  Call it once per step, on all processes at the same points of their work. All
  processes get the same answer at the same point.
  """
  global _stop_checks
  if not is_distributed():
    return _signaled
  from jax.experimental import multihost_utils

  mark_progress()
  _stop_checks += 1
  return bool(multihost_utils.reached_preemption_sync_point(_stop_checks))


def raise_if_stopping(name: str) -> None:
  """Raises an error if `should_stop`, for work that has nothing to save.

  Args:
    name: the name of the work, for the message.

  Raises:
    StopRequested: a signal has asked this run to stop.
  """
  if should_stop():
    raise StopRequested(f"{name} stopped; the same command continues the run")


def abort(error: BaseException) -> NoReturn:
  """Ends this process, one of several, after an unhandled error.

  If the error only follows from the end of another process, the last line names
  that process. JAX's own shutdown would wait for processes that wait for this
  one.
  """
  import jax

  line = f"{type(error).__name__}: {error}".splitlines()[0]
  from_peer = isinstance(error, jax.errors.JaxRuntimeError)
  # If a computation could not begin, XLA's error has another type.
  from_peer = from_peer or bool(re.match("[A-Z_]+: ", str(error)))
  if from_peer and not _watchdog:
    sys.stderr.write(
      f"deepemd_jax: another process has ended before the first step ({line}); "
      "this one ends too; the same command continues the run\n"
    )
    end(LOST)
  if from_peer and _watchdog:
    _watchdog.check_peers()
    if _watchdog.say(f"{line}\nchecking if another process has ended ...\n"):
      _watchdog.ended.wait(_VERDICT_SECONDS)
  if _watchdog and _watchdog.ended.is_set():
    time.sleep(2 * FAREWELL_SECONDS)  # the watchdog is ending this process
  traceback.print_exception(error)
  end(1, line)


def shutdown(code: int) -> NoReturn:
  """Ends this process, one of several, when all of them end alike: after the
  same work, or because each of them has found the same mistake."""
  import jax

  if code in (0, STOPPED):
    jax.distributed.shutdown()  # waits for all
  elif is_main() and not _watchdog:
    # There is no watchdog yet to tell when the others have ended; see `end`.
    time.sleep(WRITE_SECONDS)
  end(code)


def end(code: int, why: str = "") -> NoReturn:
  """Ends this process, one of several, at once, and tells the others.

  Process 0 lets the others end first. When it is gone, JAX ends them by a
  signal, and they cannot say why.

  Args:
    code: the exit code.
    why: one line for the others; "" if the code says enough.
  """
  if _watchdog:
    _watchdog.stop(code, why)
    if is_main() and code not in (0, STOPPED):
      _watchdog.wait_for_peers()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
