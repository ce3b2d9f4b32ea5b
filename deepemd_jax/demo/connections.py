"""Connections with time limits, so that no client can block the server.

A client has a number of seconds to send its whole request, and the same number
of seconds to receive the answer. If there are too many clients, or they have
sent too many bytes together, some connections are ended. Clients whose complete
request is being processed or is waiting for its turn stay connected.
"""

import contextlib
import io
import socket
import threading
import time


class Crowd:
  """The open connections, with their limits.

  Args:
    clients: the largest number of open connections.
    size: the largest number of bytes of all requests together that are not
      answered yet.
    head: the largest number of bytes of one request's first line and headers.
    seconds: the time for a client to send its request, and to receive the
      answer.
  """

  def __init__(self, clients: int, size: int, head: int, seconds: float):
    self.seconds, self.head = seconds, head
    self._clients, self._size = clients, size
    self._open: dict[Client, None] = {}  # in the order in which they came
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def joined(self, client: "Client"):
    """Counts a client as connected while the context lasts."""
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
    """Ends a connection if all clients together have sent too many bytes."""
    with self._lock:
      if sum(c.received for c in self._open) > self._size:
        others = [c for c in self._open if not c.at_work]
        self._drop(max((*others, client), key=lambda c: c.received))

  def _drop(self, client: "Client") -> None:
    # Removed here, because the client's thread notices a moment later.
    self._open.pop(client, None)
    client.drop()


class Client(io.RawIOBase):
  """A connection as a file for both directions.

  Attributes:
    at_work: whether the request is complete, and processed or waiting.
    received: number of bytes of the request; 0 again when the answer begins.
  """

  def __init__(self, connection: socket.socket, crowd: Crowd):
    self._connection, self._crowd = connection, crowd
    self._end = time.monotonic() + crowd.seconds
    self._in_head, self._answered = True, False
    self.at_work, self.received = False, 0

  def readable(self) -> bool:
    """Returns True, because the connection can be read."""
    return True

  def writable(self) -> bool:
    """Returns True, because the connection can be written."""
    return True

  def readinto(self, buffer) -> int:
    """Reads the available bytes into `buffer` and returns their number.

    Raises:
      TimeoutError: the client's time is over.
      ConnectionError: the headers are too large, or the connection was ended.
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
    """Sends all bytes and returns their number.

    Raises:
      TimeoutError: the client takes too long.
      ConnectionError: the client has disconnected.
    """
    self._wait_at_most(self._crowd.seconds)
    self._connection.sendall(data)
    return len(data)

  def head_ended(self) -> None:
    """Marks the headers as complete; a body may follow."""
    self._in_head = False

  def answer_begins(self) -> None:
    """Marks the beginning of the answer; later bytes are ignored."""
    self._answered, self.at_work, self.received = True, False, 0

  def drop(self) -> None:
    """Ends the connection, also for a thread that is waiting for it."""
    with contextlib.suppress(OSError):  # it has ended already
      self._connection.shutdown(socket.SHUT_RDWR)

  def _wait_at_most(self, seconds: float) -> None:
    if seconds <= 0:
      raise TimeoutError("the client's time is over")
    self._connection.settimeout(seconds)
