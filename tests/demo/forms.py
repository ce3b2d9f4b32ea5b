"""Makes forms for the demo, and starts a server for them."""

import contextlib
import http.client
import io
import json
import socket
import threading
import time

import numpy as np
from PIL import Image
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from deepemd_jax.demo import command, form, server

LIMITS = form.Limits(
  file=600_000,
  request=1_500_000,
  classes=4,
  images=3,
  name=30,
  pixels=90_000,
  all_pixels=260_000,
)

RED, BLUE = (200, 40, 40), (40, 40, 200)

TRICK = "<script>alert(1)</script>"

TEXT = b"<svg xmlns='http://www.w3.org/2000/svg'/>"


def png(color, seed=0, size=(24, 30)) -> bytes:
  rng = np.random.default_rng(seed)
  pixels = np.array(color) + rng.integers(-30, 30, (*size, 3))
  file = io.BytesIO()
  Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "PNG")
  return file.getvalue()


@contextlib.contextmanager
def serving(demo):
  """Starts a server, and yields its port."""
  with socket.create_server((command.HOST, 0)) as listening:
    made = server.Server(demo, listening)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
      yield listening.getsockname()[1]
    finally:
      made.shutdown()
      thread.join()
      made.server_close()


def ask(port, method, path, body=None, headers=(), host=None):
  """Sends a request; returns status, headers and content of the answer."""
  connection = http.client.HTTPConnection(command.HOST, port, timeout=60)
  with contextlib.closing(connection):
    host = host or f"127.0.0.1:{port}"
    connection.request(method, path, body, {"Host": host, **dict(headers)})
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def fields(names=("red", "blue"), **changes):
  """Returns the fields of a correct form with changes; None removes a field."""
  found = {
    "name": list(names),
    "support0": [(png(RED, 1), "a.png")],
    "support1": [(png(BLUE, 2), "b.png")],
    "query": [(png(RED, 3), "q.png")],
    **changes,
  }
  return {k: v for k, v in found.items() if v is not None}


def encode(values):
  """Returns the body and headers of a form."""
  files = {
    k: [FileStorage(io.BytesIO(f[0]), f[1]) if len(f) == 2 else f for f in v]
    if k.startswith(("support", "query"))
    else v
    for k, v in values.items()
  }
  boundary, body = encode_multipart(files)
  return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def classify(port, values, **headers):
  body, more = encode(values)
  status, got, content = ask(port, "POST", "/classify", body, more | headers)
  assert got["Content-Type"] == "application/json"
  return status, json.loads(content)


def start(port, headers, length, some=b""):
  """Sends the headers of a form and a part of its body.

  If the length is None, the body is sent in chunks.

  Returns:
    The connection of the client.
  """
  size = "Transfer-Encoding: chunked"
  if length is not None:
    size = f"Content-Length: {length}"
  head = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{size}\r\n"
  head += f"Content-Type: {headers['Content-Type']}\r\n\r\n"
  client = socket.create_connection((command.HOST, port))
  client.sendall(head.encode("latin1") + some)
  return client


def rest(client) -> bytes:
  """Returns all bytes from the server until the connection ends."""
  client.settimeout(60)
  answer = b""
  with contextlib.suppress(ConnectionError):
    while part := client.recv(9999):
      answer += part
  return answer


def until(holds):
  end = time.monotonic() + 60
  while not holds():
    assert time.monotonic() < end
    time.sleep(0.01)
