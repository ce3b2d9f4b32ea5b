"""A local hub with one model, which answers requests of `huggingface_hub`."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading

COMMIT = "0123456789" * 4


@contextlib.contextmanager
def serving(repository: str, folder: pathlib.Path):
  """Serves a folder as the repository of a model.

  Yields:
    The hub's address, and a list that gets the path of every request.
  """
  asked: list[str] = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      path, _, _ = self.path.partition("?")
      asked.append(path)
      start, _, name = path.rpartition("/")
      if path == f"/api/models/{repository}/revision/main":
        self._answer(json.dumps({"id": repository, "sha": COMMIT}).encode())
      elif path == f"/api/models/{repository}/tree/{COMMIT}":
        self._answer(json.dumps(list(map(_entry, _files(folder)))).encode())
      elif start == f"/{repository}/resolve/{COMMIT}":
        content = (folder / name).read_bytes()
        self._answer(content, _digest(content))
      else:
        self.send_error(404)

    do_HEAD = do_GET

    def _answer(self, content: bytes, tag: str = ""):
      self.send_response(200)
      if tag:
        self.send_header("ETag", f'"{tag}"')
        self.send_header("X-Repo-Commit", COMMIT)
      self.send_header("Content-Length", str(len(content)))
      self.end_headers()
      if self.command == "GET":
        self.wfile.write(content)

    def log_message(self, *unused):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    try:
      yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
      server.shutdown()


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in folder.iterdir() if path.is_file())


def _digest(content: bytes) -> str:
  return hashlib.sha1(content).hexdigest()


def _entry(path: pathlib.Path) -> dict:
  content = path.read_bytes()
  own = {"oid": _digest(content), "size": len(content)}
  return {"type": "file", "path": path.name} | own
