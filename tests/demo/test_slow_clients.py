"""Nobody has to wait for clients that send slowly, too much or nothing."""

import contextlib
import re
import socket
import threading
import time

import pytest
from forms import ask, classify, encode, fields, rest, serving, start, until

from deepemd_jax.demo import command, server


@contextlib.contextmanager
def dripping(clients):
  """Makes each client send a byte every twentieth of a second.

  Clients whose connection the server has closed are removed from the list.
  """
  ended = threading.Event()

  def drip():
    while not ended.wait(0.05):
      for client in [*clients]:
        try:
          client.sendall(b"1")
        except OSError:
          clients.remove(client)

  thread = threading.Thread(target=drip)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


def test_twenty_slow_bodies(demo, port):
  """They do not count as requests, and a normal request is answered at once."""
  assert classify(port, fields())[0] == 200  # compiles the programs
  body, headers = encode(fields())
  with contextlib.ExitStack() as slow:
    clients = [
      slow.enter_context(start(port, headers, len(body), body[:500]))
      for _ in range(10)
    ]
    clients += [
      slow.enter_context(start(port, headers, None, b"9000\r\n" + body[:500]))
      for _ in range(10)
    ]
    with dripping(clients):
      time.sleep(0.3)
      began = time.monotonic()
      status, found = classify(port, fields())
      assert status == 200, found
      assert time.monotonic() - began < 2
      assert demo._places._value == 4
    assert len(clients) == 20


@pytest.mark.parametrize("where", ["line", "headers", "body"])
def test_one_deadline(demo, monkeypatch, where):
  """The whole request has one deadline, for slow and for silent clients."""
  assert 0 < server._TIMEOUT <= 60
  monkeypatch.setattr(server, "_TIMEOUT", 0.5)
  body, headers = encode(fields())
  with serving(demo) as port, contextlib.ExitStack() as all_clients:
    began = time.monotonic()
    clients = [
      all_clients.enter_context(
        start(port, headers, len(body), body[:500])
        if where == "body"
        else socket.create_connection((command.HOST, port))
      )
      for _ in range(4)
    ]
    if where == "headers":
      for client in clients:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
    silent, *slow = clients
    with dripping(slow):
      answer = rest(silent)
      until(lambda: not slow)
    assert 0.4 < time.monotonic() - began < 10
  if where == "body":
    assert b" 408 " in answer and b"fewer or smaller images" in answer
  else:
    assert answer == b""


def test_too_many_clients(demo, monkeypatch):
  """The oldest connection is closed, but none whose request is running."""
  monkeypatch.setattr(server, "_MAX_CLIENTS", 8)
  found = []
  with serving(demo) as port, contextlib.ExitStack() as all_clients:
    with demo.turn:
      thread = threading.Thread(
        target=lambda: found.append(classify(port, fields()))
      )
      thread.start()
      until(lambda: demo._places._value == 3)
      clients = [
        all_clients.enter_context(
          socket.create_connection((command.HOST, port))
        )
        for _ in range(30)
      ]
      assert ask(port, "GET", "/")[0] == 200
      for client in clients[:20]:
        assert rest(client) == b""
    thread.join(60)
    assert [status for status, _ in found] == [200]
    clients[-1].sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert clients[-1].recv(99).startswith(b"HTTP/1.1 200")


def test_too_many_bytes(demo, monkeypatch):
  """The connection of the client that has sent the most is closed."""
  monkeypatch.setattr(server, "_MAX_RECEIVED", 1_000_000)
  _, headers = encode(fields())
  with serving(demo) as port, contextlib.ExitStack() as all_clients:
    sizes = (100_000, 500_000, 200_000, 300_000)
    clients = [
      all_clients.enter_context(start(port, headers, 600_000, bytes(size)))
      for size in sizes
    ]
    assert rest(clients[1]) == b""
    assert classify(port, fields())[0] == 200
    for client in (clients[0], clients[2], clients[3]):
      client.settimeout(0.05)
      with pytest.raises(TimeoutError):
        client.recv(1)


def test_large_headers(port, capsys):
  for line in (b"a: " + b"b" * 60_000 + b"\r\n", b"a: b\r\n" * 200):
    with socket.create_connection((command.HOST, port), 20) as client:
      client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
      with contextlib.suppress(ConnectionError):
        for _ in range(9):
          client.sendall(line)
        client.sendall(b"\r\n")
      answer = rest(client)
      assert answer == b"" or re.match(rb"HTTP/1.1 431", answer), answer
  assert ask(port, "GET", "/")[0] == 200
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
  ("length", "status", "message"),
  [
    ("x", 400, "Content-Length is 'x'; send the number of bytes"),
    ("-5", 400, "Content-Length is '-5'"),
    ("1_0", 400, "Content-Length is '1_0'"),
    ("\u00b2", 400, "Content-Length is "),
    ("x" * 999, 400, f"Content-Length is '{'x' * 20}'"),
    (str(10**17), 413, "too large"),
    ("9" * 9999, 413, "too large"),
  ],
)
def test_lengths_that_are_none(port, length, status, message):
  _, headers = encode(fields())
  with start(port, headers, length) as client:
    answer = rest(client)
  assert answer.startswith(b"HTTP/1.1 %d" % status)
  assert message.encode() in answer


@pytest.mark.parametrize(
  "chunks",
  [
    *(b"x\r\n", b"-1\r\n\r\n", b"5\r\nabc", b"3\r\nabcdef\r\n0\r\n\r\n"),
    *(b"ffffffffffffffffff\r\nabc", b"", b"0\r\n\r\n", b"a;" + b"b" * 999),
  ],
)
def test_chunks_that_are_none(port, capsys, chunks):
  """They are refused or dropped, and the server continues."""
  _, headers = encode(fields())
  with start(port, headers, None, chunks) as client:
    client.shutdown(socket.SHUT_WR)
    answer = rest(client)
  assert answer == b"" or re.match(rb"HTTP/1.1 4\d\d", answer), answer
  assert ask(port, "GET", "/")[0] == 200
  assert capsys.readouterr().err == ""


def test_an_address_that_is_none(port, capsys):
  with socket.create_connection((command.HOST, port)) as client:
    client.sendall(b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert rest(client).startswith(b"HTTP/1.1 400 Bad address")
  assert capsys.readouterr().err == ""
