"""Downloads from a local server are checked and shared."""

import contextlib
import dataclasses
import hashlib
import http.server
import threading

import fake
import pytest

from deepemd_jax.data.published import catalogue, download, prepare
from deepemd_jax.errors import InputError, MissingData


class Server(http.server.ThreadingHTTPServer):
  """Serves `content` at every address, and counts the requests."""

  daemon_threads = True
  content = b""
  declared = None
  asked = 0


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.server.asked += 1
    if self.server.content is None:
      self.send_error(404)
      return
    length = self.server.declared or len(self.server.content)
    self.send_response(200)
    self.send_header("Content-Length", str(length))
    self.end_headers()
    self.wfile.write(self.server.content)

  def log_message(self, *arguments):
    pass


@pytest.fixture
def server():
  with Server(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def archive(server, content):
  server.content = content
  return catalogue.Archive(
    "archive.tgz",
    f"http://127.0.0.1:{server.server_port}/files/archive.tgz?download=1",
    len(content),
    hashlib.sha256(content).hexdigest(),
    open=True,
  )


def left(directory):
  """Returns the files that a failed download leaves, without its lock."""
  place = download.download_folder(str(directory))
  return [p.name for p in place.iterdir() if p.name != ".lock"]


def quiet(done, total):
  pass


def test_an_archive_is_fetched_once(server, tmp_path):
  wanted = archive(server, b"content" * 1000)
  path = download.fetch(wanted, str(tmp_path), quiet)
  assert path.read_bytes() == server.content
  assert download.fetch(wanted, str(tmp_path), quiet) == path
  assert server.asked == 1


def test_another_content_is_refused_and_removed(server, tmp_path):
  wanted = archive(server, b"content")
  for content in (b"contenT", b"content and more", b""):
    server.content = content
    with pytest.raises(download.FetchError, match="wrong size or checksum"):
      download.fetch(wanted, str(tmp_path), quiet)
    assert left(tmp_path) == []


def test_a_cut_off_or_refused_download_is_refused(server, tmp_path):
  wanted = archive(server, b"content")
  server.declared = 100
  with pytest.raises(download.FetchError):
    download.fetch(wanted, str(tmp_path), quiet)
  server.content = None
  with pytest.raises(download.FetchError, match="404"):
    download.fetch(wanted, str(tmp_path), quiet)
  nobody = dataclasses.replace(wanted, url="http://127.0.0.1:9/archive.tgz")
  with pytest.raises(download.FetchError, match="cannot fetch http://127"):
    download.fetch(nobody, str(tmp_path), quiet)
  assert left(tmp_path) == []


def test_ruins_of_a_killed_download_are_removed(server, tmp_path):
  ruin = download.download_folder(str(tmp_path)) / "archive.tgz.tmp.0123"
  ruin.mkdir(parents=True)
  (ruin / "archive.tgz").write_bytes(b"con")
  download.fetch(archive(server, b"content"), str(tmp_path), quiet)
  assert not ruin.exists()


def test_a_file_put_there_is_taken_if_it_is_the_right_one(server, tmp_path):
  wanted = archive(server, b"content")
  put = download.manual_folder(str(tmp_path)) / "archive.tgz"
  put.parent.mkdir(parents=True)
  put.write_bytes(b"content")
  assert download.fetch(wanted, str(tmp_path), quiet) == put
  put.write_bytes(b"another")
  with pytest.raises(download.FetchError, match=f"remove {put}"):
    download.fetch(wanted, str(tmp_path), quiet)
  assert server.asked == 0 and put.read_bytes() == b"another"


def test_a_data_set_is_downloaded_and_prepared(server, tmp_path):
  content = fake.cub_archive(tmp_path / "x.tgz").read_bytes()
  benchmark = dataclasses.replace(
    fake.small("cub"), archives=(archive(server, content),)
  )
  prepare.prepare(benchmark, str(tmp_path))
  assert prepare.is_ready(benchmark, str(tmp_path)) and server.asked == 1
  full = dataclasses.replace(benchmark, name="cub_full", boxed=False)
  prepare.prepare(full, str(tmp_path))  # uses the same file
  assert server.asked == 1


def test_a_failed_download_is_explained(server, tmp_path):
  benchmark = dataclasses.replace(
    fake.small("cub"), archives=(archive(server, b"content"),)
  )
  server.content = None
  with pytest.raises(MissingData) as refused:
    prepare.prepare(benchmark, str(tmp_path))
  assert "404" in refused.value.lines[0] and len(refused.value.lines) <= 8
  assert not prepare.is_ready(benchmark, str(tmp_path))


def test_progress_counts_the_bytes(tmp_path):
  """Progress is reported while a download is running."""
  place = tmp_path
  seen = []
  arrived = threading.Event()

  def progress(done, total):
    seen.append((done, total))
    arrived.set()

  with contextlib.ExitStack() as stack:
    stack.enter_context(download._report_arrivals(place, 100, progress))
    (place / "x.tmp.1").mkdir()
    (place / "x.tmp.1" / "x").write_bytes(bytes(40))
    assert arrived.wait(5)
  assert seen[-1] == (40, 100)


def test_a_place_that_cannot_be_written_is_refused(server, tmp_path):
  benchmark = dataclasses.replace(
    fake.small("cub"), archives=(archive(server, b"content"),)
  )
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="cannot prepare data in"):
    prepare.prepare(benchmark, str(tmp_path / "file"))
