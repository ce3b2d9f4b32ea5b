"""The page and its answers over HTTP, for one person on this machine.

Werkzeug, because it parses multipart forms within limits, checks hosts and has
a server with threads, which suits work that blocks, in two small packages of
pure Python; Gradio is over fifty, Starlette with uvicorn and python-multipart
six.

Other sites that are open in the same browser can reach 127.0.0.1 too: requests
that name another host, or were started by another site, are refused.
"""

import dataclasses
import json
import pathlib
import socket
import sys
import threading
import traceback

from werkzeug import Response
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.sansio.utils import host_is_trusted
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.data.registry import NODE_KINDS
from deepemd_jax.demo import answer, examples, form
from deepemd_jax.emd.solvers import SOLVERS
from deepemd_jax.errors import InputError

# address -> file and its type; no other file is served.
_PAGE = {
  "/": ("page.html", "text/html; charset=utf-8"),
  "/page.css": ("page.css", "text/css; charset=utf-8"),
  "/page.js": ("page.js", "text/javascript; charset=utf-8"),
  "/result.js": ("result.js", "text/javascript; charset=utf-8"),
}
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_MAX_REQUESTS = 4  # at work or waiting; each may hold its images in memory
_TIMEOUT = 60  # seconds until a client that sends nothing is given up
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

  GET / gives the page; GET /settings what can be chosen, and the limits; GET
  /example?kind=...&seed=... an example. POST /classify takes a form, see
  `form`, and answers as `answer.classify` says. A refusal is {"error": one
  sentence, "where": what it is about}.
  """

  def __init__(self, checkpoint=None, limits: form.Limits | None = None):
    """Loads the checkpoint once, to refuse a wrong one at the start.

    Args:
      checkpoint: as `FewShotClassifier` takes it.
      limits: of one classification; None is the default ones.

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
    """Answers a request, as WSGI has it."""
    request = form.Upload(environ)
    try:
      response = self._answer(request)
    except form.Refused as error:
      response = _refusal(error.status, str(error), error.where)
    except InputError as error:
      response = _refusal(400, str(error))
    except HTTPException as error:
      response = _refusal(error.code or 500, error.description or error.name)
    except Exception:
      traceback.print_exc(file=sys.stderr)
      response = _refusal(500, "the server failed; its terminal says why")
    response.headers.extend(_HEADERS)
    return response(environ, start_response)

  def _answer(self, request: form.Upload) -> Response:
    _check_sender(request)
    path = request.path
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
      return _json(200, _example(request))
    return self._classify(request)

  def _classify(self, request: form.Upload) -> Response:
    limits = self._limits
    too_large = form.Refused(
      413,
      f"this is too much at once: more than {limits.request / 2**20:g} MiB, or "
      f"more than {limits.classes} classes of {limits.images} images",
    )
    if (request.content_length or 0) > limits.request:
      raise too_large
    if not self._places.acquire(blocking=False):
      raise form.Refused(
        503,
        f"{_MAX_REQUESTS} requests are waiting already; try again in a moment",
      )
    try:
      request.max_content_length = limits.request
      request.max_form_parts = limits.parts()
      try:
        request.files  # noqa: B018  reads and parses the body
      except RequestEntityTooLarge as error:
        raise too_large from error
      with self.turn:
        content = form.read(request, limits)
        return _json(200, answer.classify(content, self._checkpoint))
    finally:
      self._places.release()


def _check_sender(request: form.Upload) -> None:
  host = request.headers.get("Host", "")
  if not host_is_trusted(host, _HOSTS):
    raise form.Refused(
      421, "this server answers to 127.0.0.1 and localhost only"
    )
  if request.method != "POST":
    return
  origin = request.headers.get("Origin")
  site = request.headers.get("Sec-Fetch-Site", "same-origin")
  # What browsers do not send, other programs need not.
  if site != "same-origin" or origin not in (None, f"http://{host}"):
    raise form.Refused(403, "a page from another site may not ask for this")


def _example(request: form.Upload) -> dict:
  kind = request.args.get("kind", "")
  seed = request.args.get("seed", type=int)
  if kind not in examples.KINDS or seed is None or not 0 <= seed < 2**32:
    raise form.Refused(
      400,
      f"an example has a kind, one of {', '.join(examples.KINDS)}, and a seed, "
      "0 to 4294967295",
    )
  return examples.make(kind, seed)


def _json(status: int, content: dict) -> Response:
  return Response(
    json.dumps(content), status=status, content_type="application/json"
  )


def _refusal(status: int, message: str, where: dict | None = None) -> Response:
  text = " ".join(message.split())
  return _json(status, {"error": text, "where": where or {}})


class _QuietHandler(WSGIRequestHandler):
  """Logs nothing, and gives up a client that sends nothing."""

  timeout = _TIMEOUT

  def log(self, type, message, *args):
    pass

  def version_string(self) -> str:
    return "deepemd_jax"


def make(demo: Demo, listening: socket.socket) -> BaseWSGIServer:
  """A server on a socket that listens; its `serve_forever` serves."""
  host, port = listening.getsockname()
  return make_server(
    *(host, port, demo),
    threaded=True,
    request_handler=_QuietHandler,
    fd=listening.fileno(),
  )
