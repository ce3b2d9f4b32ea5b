"""Connections that end, so that no client can hold the server for long.

A client has a number of seconds to send its whole request, however it spreads
the bytes, and as many again to take the answer. If too many clients are there,
or if they have sent too much together, some have to go. Those whose request is
there in full, and at work or waiting for its turn, stay.
"""

import contextlib
import io
import socket
import threading
import time


class Crowd:
  """The open connections, within limits.

  Args:
    clients: the most of them at a time.
    size: the most bytes that they may have sent, all together, in requests that
      are not answered yet.
    head: the most bytes of one request's first line and headers.
    seconds: that a client has to send its request, and to take the answer.
  """

  def __init__(self, clients: int, size: int, head: int, seconds: float):
    self.seconds, self.head = seconds, head
    self._clients, self._size = clients, size
    self._open: dict[Client, None] = {}  # in the order in which they came
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def joined(self, client: "Client"):
    """Counts a client in while the context lasts."""
    with self._lock:
      self._open[client] = None
      if len(self._open) > self._clients:
        self._drop(next((c for c in self._open if not c.at_work), client))
    try:
      yield
    finally:
      with self._lock:
        self._open.pop(client, None)

  def count(self, client: "Client") -> None:
    """Makes room if, with what a client has just sent, it is too much."""
    with self._lock:
      if sum(c.received for c in self._open) > self._size:
        others = [c for c in self._open if not c.at_work]
        self._drop(max((*others, client), key=lambda c: c.received))

  def _drop(self, client: "Client") -> None:
    # Counted out at once: its thread takes a moment to notice.
    self._open.pop(client, None)
    client.drop()


class Client(io.RawIOBase):
  """Both directions of a connection, as a file.

  Attributes:
    at_work: whether the request is there in full, and worked on or waiting.
    received: bytes of the request. It is 0 again when the answer begins.
  """

  def __init__(self, connection: socket.socket, crowd: Crowd):
    self._connection, self._crowd = connection, crowd
    self._end = time.monotonic() + crowd.seconds
    self._in_head, self._answered = True, False
    self.at_work, self.received = False, 0

  def readable(self) -> bool:
    """True, as a file has it."""
    return True

  def writable(self) -> bool:
    """True, as a file has it."""
    return True

  def readinto(self, buffer) -> int:
    """Reads what is there.

    Raises:
      TimeoutError: the client's time is over.
      ConnectionError: its headers are too large, or it had to go.
    """
    self._wait_at_most(self._end - time.monotonic())
    count = self._connection.recv_into(buffer)
    if not self._answered:
      self.received += count
      if self._in_head and self.received > self._crowd.head:
        raise ConnectionAbortedError("the headers are too large")
      self._crowd.count(self)
    return count

  def write(self, data) -> int:
    """Sends everything.

    Raises:
      TimeoutError: the client takes too long.
      ConnectionError: it is gone.
    """
    self._wait_at_most(self._crowd.seconds)
    self._connection.sendall(data)
    return len(data)

  def head_ended(self) -> None:
    """Says that the headers are there, and that a body may follow."""
    self._in_head = False

  def answer_begins(self) -> None:
    """Says that what still comes is thrown away."""
    self._answered, self.at_work, self.received = True, False, 0

  def drop(self) -> None:
    """Ends the connection, also for a thread that waits for it."""
    with contextlib.suppress(OSError):  # it has ended already
      self._connection.shutdown(socket.SHUT_RDWR)

  def _wait_at_most(self, seconds: float) -> None:
    if seconds <= 0:
      raise TimeoutError("the client's time is over")
    self._connection.settimeout(seconds)
