"""The demo: a real server, real forms, and a real browser."""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib

import chromium
import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from recipes import tiny_run
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from deepemd_jax import FewShotClassifier
from deepemd_jax.demo import __main__ as command
from deepemd_jax.demo import form, server

LIMITS = form.Limits(
  file=600_000,
  request=1_500_000,
  classes=4,
  images=3,
  name=30,
  pixels=90_000,
  all_pixels=100_000,
)
RED, BLUE = (200, 40, 40), (40, 40, 200)
TRICK = "<script>alert(1)</script>"


def png(color, seed=0, size=(24, 30)) -> bytes:
  rng = np.random.default_rng(seed)
  pixels = np.array(color) + rng.integers(-30, 30, (*size, 3))
  file = io.BytesIO()
  Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "PNG")
  return file.getvalue()


def bomb(side: int) -> bytes:
  """A PNG of few bytes that says it has side x side pixels."""
  chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),)
  chunks += ((b"IDAT", zlib.compress(bytes(99))), (b"IEND", b""))
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(content))
    + kind
    + content
    + struct.pack(">I", zlib.crc32(kind + content))
    for kind, content in chunks
  )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """With 16 cells a map: more pairs than the page shows at first."""
  image = {"size": 64, "crop": "whole", "flip": True}
  return tiny_run(tmp_path_factory.mktemp("runs") / "run", image=image)


@contextlib.contextmanager
def serving(demo):
  """The port of a server."""
  with socket.create_server((command.HOST, 0)) as listening:
    made = server.make(demo, listening)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield listening.getsockname()[1]
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(scope="module")
def demo(run):
  return server.Demo(run, LIMITS)


@pytest.fixture(scope="module")
def port(demo):
  with serving(demo) as found:
    yield found


def ask(port, method, path, body=None, headers=(), host=None):
  """Status, headers, and content of the answer."""
  connection = http.client.HTTPConnection(command.HOST, port, timeout=60)
  with contextlib.closing(connection):
    host = host or f"127.0.0.1:{port}"
    connection.request(method, path, body, {"Host": host, **dict(headers)})
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def fields(names=("red", "blue"), **changes):
  """A form that is right, but for the changes; None leaves a field out."""
  found = {
    "name": list(names),
    "support0": [(png(RED, 1), "a.png")],
    "support1": [(png(BLUE, 2), "b.png")],
    "query": [(png(RED, 3), "q.png")],
    **changes,
  }
  return {k: v for k, v in found.items() if v is not None}


def encode(values):
  """The body and headers of a form."""
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


def opened(url: str) -> Image.Image:
  content = base64.b64decode(url.removeprefix("data:image/png;base64,"))
  return Image.open(io.BytesIO(content))


def test_classified_as_the_classifier_does(port, run):
  images = [png(BLUE, 1), png(BLUE, 2), png(RED, 3), png((20, 200, 20), 4)]
  support = [[(images[0], "1.png"), (images[1], "1.png")]]
  support += [[(images[2], "2.png")], [(images[3], "3.png")]]
  values = fields(
    ["sky", TRICK, "a  b "],
    **{f"support{k}": files for k, files in enumerate(support)},
    query=[(png(RED, 9, (40, 20)), "q.png")],
    variant=["grid"],
    solver=["interior_point"],
  )
  status, found = classify(port, values)
  assert status == 200, found
  decoded = [Image.open(io.BytesIO(image)) for image in images]
  classifier = FewShotClassifier(run, "grid", "interior_point")
  classifier.fit(decoded, [0, 0, 1, 2])
  query = Image.open(io.BytesIO(values["query"][0][0]))
  (expected,) = classifier.predict_proba([query])
  rows = found["classes"]
  np.testing.assert_allclose([r["probability"] for r in rows], expected, 1e-4)
  assert [r["name"] for r in rows] == ["sky", TRICK, "a b"]
  assert [r["images"] for r in rows] == [2, 1, 1]
  assert found["predicted"] == expected.argmax()
  assert found["facts"]["variant"] == "grid, 4 nodes"
  assert found["facts"]["solver"] == "InteriorPoint"
  assert opened(found["query"]).size == (20, 40)
  for row in rows:
    total = sum(pair["contribution"] for pair in row["pairs"])
    assert total + row["remainder"] == pytest.approx(row["logit"], abs=1e-4)
    assert abs(row["remainder"]) < 1e-2
    assert (row["query"]["width"], row["query"]["height"]) == (20, 40)
    assert opened(row["support"]["picture"]).size == (30, 24)
    plain = np.asarray(opened(found["query"]), int)
    weighted = np.asarray(opened(row["query"]["weighted"]), int)
    assert (weighted <= plain).all() and weighted.sum() < plain.sum()


