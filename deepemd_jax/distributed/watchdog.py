"""Signs of life, by which processes notice that one of them has ended or hangs.

Every process has a watchdog: a thread that writes a sign of life into a shared
folder every few seconds, and reads those of others. Process 0 watches all
processes, and the others watch process 0.

A sign of life is a JSON file, named by the process's number:
  machine, pid: the machine and the ID of the process.
  beats: the number of signs so far.
  progress: the number of collectives that the process has reached.
  code, why: the exit code and the reason, only in the last sign of a process.
"""

import functools
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from deepemd_jax.errors import LOST, MISTAKE, STOPPED

WRITE_SECONDS = 2.0  # between two signs of life
SILENCE_SECONDS = 30.0  # a process that is silent for longer counts as dead
STUCK_SECONDS = 40.0  # a process that is behind for longer counts as stuck
FAREWELL_SECONDS = 8.0  # how long process 0 waits for the others to end
_TICK_SECONDS = 0.1  # between two checks for processes gone from this machine


class Watchdog:
  """A thread that writes this process's signs of life and reads others' signs.

  Attributes:
    progress: the number of collectives that this process has reached.
    ended: an event that is set when the watchdog has stopped watching.
  """

  def __init__(
    self,
    place: pathlib.Path,
    index: int,
    count: int,
    end: Callable[[int, str], NoReturn],
  ) -> None:
    """Starts the thread.

    Args:
      place: a folder that all processes see, new for each run.
      index: the number of this process.
      count: the number of processes.
      end: a function that ends this process, given an exit code and a line for
        the others.
    """
    self.progress = 0
    self.ended = threading.Event()
    self._place, self._index, self._end = place, index, end
    self._beats = 0
    self._lock = threading.Lock()
    self._write()
    watched = range(count) if index == 0 else [0]
    self._peers = {i: Peer(i, count) for i in watched if i != index}
    threading.Thread(target=self._run, daemon=True).start()

  def stop(self, code: int, why: str) -> None:
    """Stops watching, and tells the others that this process ends and why."""
    with self._lock:
      self.ended.set()
      self._write(code=code, why=why)

  def say(self, text: str, last: bool = False) -> bool:
    """Prints text, unless the last message has been printed already.

    Args:
      text: the lines to print.
      last: whether this is the last message.

    Returns:
      Whether the text was printed.
    """
    with self._lock:
      if self.ended.is_set():
        return False
      if last:
        self.ended.set()
      sys.stderr.write(text)
      sys.stderr.flush()
      return True

  def wait_for_peers(self) -> None:
    """Waits until the watched processes have ended, for a limited time."""
    limit = time.monotonic() + FAREWELL_SECONDS
    for index, peer in self._peers.items():
      while not peer.has_ended(self._read(index)) and time.monotonic() < limit:
        time.sleep(_TICK_SECONDS)

  def _run(self) -> None:
    last = wrote = time.monotonic()
    while not self.ended.wait(_TICK_SECONDS):
      now = time.monotonic()
      paused, last = now - last > SILENCE_SECONDS, now
      due = now - wrote >= WRITE_SECONDS
      if due:
        wrote = now
        with self._lock:
          if self.ended.is_set():
            return
          self._write()
      if paused:  # this process was stopped, or its machine slept
        for peer in self._peers.values():
          peer.forgive()
      self.check_peers(read=due)

  def check_peers(self, *, read: bool = True) -> None:
    """Ends this process if a watched one has failed or hangs.

    Args:
      read: whether to read the signs of life. Otherwise, it only looks for
        processes that are gone from this machine. That is cheap, and must be
        quick: JAX aborts a process soon after it has lost process 0.
    """
    for index, peer in self._peers.items():
      if read or peer.is_gone():
        verdict = peer.check(self._read(index), self.progress)
        if verdict:
          self._end_because_of(peer, *verdict)

  def _end_because_of(self, peer: "Peer", problem: str, code: int) -> None:
    line = f"deepemd_jax: {peer.name} {problem}; process {self._index} ends too"
    line += "" if code == MISTAKE else "; the same command continues the run"
    if self.say(f"{line}\n", last=True):
      self._end(code, f"{peer.name} {problem}")

  def _write(self, **more) -> None:
    self._beats += 1
    sign = {
      "machine": machine(),
      "pid": os.getpid(),
      "beats": self._beats,
      "progress": self.progress,
      **more,
    }
    try:
      (self._place / str(self._index)).write_text(json.dumps(sign))
    except OSError:
      pass  # a full disk may pass; the others notice if it lasts

  def _read(self, index: int) -> dict | None:
    try:
      return json.loads((self._place / str(index)).read_text())
    except (OSError, ValueError):
      return None  # not there yet, or half written


