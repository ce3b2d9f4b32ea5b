"""Signs of life, by which several processes notice that one of them has ended.

Each has a thread that writes one into a folder, which all of them see, every
few seconds, and looks at those of others: process 0 at everyone's, the others
at process 0's.
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

EVERY = 2.0  # seconds between two signs of life
_TICK = 0.1  # seconds between two looks at the processes of this machine
_SILENCE = 30.0  # seconds without one, and a process counts as dead
BEHIND = 40.0  # seconds that one may be behind; see `processes.ready`
FAREWELL = 8.0  # seconds that process 0 waits for others before it ends


class Watch:
  """Signs of life: one's own, and others'.

  Attributes:
    turns: how far this process is.
    ended: set when it does not watch any more.
  """

  def __init__(
    self,
    place: pathlib.Path,
    index: int,
    count: int,
    end: Callable[[int, str], NoReturn],
  ) -> None:
    """Begins, in a thread.

    Args:
      place: a folder that all see, new for each run.
      index: of this process.
      count: of processes.
      end: ends this process; from an exit code and what others shall hear.
    """
    self.turns = 0
    self.ended = threading.Event()
    self._place, self._index, self._end = place, index, end
    self._beats = 0
    self._own = {"machine": machine(), "pid": os.getpid()}
    self._lock = threading.Lock()
    self._write()
    others = range(count) if index == 0 else [0]
    self._peers = {i: Peer(i, count) for i in others if i != index}
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
    end = time.monotonic() + FAREWELL
    for index, peer in self._peers.items():
      while not peer.has_ended(self._read(index)) and time.monotonic() < end:
        time.sleep(_TICK)

  def _run(self) -> None:
    last = wrote = time.monotonic()
    while not self.ended.wait(_TICK):
      now = time.monotonic()
      paused, last = now - last > _SILENCE, now
      fresh = now - wrote >= EVERY
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

  def _end_with(self, peer: "Peer", what: str, code: int) -> None:
    line = f"deepemd_jax: {peer.name} {what}; process {self._index} ends too"
    line += "" if code == MISTAKE else "; the same command goes on"
    if self.say(f"{line}\n", last=True):
      self._end(code, f"{peer.name} {what}")

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


class Peer:
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
    if now - self._moved > BEHIND:
      return f"is stuck, {now - self._moved:.0f} s behind the others", LOST
    return None

  def has_ended(self, row: dict | None) -> bool:
    """Whether it has said so in its latest sign of life, or is gone, or has
    been silent too long to be waited for."""
    self._known = row or self._known
    silent = time.monotonic() - self._heard > _SILENCE
    return "code" in self._known or self.is_gone() or silent

  def is_gone(self) -> bool:
    """Whether it ran on this machine and does not any more."""
    if self._known.get("machine") != machine():
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
def machine() -> str:
  """Host name, and which of its process number spaces: containers have own
  ones, but may share the name."""
  try:
    space = os.stat("/proc/self/ns/pid").st_ino
  except OSError:
    space = 0
  return f"{socket.gethostname()}/{space}"