TEXT = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
CASES = [
  (dict(name=["red"], support1=None), 400, "at least two classes", {}),
  (dict(name=None), 400, "at least two classes", {}),
  (dict(name=["red", "  "]), 400, "class 2 has no name", {"class": 1}),
  (dict(name=["x", "x "]), 400, "two classes are called “x”", {"class": 1}),
  (dict(name=["r", "b" * 31]), 400, "31 characters; at most 30", {"class": 1}),
  (dict(name=list("abcde")), 413, "5 classes; at most 4", {}),
  (dict(support1=None), 400, "“blue” has no image", {"class": 1}),
  (
    dict(support0=[(png(RED), "a.png")] * 4),
    *(413, "4 images of “red”; at most 3", {"class": 0}),
  ),
  (
    dict(support7=[(png(RED), "a.png")]),
    *(400, "no class for the files “support7”", {}),
  ),
  (dict(query=None), 400, "add a query", {"query": True}),
  (
    dict(query=[(png(RED), "a.png")] * 2),
    *(400, "2 queries; give one", {"query": True}),
  ),
  (
    dict(support0=[(png(RED), "a.png"), (TEXT, "b.png")]),
    *(415, "“b.png” cannot be read: not an image", {"class": 0, "image": 1}),
  ),
  (
    dict(query=[(b"", "no.png")]),
    *(415, "“no.png” cannot be read: an empty file", {"query": True}),
  ),
  (
    dict(query=[(png(RED)[:400], "cut.png")]),
    *(415, "“cut.png” cannot be read: ", {"query": True}),
  ),
  (
    dict(query=[(png(RED) + bytes(600_000), "long.png")]),
    *(413, "“long.png” has 0.6 MiB; at most 0.57", {"query": True}),
  ),
  (
    dict(query=[(bomb(400), "wide.png")]),
    *(413, "has 400 x 400 pixels; at most 0.09 million", {"query": True}),
  ),
  (
    dict(query=[(bomb(60_000), "bomb.png")]),
    *(413, "“bomb.png”: .*bomb", {"query": True}),
  ),
  (
    dict(
      support0=[(png(RED, 0, (250, 250)), "a.png")],
      query=[(png(RED, 0, (250, 250)), "b.png")],
    ),
    *(413, "up to “b.png” have more than 0.1 million", {"query": True}),
  ),
  (dict(variant=["voc"]), 400, "variant is 'voc'; use one of fcn", {}),
  (dict(solver=["voc"]), 400, "solver is 'voc'; use one of auto", {}),
  (
    dict(query=[(TEXT, "../../etc/pass\x1b[2J\u202ewd.png")]),
    *(415, "“../../etc/pass\ufffd\\[2J\ufffdwd.png” cannot", {"query": True}),
  ),
  (
    dict(support0=[(TEXT, f"/etc/{'a' * 99}")]),
    *(415, "“/etc/a+…” cannot be read", {"class": 0, "image": 0}),
  ),
]


@pytest.mark.parametrize(
  ("changes", "status", "message", "where"),
  CASES,
  ids=[case[2] for case in CASES],
)
def test_refused(port, changes, status, message, where):
  got, found = classify(port, fields(**changes))
  assert (got, found["where"]) == (status, where), found
  assert re.search(message, found["error"]) and "\n" not in found["error"]


def test_names_of_files_are_no_paths(port, tmp_path, monkeypatch):
  """Files that exist are neither read nor written, and nothing is kept: a
  temporary file would be refused."""
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
  victim = tmp_path / "victim.png"
  victim.write_bytes(b"precious")
  monkeypatch.chdir(tmp_path)
  # Usually files above 500 kB are parsed onto the disk.
  padded = png(RED) + bytes(550_000)
  values = fields(
    support0=[(padded, str(victim))], query=[(padded, "../victim.png")]
  )
  status, found = classify(port, values)
  assert status == 200 and found["predicted"] == 0
  assert [p.name for p in tmp_path.iterdir()] == ["victim.png"]
  assert victim.read_bytes() == b"precious"


