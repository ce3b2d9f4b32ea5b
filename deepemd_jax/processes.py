"""Several processes, on one machine or many, that work on one run.

They start together and end together. JAX alone does not see to the second: a
process that stops, hangs or fails leaves its peers waiting, for minutes or for
ever. So each has a thread that writes a sign of life into the workdir, which
all of them share, every few seconds, and looks at that of others: process 0 at
everyone's, the others at process 0's. A run of one process has nothing of this.

JAX is imported where it is used: whether this process is the first is asked by
commands that do without it.
"""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from typing import NoReturn

from deepemd_jax.errors import InputError, Interrupted

LOST = 75  # exit code, EX_TEMPFAIL of sysexits.h: start it again
STOPPED = 143  # after SIGTERM or SIGINT, and saving: likewise
MISTAKE = 2  # a person's; to start it again does not help
_EVERY = 2.0  # seconds between two signs of life
_TICK = 0.1  # seconds between two looks at the processes of this machine
_SILENCE = 30.0  # seconds without one, and a process counts as dead
_BEHIND = 40.0  # seconds that one may be behind; see `ready`
_VERDICT = 45.0  # seconds to find out who is to blame for an error
_FAREWELL = 8.0  # seconds that process 0 waits for others before it ends

_index, _count = 0, 1
_watch: "_Watch | None" = None
_turns = 0


def first() -> bool:
  """Whether this is process 0, which alone writes logs, results and figures."""
  return _index == 0


def several() -> bool:
  """Whether the run has more than one process."""
  return _count > 1


def is_launched(environment=os.environ) -> bool:
  """Whether a launcher says that it has started several processes: srun,
  mpirun, or GKE for a TPU slice."""
  counts = [environment.get("SLURM_STEP_NUM_TASKS", "")]
  counts += [environment.get("OMPI_COMM_WORLD_SIZE", "")]
  hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
  return "," in hosts or any(c.isdecimal() and int(c) > 1 for c in counts)


