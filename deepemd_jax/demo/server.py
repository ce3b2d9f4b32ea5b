"""The HTTP server of the page, for one user on this machine.

The server uses Werkzeug, which parses multipart forms within limits, checks
hosts and has a server with threads, which suits blocking work. It is two small
packages of pure Python. Gradio is over fifty packages, and Starlette with
uvicorn and python-multipart is six.

Other sites that are open in the same browser can also reach 127.0.0.1. So
requests that name another host are refused. Requests that another site started
are refused as well, except for the page and its parts, to which other pages may
link.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import socket
import sys
import threading
import traceback
from urllib.parse import urlsplit

from werkzeug import Response
from werkzeug.exceptions import (
  ClientDisconnected,
  HTTPException,
  RequestEntityTooLarge,
)
from werkzeug.sansio.utils import host_is_trusted
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.data.registry import NODE_KINDS
from deepemd_jax.demo import answer, connections, examples, form, memory
from deepemd_jax.emd.solvers import SOLVERS
from deepemd_jax.errors import InputError

# {address: (file, type)}. No other file is served.
_PAGE = {
  "/": ("page.html", "text/html; charset=utf-8"),
  "/page.css": ("page.css", "text/css; charset=utf-8"),
  "/page.js": ("page.js", "text/javascript; charset=utf-8"),
  "/result.js": ("result.js", "text/javascript; charset=utf-8"),
}
_HOSTS = ("127.0.0.1", "localhost")
_MAX_REQUESTS = 4  # processed or waiting; each may hold its images in memory
_MAX_CLIENTS = 64  # open connections
_MAX_RECEIVED = 2**29  # bytes of all requests together
_MAX_HEAD = 2**17  # bytes of a request's headers
_TIMEOUT = 60  # seconds to send a request, and again to receive the answer
_CLIENT = "deepemd_jax.client"  # the key of the client in a WSGI environment
_HEADERS = {
  "Cache-Control": "no-store",
  "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
  "style-src 'self'; img-src data: blob:; connect-src 'self'; "
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
}


class Demo:
  """The WSGI application.

  GET / returns the page. GET /settings returns the choices and the limits. GET
  /example?kind=...&seed=... returns an example. POST /classify takes a form
  (see `form`) and returns the result of `answer.classify`. A refusal is
  {"error": one sentence, "where": the place of the error}.
  """

  def __init__(self, checkpoint=None, limits: form.Limits | None = None):
    """Loads the checkpoint once, to refuse a wrong one at the start.

    Args:
      checkpoint: the checkpoint, as for `FewShotClassifier`.
      limits: the limits of one classification; None means the defaults.

    Raises:
      InputError: there is no such checkpoint.
    """
    trained = pretrained.load(checkpoint)
    self._checkpoint = checkpoint
    self._limits = limits or form.Limits()
    self._settings = {
      "encoder": f"{checkpoint or pretrained.DEFAULT} "
      f"({trained.encoder.place})",
      "variants": NODE_KINDS,
      "variant": trained.settings.view.kind,
      "solvers": list(SOLVERS),
      "solver": trained.settings.solver_name,
      "seeds": examples.SEEDS,
      "examples": {name: kind[0] for name, kind in examples.KINDS.items()},
      "limits": dataclasses.asdict(self._limits),
    }
    folder = pathlib.Path(__file__).parent
    self._page = {
      path: ((folder / name).read_bytes(), kind)
      for path, (name, kind) in _PAGE.items()
    }
    self._places = threading.BoundedSemaphore(_MAX_REQUESTS)
    self.turn = threading.Lock()  # one classification at a time

  def __call__(self, environ, start_response):
    """Answers a request as a WSGI application."""
    request = form.Upload(environ)
    try:
      with contextlib.closing(request):
        response = self._answer(request)
    except form.Refused as error:
      response = _refusal(error.status, str(error), error.where)
    except InputError as error:
      response = _refusal(400, str(error))
    except HTTPException as error:
      response = _refusal(error.code or 500, error.description or error.name)
    except Exception:
      traceback.print_exc(file=sys.stderr)
      response = _refusal(
        500, "the server failed; its terminal shows the error"
      )
    response.headers.extend(_HEADERS)
    return response(environ, start_response)

  def _answer(self, request: form.Upload) -> Response:
    _check_host(request)
    path = request.path
    if path not in self._page:
      _check_site(request)
    methods = ("POST",) if path == "/classify" else ("GET", "HEAD")
    if path not in (*self._page, "/settings", "/example", "/classify"):
      raise form.Refused(404, "there is nothing at this address")
    if request.method not in methods:
      raise form.Refused(405, f"use {methods[0]}")
    if path in self._page:
      content, kind = self._page[path]
      return Response(content, content_type=kind)
    if path == "/settings":
      return _json(200, self._settings)
    if path == "/example":
      return _example(request)
    self._receive(request)
    if not self._places.acquire(blocking=False):
      raise form.Refused(
        503,
        f"{_MAX_REQUESTS} requests are waiting already; try again in a moment",
      )
    if _CLIENT in request.environ:
      request.environ[_CLIENT].at_work = True
    try:
      with self.turn:
        return _json(200, self._classify(request))
    finally:
      self._places.release()

  def _classify(self, request: form.Upload) -> dict:
    content = form.read(request, self._limits)
    return answer.classify(content, self._checkpoint)

  def _receive(self, request: form.Upload) -> None:
    """Reads and parses the body, before the request takes one of the places.

    Otherwise slow clients could occupy all places.
    """
    limits = self._limits
    length = request.headers.get("Content-Length", "0")
    if not (length.isascii() and length.isdecimal()):
      raise form.Refused(
        400, f"Content-Length is {length[:20]!r}; send the number of bytes"
      )
    # Werkzeug takes a number with thousands of digits for 0.
    if len(length) > 18 or int(length) > limits.request:
      raise _too_much(limits)
    request.max_content_length = limits.request
    request.max_form_parts = limits.parts()
    try:
      request.files  # noqa: B018  reads and parses the body
    except RequestEntityTooLarge as error:
      raise _too_much(limits) from error
    except ClientDisconnected as error:
      raise form.Refused(
        408,
        f"the request did not arrive whole within {_TIMEOUT} seconds; send "
        "fewer or smaller images",
      ) from error


def _check_host(request: form.Upload) -> None:
  host = request.headers.get("Host", "")
  if not host_is_trusted(host, _HOSTS):
    raise form.Refused(
      421, "this server answers to 127.0.0.1 and localhost only"
    )


def _check_site(request: form.Upload) -> None:
  host = request.headers["Host"]
  origin = request.headers.get("Origin")
  site = request.headers.get("Sec-Fetch-Site", "same-origin")
  # Programs other than browsers need not send these headers.
  if site != "same-origin" or origin not in (None, f"http://{host}"):
    raise form.Refused(403, "a page of another site may not send requests")


def _example(request: form.Upload) -> Response:
  kind = request.args.get("kind", "")
  seed = request.args.get("seed", type=int)
  is_known = kind in examples.KINDS and seed in range(examples.SEEDS)
  if seed is None or not is_known:
    raise form.Refused(
      400,
      f"give kind, one of {', '.join(examples.KINDS)}, and seed, a number from "
      f"0 to {examples.SEEDS - 1}",
    )
  return _json(200, examples.text(kind, seed))


def _too_much(limits: form.Limits) -> form.Refused:
  # The error is made here because a variable in the caller would be a reference
  # cycle that keeps the received bytes in memory.
  return form.Refused(
    413,
    f"the request is too large: more than {limits.request / 2**20:g} MiB, or "
    f"more than {limits.classes} classes of {limits.images} images",
  )


def _json(status: int, content: dict | bytes) -> Response:
  text = content if isinstance(content, bytes) else json.dumps(content)
  return Response(text, status=status, content_type="application/json")


def _refusal(status: int, message: str, where: dict | None = None) -> Response:
  text = " ".join(message.split())
  return _json(status, {"error": text, "where": where or {}})


class _Handler(WSGIRequestHandler):
  """A handler that logs nothing and limits the time of each client."""

  server: "Server"  # pyrefly: ignore[bad-override-mutable-attribute]

  def setup(self):
    super().setup()
    self.client = connections.Client(self.connection, self.server.crowd)
    self.rfile = io.BufferedReader(self.client)
    # pyrefly: ignore[bad-assignment]: it has the methods that http.server calls
    self.wfile = self.client

  def handle(self):
    with self.server.crowd.joined(self.client):
      super().handle()

  def parse_request(self) -> bool:
    complete = super().parse_request()
    self.client.head_ended()
    if complete:
      try:
        urlsplit(self.path)  # Werkzeug does the same without catching errors
      except ValueError:
        self.send_error(400, "Bad address")
        return False
    return complete

  def make_environ(self) -> dict:
    return super().make_environ() | {_CLIENT: self.client}

  def send_response(self, code, message=None):
    self.client.answer_begins()
    super().send_response(code, message)

  def log_request(self, code="-", size="-"):
    pass  # the method of Werkzeug would parse the address even so

  def log(self, type, message, *args):
    pass

  def version_string(self) -> str:
    return "deepemd_jax"


class Server(ThreadedWSGIServer):
  """A server on a listening socket, started by its `serve_forever`."""

  def __init__(self, demo: Demo, listening: socket.socket):
    host, port = listening.getsockname()
    super().__init__(host, port, demo, _Handler, fd=listening.fileno())
    memory.return_large_pieces()
    self.crowd = connections.Crowd(
      _MAX_CLIENTS, _MAX_RECEIVED, _MAX_HEAD, _TIMEOUT
    )