def test_too_much_at_once(port):
  values = fields(support0=[(bytes(590_000), "a.png")] * 3)
  status, found = classify(port, values)
  assert status == 413 and "more than 1.43051 MiB" in found["error"]
  body, headers = encode(values)
  chunks = (body[i : i + 9999] for i in range(0, len(body), 9999))
  status, _, content = ask(port, "POST", "/classify", chunks, headers)
  assert status == 413 and b"too much" in content
  values = fields(support0=[(b"", f"{i}.png") for i in range(10_000)])
  status, found = classify(port, values)
  assert status == 413 and "4 classes of 3 images" in found["error"]
  values = fields(support0=[(b"", f"{i}.png") for i in range(20)])
  status, found = classify(port, values)
  assert status == 413 and "4 classes of 3 images" in found["error"]


def test_no_form(port):
  for headers, body, status in (
    ({"Content-Type": "application/json"}, b"{}", 415),
    ({}, b"", 415),
    ({"Content-Type": "multipart/form-data"}, b"x", 400),
    ({"Content-Type": "multipart/form-data; boundary=a"}, b"--a\r\nb", 400),
  ):
    got, _, content = ask(port, "POST", "/classify", body, headers)
    assert got == status and json.loads(content)["error"], content


def test_only_the_page_is_served(port):
  for path, kind in (
    ("/", "text/html; charset=utf-8"),
    ("/page.css", "text/css; charset=utf-8"),
    ("/page.js", "text/javascript; charset=utf-8"),
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
  """What a name that was bound anew to 127.0.0.1 would send."""
  for method, path in (("GET", "/"), ("GET", "/settings"), ("POST", "/x")):
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
  ):
    status, found = classify(port, fields(), **headers)
    assert status == 403 and "another site" in found["error"], headers
  ours = {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}
  assert classify(port, fields(), **ours)[0] == 200
  # A port that ssh forwards may have another number here.
  tunnel = {"Host": "localhost:9999", "Origin": "http://localhost:9999"}
  assert classify(port, fields(), **tunnel)[0] == 200


def until(holds):
  end = time.monotonic() + 60
  while not holds():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_each_waits_its_turn(demo, port):
  assert classify(port, fields())[0] == 200  # programs are compiled
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
    # The page itself does not wait.
    assert ask(port, "GET", "/settings")[0] == 200
    time.sleep(1)
    assert not found
  for thread in threads:
    thread.join(60)
  assert [status for status, _ in found] == [200] * 4
  assert classify(port, fields())[0] == 200


def test_clients_that_leave(port, capsys):
  body, headers = encode(fields())
  head = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
  head += f"Content-Type: {headers['Content-Type']}\r\n"
  head += f"Content-Length: {len(body)}\r\n\r\n"
  for sent in (head[:30].encode(), head.encode() + body[:500]):
    for _ in range(5):
      with socket.create_connection((command.HOST, port)) as left:
        left.sendall(sent)
  for _ in range(3):
    with socket.create_connection((command.HOST, port)) as left:
      left.sendall(head.encode() + body)
      # Away at once, with a reset.
      left.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
      )
  # Those that left may be at work still.
  until(lambda: classify(port, fields())[0] != 503)
  assert classify(port, fields())[0] == 200
  assert capsys.readouterr().err == ""


def test_clients_that_fall_silent(demo, port, monkeypatch):
  """They do not keep a place for ever."""
  assert 0 < server._Quiet.timeout <= 60
  monkeypatch.setattr(server._Quiet, "timeout", 0.3)
  body, headers = encode(fields())
  head = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
  head += f"Content-Type: {headers['Content-Type']}\r\n"
  head += f"Content-Length: {len(body)}\r\n\r\n"
  with contextlib.ExitStack() as silent:
    for _ in range(4):
      address = (command.HOST, port)
      client = silent.enter_context(socket.create_connection(address))
      client.sendall(head.encode() + body[:500])
    until(lambda: not demo._places._value)
    assert classify(port, fields())[0] == 503
    until(lambda: demo._places._value == 4)
    assert classify(port, fields())[0] == 200


def test_a_checkpoint_that_vanishes(tmp_path):
  run = tiny_run(tmp_path / "run")
  with serving(server.Demo(run)) as port:
    run.rename(tmp_path / "away")
    status, found = classify(port, fields())
    assert status == 400 and "is not the workdir of a run" in found["error"]
    (tmp_path / "away").rename(run)
    assert classify(port, fields())[0] == 200