def begin(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
) -> None:
  """Connects the processes; before anything computes.

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

  try:
    jax.distributed.initialize(coordinator, count, index)
  except (ValueError, RuntimeError) as error:
    raise InputError(
      f"the processes cannot be connected: {str(error).splitlines()[0]}; use "
      "--distributed=off for one process, or give --coordinator, "
      "--num_processes and --process_id"
    ) from error
  _index, _count = jax.process_index(), jax.process_count()
  if _count > 1:
    signal.signal(signal.SIGINT, _stop_all)


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
  if not several():
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


def watch(workdir: pathlib.Path) -> None:
  """Begins to give, and to look for, signs of life; all processes together."""
  global _watch
  if not several():
    return
  import numpy as np
  from jax.experimental import multihost_utils

  token = int(multihost_utils.broadcast_one_to_all(np.int32(time.time() % 1e9)))
  folder = workdir / ".processes"
  if first():
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
  place = folder / str(token)
  place.mkdir(parents=True, exist_ok=True)
  _watch = _Watch(place, _index, _count)
  together("watch")


def together(name: str) -> None:
  """Returns when all processes are here."""
  if several():
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def ready() -> None:
  """To be called by all processes when they have what they need for the next
  computation of all, which may wait for those that have not yet: one that does
  not come as far for long is stuck."""
  if _watch:
    _watch.turns += 1


def turn() -> bool:
  """To be called by all processes at the same points of their work, once a
  step. Whether a signal to any of them asks all to stop here."""
  global _turns
  if not several():
    return False
  from jax.experimental import multihost_utils

  ready()
  _turns += 1
  return bool(multihost_utils.reached_preemption_sync_point(_turns))


def turn_or_stop(name: str) -> None:
  """`turn`, for work that has nothing to save.

  Raises:
    Interrupted: a signal asked to stop.
  """
  if turn():
    raise Interrupted(f"{name} stopped; the same command goes on")


def leave(error: BaseException) -> NoReturn:
  """Ends this process, of several, because of an error that nothing handles.

  If it comes from a peer's end it is that one that is named. JAX's own way out
  would wait for peers which wait for this one.
  """
  import jax

  line = f"{type(error).__name__}: {error}".splitlines()[0]
  theirs = isinstance(error, jax.errors.JaxRuntimeError)
  # Of a computation that could not begin, XLA's error comes as another type.
  theirs = theirs or bool(re.match("[A-Z_]+: ", str(error)))
  if theirs and _watch:
    _watch.look()
    if _watch.say(f"{line}\nlooking for a process that has ended ...\n"):
      _watch.ended.wait(_VERDICT)
  if _watch and _watch.ended.is_set():
    time.sleep(2 * _FAREWELL)  # the watching thread is ending this process
  traceback.print_exception(error)
  end(1, line)


def finish(code: int) -> NoReturn:
  """Ends this process, of several, with the others: after the same work, or for
  a mistake that all have found alike."""
  import jax

  if code in (0, STOPPED):
    jax.distributed.shutdown()  # waits for all
  elif first() and not _watch:
    time.sleep(_EVERY)  # nothing says yet when the others have ended; see `end`
  end(code)


def end(code: int, why: str = "") -> NoReturn:
  """Ends this process, of several, at once; the others hear of it. Process 0
  lets them end first: without it JAX ends them in its own way, by a signal."""
  if _watch:
    _watch.stop(code, why)
    if first() and code not in (0, STOPPED):
      _watch.outlast()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


class _Watch:
  """Signs of life: one's own, and others'.

  Attributes:
    turns: how far this process is.
    ended: set when it does not watch any more.
  """

  def __init__(self, place: pathlib.Path, index: int, count: int) -> None:
    self.turns = 0
    self.ended = threading.Event()
    self._place, self._index, self._count = place, index, count
    self._beats = 0
    self._own = {"machine": _machine(), "pid": os.getpid()}
    self._lock = threading.Lock()
    self._write()
    others = range(count) if index == 0 else [0]
    self._peers = {i: _Peer(i, count) for i in others if i != index}
    threading.Thread(target=self._run, daemon=True).start()

  def stop(self, code: int, why: str) -> None:
    """Says that, and why, this process ends."""
    with self._lock:
      self.ended.set()
      self._write(code=code, why=why)

  def say(self, text: str, last: bool = False) -> bool:
    """Tells the person at the terminal, unless the last has been said.

    Args:
      text: lines.
      last: this process ends with it.

    Returns:
      Whether it was said.
    """
    with self._lock:
      if self.ended.is_set():
        return False
      if last:
        self.ended.set()
      sys.stderr.write(text)
      sys.stderr.flush()
      return True

  def outlast(self) -> None:
    """Returns when the others have ended, or after a while."""
    end = time.monotonic() + _FAREWELL
    for index, peer in self._peers.items():
      while not peer.has_ended(self._read(index)) and time.monotonic() < end:
        time.sleep(_TICK)

  def _run(self) -> None:
    last = wrote = time.monotonic()
    while not self.ended.wait(_TICK):
      now = time.monotonic()
      paused, last = now - last > _SILENCE, now
      fresh = now - wrote >= _EVERY
      if fresh:
        wrote = now
        with self._lock:
          if self.ended.is_set():
            return
          self._write()
      if paused:  # this one was stopped itself, or its machine slept
        for peer in self._peers.values():
          peer.forgive()
      self.look(fresh)

  def look(self, fresh: bool = True) -> None:
    """Ends this process if another one's state demands it.

    Args:
      fresh: look at signs of life too, not only at what is gone from this
        machine. JAX, once it has lost process 0, aborts at once.
    """
    for index, peer in self._peers.items():
      if fresh or peer.is_gone():
        blame = peer.look(self._read(index), self.turns)
        if blame:
          self._end_with(peer, *blame)

  def _end_with(self, peer: "_Peer", what: str, code: int) -> None:
    line = f"deepemd_jax: {peer.name} {what}; process {self._index} ends too"
    line += "" if code == MISTAKE else "; the same command goes on"
    if self.say(f"{line}\n", last=True):
      end(code, f"{peer.name} {what}")

  def _write(self, **more) -> None:
    self._beats += 1
    row = {**self._own, "beats": self._beats, "turns": self.turns, **more}
    try:
      (self._place / str(self._index)).write_text(json.dumps(row))
    except OSError:
      pass  # a full disk is not the end; a lasting silence will be

  def _read(self, index: int) -> dict | None:
    try:
      return json.loads((self._place / str(index)).read_text())
    except (OSError, ValueError):
      return None  # not there yet, or half written


class _Peer:
  """What is known of another process."""

  def __init__(self, index: int, count: int) -> None:
    self._index, self._count = index, count
    self._known: dict = {}
    self.forgive()

  @property
  def name(self) -> str:
    """With host and process number, once it has been heard of."""
    where = ""
    if self._known:
      host = self._known["machine"].partition("/")[0]
      where = f" (host {host}, pid {self._known['pid']})"
    return f"process {self._index} of {self._count}{where}"

  def forgive(self) -> None:
    """Counts from now."""
    self._heard = self._moved = time.monotonic()

  def look(self, row: dict | None, turns: int) -> tuple[str, int] | None:
    """What is wrong with it, and the exit code for its peers; or None.

    Args:
      row: its latest sign of life.
      turns: how far this process is.
    """
    now = time.monotonic()
    if row and row != self._known:
      self._heard = now
      if row["turns"] != self._known.get("turns") or row["turns"] >= turns:
        self._moved = now
      self._known = row
    if "code" in self._known:
      code = self._known["code"]
      if code in (0, STOPPED):
        return None  # it has done its part, with all others; see `finish`
      how = f"has ended ({self._known['why'] or f'exit code {code}'})"
      return how, MISTAKE if code == MISTAKE else LOST
    if self.is_gone():
      return "has ended without a word", LOST
    if now - self._heard > _SILENCE:
      what = f"has given no sign of life for {now - self._heard:.0f} s"
      if not self._known:
        what += " (do all processes see the same --workdir?)"
      return what, LOST
    if now - self._moved > _BEHIND:
      return f"is stuck, {now - self._moved:.0f} s behind the others", LOST
    return None

  def has_ended(self, row: dict | None) -> bool:
    """Whether it has said so in its latest sign of life, or is gone."""
    self._known = row or self._known
    return "code" in self._known or self.is_gone()

  def is_gone(self) -> bool:
    """Whether it ran on this machine and does not any more."""
    if self._known.get("machine") != _machine():
      return False
    pid = self._known["pid"]
    try:
      os.kill(pid, 0)
      # One that nobody has waited for is there, but ended (state Z).
      state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
    except ProcessLookupError:
      return True
    except OSError:  # no /proc, or not ours
      return False
    return state.startswith("Z")


@functools.cache
def _machine() -> str:
  """Host name, and which of its process number spaces: containers have own
  ones, but may share the name."""
  try:
    space = os.stat("/proc/self/ns/pid").st_ino
  except OSError:
    space = 0
  return f"{socket.gethostname()}/{space}"