class Peer:
  """The state of another process, as known to this process."""

  def __init__(self, index: int, count: int) -> None:
    self._index, self._count = index, count
    self._sign: dict = {}  # the latest sign of life
    self.forgive()

  @property
  def name(self) -> str:
    """The number of the process, and its host and ID once it gave a sign."""
    where = ""
    if self._sign:
      host = self._sign["machine"].partition("/")[0]
      where = f" (host {host}, pid {self._sign['pid']})"
    return f"process {self._index} of {self._count}{where}"

  def forgive(self) -> None:
    """Forgets how long the process has been silent or behind."""
    self._heard = self._caught_up = time.monotonic()

  def check(self, sign: dict | None, progress: int) -> tuple[str, int] | None:
    """Checks whether the other process works.

    Args:
      sign: its latest sign of life; None if it could not be read.
      progress: the number of collectives that this process has reached.

    Returns:
      (the problem, the exit code for this process); None if there is no
      problem.
    """
    now = time.monotonic()
    if sign and sign != self._sign:
      self._heard = now
      moved = sign["progress"] != self._sign.get("progress")
      if moved or sign["progress"] >= progress:
        self._caught_up = now
      self._sign = sign
    if "code" in self._sign:
      code = self._sign["code"]
      if code in (0, STOPPED):
        return None  # it has ended as planned, like all others
      how = f"has ended ({self._sign['why'] or f'exit code {code}'})"
      return how, MISTAKE if code == MISTAKE else LOST
    if self.is_gone():
      return "has ended without a message", LOST
    if now - self._heard > SILENCE_SECONDS:
      problem = f"has given no sign of life for {now - self._heard:.0f} s"
      if not self._sign:
        problem += " (do all processes see the same --workdir?)"
      return problem, LOST
    if now - self._caught_up > STUCK_SECONDS:
      behind = f"{now - self._caught_up:.0f} s behind the others"
      return f"is stuck, {behind}", LOST
    return None

  def has_ended(self, sign: dict | None) -> bool:
    """Tells whether the process has ended. Its latest sign of life says so, or
    it is gone, or it has been silent for too long."""
    self._sign = sign or self._sign
    silent = time.monotonic() - self._heard > SILENCE_SECONDS
    return "code" in self._sign or self.is_gone() or silent

  def is_gone(self) -> bool:
    """Tells whether the process ran on this machine and has ended."""
    if self._sign.get("machine") != machine():
      return False
    pid = self._sign["pid"]
    try:
      os.kill(pid, 0)
      # A zombie, which has ended but still has its number, is in state Z.
      state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
    except ProcessLookupError:
      return True
    except OSError:  # there is no /proc, or another user owns the process
      return False
    return state.startswith("Z")


@functools.cache
def machine() -> str:
  """Returns the name of the host and its namespace of process IDs.

  Containers on one host may share the name, but each has its own namespace.
  """
  try:
    space = os.stat("/proc/self/ns/pid").st_ino
  except OSError:
    space = 0
  return f"{socket.gethostname()}/{space}"