def test_a_failure_is_told(demo, port, monkeypatch, capsys):
  monkeypatch.setattr(server.answer, "classify", lambda *_: 1 / 0)
  status, found = classify(port, fields())
  assert status == 500 and "its terminal says why" in found["error"]
  assert "ZeroDivisionError" in capsys.readouterr().err


def test_examples(port):
  _, _, content = ask(port, "GET", "/settings")
  for kind, shots in zip(
    json.loads(content)["examples"], (1, 5, 5), strict=True
  ):
    _, _, content = ask(port, "GET", f"/example?kind={kind}&seed=3")
    found = json.loads(content)
    assert len({row["name"] for row in found["classes"]}) == 5
    files = [image for row in found["classes"] for image in row["images"]]
    assert len(set(files)) == 5 * shots and found["query"] not in files
    for file in (*files, found["query"]):
      image = Image.open(io.BytesIO(base64.b64decode(file)))
      assert image.size == (64, 64)
    assert 0 <= found["truth"] < 5
    again = ask(port, "GET", f"/example?kind={kind}&seed=3")[2]
    assert again == content
    assert ask(port, "GET", f"/example?kind={kind}&seed=4")[2] != content
  for query in ("", "?kind=one", "?kind=x&seed=1", "?kind=one&seed=-1"):
    status, _, content = ask(port, "GET", f"/example{query}")
    assert status == 400 and b"an example has a kind" in content


def test_the_command(run, tmp_path):
  """Says where it is, opens a browser there, serves, and ends with one line at
  Ctrl-C."""
  browser = tmp_path / "browser"
  browser.write_text(
    f"#!/bin/sh\ncd {tmp_path} && echo $1 > new && mv new asked\n"
  )
  browser.chmod(0o755)
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "deepemd_jax.demo"),
      *(f"--checkpoint={run}", "--port=0"),
    ],
    cwd=ROOT,
    env=os.environ | {"DISPLAY": ":0", "BROWSER": f"{browser} %s"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    line = process.stdout.readline()
    (port,) = re.fullmatch(
      r"the demo is at http://127\.0\.0\.1:(\d+) \(Ctrl-C ends it\)\n", line
    ).groups()
    until((tmp_path / "asked").exists)
    assert b"<h1>DeepEMD" in ask(int(port), "GET", "/")[2]
    # On this machine only: another address of it is not listened on.
    with pytest.raises(OSError):
      socket.create_connection(("127.0.0.2", int(port)), 1).close()
    asked = (tmp_path / "asked").read_text()
    assert asked == f"http://127.0.0.1:{port}\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=10)
  finally:
    process.kill()
  assert process.returncode == 130 and out == ""
  assert errors.strip() == "interrupted; nothing was written"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--port=65536"], "--port is 65536; use 0 to 65535"),
    (["--port=x"], "invalid int value: 'x'"),
    (["--host=0.0.0.0"], "unrecognized arguments: --host=0.0.0.0"),
    (["--port=TAKEN"], "cannot listen on port .* in use; name"),
    (["--port=0", "--checkpoint=absent"], "'absent' is not the workdir"),
  ],
)
def test_mistakes(arguments, message, capsys):
  with socket.create_server((command.HOST, 0)) as taken:
    port = str(taken.getsockname()[1])
    code = command.main([a.replace("TAKEN", port) for a in arguments])
  out, errors = capsys.readouterr()
  assert code == 2 and out == ""
  assert re.match(f"deepemd_jax: error: .*{message}", errors), errors
  assert errors.count("\n") == 1


def test_mistakes_are_told_before_jax_is_loaded():
  code = (
    "import socket, sys; from deepemd_jax.demo import __main__ as d\n"
    "s = socket.create_server(('127.0.0.1', 0))\n"
    "print(d.main(['--port=x']), d.main([f'--port={s.getsockname()[1]}']), "
    "[m for m in ('jax', 'flax', 'orbax', 'werkzeug') if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
  )
  assert done.stdout.strip() == "2 2 []", done.stdout + done.stderr


@pytest.fixture(scope="module")
def tab(port, tmp_path_factory):
  if chromium.path() is None:
    pytest.skip("no Chromium or Chrome here (apt-get install chromium)")
  with chromium.started(tmp_path_factory.mktemp("chromium")) as found:
    found.port = port
    yield found


