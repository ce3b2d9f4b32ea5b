"""Tests of what the server serves, to whom, and who has to wait."""

import base64
import io
import json
import re
import shutil
import socket
import struct
import threading
import time

import pytest
from forms import ask, classify, encode, fields, serving, start, until
from PIL import Image

from deepemd_jax.demo import command, server


def test_only_the_page_is_served(port):
  for path, kind in (
    ("/", "text/html; charset=utf-8"),
    ("/page.css", "text/css; charset=utf-8"),
    ("/page.js", "text/javascript; charset=utf-8"),
    ("/result.js", "text/javascript; charset=utf-8"),
  ):
    status, headers, content = ask(port, "GET", path)
    assert status == 200 and headers["Content-Type"] == kind
    assert not re.search(rb"(src|href)=.?(https?:|//)|@import|url\(", content)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ask(port, "HEAD", path)[2] == b""
  for path in (
    *("/page.html", "/server.py", "/../server.py", "/..%2fserver.py"),
    *(
      "//etc/passwd",
      "/%2e%2e/%2e%2e/etc/passwd",
      "/page.css/",
      "/favicon.ico",
    ),
    *(r"/..\server.py", "/page.js%00.html"),
  ):
    status, _, content = ask(port, "GET", path)
    assert status == 404, (path, content)
  assert ask(port, "GET", "http://evil.example/")[0] == 421
  assert ask(port, "POST", "/")[0] == 405
  assert ask(port, "GET", "/classify")[0] == 405


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80"])
def test_other_hosts_are_refused(port, host):
  """A name that was rebound to 127.0.0.1 would send such a host."""
  for method, path in (("GET", "/"), ("GET", "/example"), ("POST", "/x")):
    status, _, content = ask(port, method, path, host=host)
    assert status == 421 and b"127.0.0.1 and localhost only" in content


def test_other_sites_are_refused(port):
  for headers in (
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Origin": f"https://127.0.0.1:{port}"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
  ):
    status, found = classify(port, fields(), **headers)
    assert status == 403 and "another site" in found["error"], headers
    for path in ("/example?kind=one&seed=1", "/settings"):
      status, _, content = ask(port, "GET", path, headers=headers)
      assert status == 403 and b"another site" in content, (path, headers)
    # Other sites may link to the page itself.
    assert ask(port, "GET", "/", headers=headers)[0] == 200
  ours = {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}
  assert classify(port, fields(), **ours)[0] == 200
  assert ask(port, "GET", "/example?kind=one&seed=1", headers=ours)[0] == 200
  # A port that ssh forwards may have another number in the browser.
  tunnel = {"Host": "localhost:9999", "Origin": "http://localhost:9999"}
  assert classify(port, fields(), **tunnel)[0] == 200


def test_each_waits_its_turn(demo, port):
  assert classify(port, fields())[0] == 200  # compiles the programs
  found = []
  with demo.turn:
    threads = [
      threading.Thread(target=lambda: found.append(classify(port, fields())))
      for _ in range(4)
    ]
    for thread in threads:
      thread.start()
    until(lambda: not demo._places._value)
    status, refusal = classify(port, fields())
    assert status == 503 and "4 requests are waiting" in refusal["error"]
    # Requests for the page do not wait.
    assert ask(port, "GET", "/settings")[0] == 200
    time.sleep(1)
    assert not found
  for thread in threads:
    thread.join(60)
  assert [status for status, _ in found] == [200] * 4
  assert classify(port, fields())[0] == 200


def test_clients_that_leave(port, capsys):
  body, headers = encode(fields())
  for _ in range(5):
    with socket.create_connection((command.HOST, port)) as left:
      left.sendall(b"POST /classify HTTP/1.1\r\nHost: ")
    start(port, headers, len(body), body[:500]).close()
  for _ in range(3):
    with start(port, headers, len(body), body) as left:
      # The client closes at once, with a reset.
      left.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
      )
  # The requests of these clients may still be running.
  until(lambda: classify(port, fields())[0] != 503)
  assert classify(port, fields())[0] == 200
  assert capsys.readouterr().err == ""


def test_a_checkpoint_that_vanishes(run, tmp_path):
  run = shutil.copytree(run, tmp_path / "run")
  with serving(server.Demo(run)) as port:
    run.rename(tmp_path / "away")
    status, found = classify(port, fields())
    assert status == 400 and "is not the workdir of a run" in found["error"]
    (tmp_path / "away").rename(run)
    assert classify(port, fields())[0] == 200


def test_a_failure_is_told(demo, port, monkeypatch, capsys):
  monkeypatch.setattr(server.answer, "classify", lambda *_: 1 / 0)
  status, found = classify(port, fields())
  assert status == 500 and "its terminal shows the error" in found["error"]
  assert "ZeroDivisionError" in capsys.readouterr().err


def test_examples(port):
  _, _, content = ask(port, "GET", "/settings")
  for kind, shots in zip(
    json.loads(content)["examples"], (1, 1, 5, 5), strict=True
  ):
    _, _, content = ask(port, "GET", f"/example?kind={kind}&seed=3")
    found = json.loads(content)
    assert len({row["name"] for row in found["classes"]}) == 5
    files = [image for row in found["classes"] for image in row["images"]]
    assert len(set(files)) == 5 * shots and found["query"] not in files
    for file in (*files, found["query"]):
      image = Image.open(io.BytesIO(base64.b64decode(file)))
      side = 224 if kind == "photographs" else 64
      assert image.size == (side, side)
    assert 0 <= found["truth"] < 5
    again = ask(port, "GET", f"/example?kind={kind}&seed=3")[2]
    assert again == content
    assert ask(port, "GET", f"/example?kind={kind}&seed=4")[2] != content
  for query in (
    "",
    "?kind=one",
    "?kind=x&seed=1",
    "?kind=one&seed=-1",
    "?kind=one&seed=20",
  ):
    status, _, content = ask(port, "GET", f"/example{query}")
    assert status == 400 and b"give kind, one of" in content


def test_each_example_is_made_once(port, monkeypatch):
  """This holds if several clients request it at the same time."""
  examples = server.examples
  made, make = [], examples.make

  def slowly(*arguments):
    made.append(arguments)
    time.sleep(0.3)
    return make(*arguments)

  monkeypatch.setattr(examples, "make", slowly)
  examples._text.cache_clear()
  found = []
  path = "/example?kind=one&seed=7"
  threads = [
    threading.Thread(target=lambda: found.append(ask(port, "GET", path)))
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert ask(port, "GET", path)[2] == found[0][2]
  assert len({content for _, _, content in found}) == 1 and len(found) == 4
  assert made == [("one", 7)]