@pytest.fixture
def page(tab):
  """The page, newly opened; it must not ask for anything from elsewhere."""
  tab.problems.clear()
  tab.addresses.clear()
  tab.size(1280, 900)
  tab.open(f"http://127.0.0.1:{tab.port}/")
  tab.wait("document.querySelectorAll('.card').length === 3")
  yield tab
  assert [p for p in tab.problems if "Uncaught" in p or "dialog" in p] == []
  here = (f"http://127.0.0.1:{tab.port}/", "blob:", "data:")
  assert [a for a in tab.addresses if not a.startswith(here)] == []


RESULT = "!document.getElementById('result').hidden"
ERROR = "document.getElementById('error').textContent !== ''"


def by_id(name):
  return f"document.getElementById('{name}')"


def all_of(selector):
  return f"document.querySelectorAll({json.dumps(selector)})"


def text(page, selector):
  return page.evaluate(f"document.querySelector('{selector}').textContent")


def colors(file) -> int:
  with Image.open(file) as image:
    return len(set(image.convert("RGB").get_flattened_data()))


def test_click_through(page, tmp_path):
  """An example, classified; the matches of two classes; the sums."""
  page.screenshot(tmp_path / "before.png")
  page.click(all_of("#examples button") + "[0]")
  page.wait(all_of("#classes .card") + ".length === 5")
  loaded = f"[...{all_of('.thumbs img')}].every(i => i.naturalWidth === 64)"
  page.wait(f"{all_of('.thumbs img')}.length === 6 && {loaded}")
  # This server takes four classes; remove one that is not the query's.
  page.click(by_id("classify"))
  page.wait(ERROR)
  assert "5 classes; at most 4" in text(page, "#error")
  page.click(all_of("#classes .card .name .remove") + "[0]")
  page.wait(all_of("#classes .card") + ".length === 4")
  page.click(by_id("classify"))
  page.wait(RESULT)
  assert page.evaluate(by_id("working") + ".hidden")
  shares = page.evaluate(
    f"[...{all_of('#scores .score .n:nth-of-type(2)')}]"
    ".map(e => parseFloat(e.textContent))"
  )
  assert len(shares) == 4 and sum(shares) == pytest.approx(100, abs=0.3)
  verdict = text(page, "#verdict")
  assert f"{max(shares):.1f} %" in verdict
  assert text(page, "#verdict b") == text(page, ".score:has(:checked) b")

  sums = (
    f"[...{all_of('#pairs tr, #sums tr')}].map(r => "
    "parseFloat(r.cells[r.cells.length - 2].textContent.replace('−', '-')))"
  )
  *parts, total = page.evaluate(sums)
  assert sum(parts) == pytest.approx(total, abs=0.06)
  assert page.evaluate(all_of("#match image") + ".length") == 4
  assert page.evaluate(all_of("#match .flow") + ".length") == 2 * min(
    8, len(parts)
  )
  assert page.evaluate(all_of("#pairs tr") + ".length") == 10
  page.click(by_id("all"))
  *every, again = page.evaluate(sums)
  assert len(every) > 11 and again == total
  assert sum(every) == pytest.approx(total, abs=0.005 * len(every) + 0.005)
  assert every[:10] == parts[:10]
  page.hover(all_of("#pairs tr") + "[1]")
  page.wait(all_of("#match .lit rect") + ".length === 4")

  other = page.evaluate(
    f"[...{all_of('#scores input')}].findIndex(i => !i.checked)"
  )
  page.click(all_of("#scores .score") + f"[{other}]")
  page.wait(
    f"{by_id('matched')}.textContent === "
    f"{all_of('#scores b')}[{other}].textContent"
  )
  *parts, changed = page.evaluate(sums)
  assert sum(parts) == pytest.approx(changed, abs=0.06) and changed != total

  page.screenshot(tmp_path / "after.png")
  assert colors(tmp_path / "after.png") > 2000
  assert colors(tmp_path / "after.png") > 4 * colors(tmp_path / "before.png")
  page.size(390, 844, phone=True)
  assert page.evaluate("document.documentElement.scrollWidth") <= 390
  page.screenshot(tmp_path / "phone.png")
  # The refusal above is a line in the console, and the only one.
  assert len(page.problems) == 1 and "413" in page.problems[0]


def test_own_files(page, tmp_path):
  """Dropped and removed; mistakes told where they are; a name that tricks."""
  for name, content in (
    ("red.png", png(RED, 1)),
    ("blue.png", png(BLUE, 2)),
    ("query.png", png(RED, 3)),
    ("text.png", TEXT),
    ("large.png", bytes(600_001)),
    ("<img src=x onerror=alert(2)>.png", png(BLUE, 4)),
  ):
    (tmp_path / name).write_bytes(content)
  cards = all_of("#classes .card")
  page.click(f"{cards}[0].querySelector('input[type=text]')")
  page.evaluate("document.activeElement.select()")
  page.write(TRICK)
  page.drop(f"{cards}[0]", [tmp_path / "red.png", tmp_path / "text.png"])
  page.drop(f"{cards}[1]", [tmp_path / "blue.png", tmp_path / "large.png"])
  page.wait(all_of(".thumbs li") + ".length === 3")
  message = f"{cards}[1].querySelector('.error').textContent"
  assert page.evaluate(message) == (
    "“large.png” has 0.6 MiB; at most 0.6 are taken."
  )
  page.drop("document.querySelector('#query .card')", [tmp_path])
  assert text(page, "#query .error") == "Drop images, not a folder."
  # Beside the cards a file does nothing.
  page.drop("document.querySelector('h1')", [tmp_path / "red.png"])

  page.click(by_id("classify"))
  page.wait(ERROR)
  assert text(page, "#query .error") == "Add a query."
  page.drop("document.querySelector('#query .card')", [tmp_path / "query.png"])
  page.wait(all_of("#query li") + ".length === 1")
  assert text(page, "#error") == text(page, "#query .error") == ""
  page.click(by_id("classify"))
  page.wait(ERROR)
  assert text(page, "#classes .error") == (
    "“text.png” cannot be read: not an image."
  )
  assert page.evaluate(all_of("li.bad .file") + "[0].textContent") == "text.png"
  page.click("document.querySelector('li.bad .remove')")
  page.drop(f"{cards}[1]", [tmp_path / "<img src=x onerror=alert(2)>.png"])
  page.wait(all_of(".thumbs li") + ".length === 4")
  page.click(by_id("classify"))
  page.wait(RESULT)
  assert text(page, "#verdict b") == TRICK == text(page, "#matched")
  assert page.evaluate("document.scripts.length") == 1
  assert page.evaluate(by_id("stale") + ".hidden")
  page.click("document.querySelector('#query .remove')")
  assert not page.evaluate(by_id("stale") + ".hidden")


def test_keys_alone(page):
  """Tab and Enter reach the example and the button; Tab lights the pairs."""

  def focus():
    page.press("Tab", 9)
    return page.evaluate("document.activeElement.textContent.trim()")

  assert focus() == "1 image a class"
  page.press("Enter", 13)
  page.wait(all_of("#classes .card") + ".length === 5")
  page.evaluate(all_of(".name .remove") + "[4].focus()")
  page.press("Enter", 13)
  for _ in range(40):
    if focus() == "Classify":
      break
  page.press("Enter", 13)
  page.wait(RESULT)
  # The focus is on the result: next is the chosen class, then the first pair.
  assert page.evaluate("document.activeElement.id") == "result"
  focus()
  chosen = page.evaluate("document.activeElement.checked")
  focus()
  assert chosen and page.evaluate("document.activeElement.tagName") == "TR"
  assert page.evaluate(all_of(".lit rect") + ".length") == 4


def test_canceled(page, demo):
  page.click(all_of("#examples button") + "[0]")
  page.wait(all_of("#classes .card") + ".length === 5")
  page.click(all_of("#classes .card .name .remove") + "[4]")
  with demo.turn:
    page.click(by_id("classify"))
    page.wait(f"!{by_id('working')}.hidden")
    assert page.evaluate(by_id("classify") + ".disabled")
    page.click(by_id("cancel"))
    page.wait("document.getElementById('status').textContent === 'Canceled.'")
  assert page.evaluate(by_id("result") + ".hidden")
  page.click(by_id("classify"))
  page.wait(RESULT)


def test_a_server_that_ended(page, run):
  with serving(server.Demo(run)) as port:
    page.open(f"http://127.0.0.1:{port}/")
    page.wait("document.querySelectorAll('.card').length === 3")
  page.click(by_id("classify"))
  page.wait(ERROR)
  assert "does not answer" in text(page, "#error")
  page.addresses.clear()
