"""`python -m deepemd_jax.data`: what it prints, and how it ends."""

import importlib
import io
import re
import signal
import subprocess
import sys

import fake
import pytest
from paths import ROOT

from deepemd_jax.data import sources
from deepemd_jax.data.published import catalogue, prepare

command = importlib.import_module("deepemd_jax.data.__main__")


def run(*arguments, code=0, **options):
  done = subprocess.run(
    [sys.executable, "-m", "deepemd_jax.data", *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    **options,
  )
  assert done.returncode == code, done.stderr
  return done


@pytest.fixture
def small_cub(monkeypatch):
  """`cub` with 45 images; its copies are not made, but asked for."""
  made = []

  class Source:
    def __init__(self, name, directory):
      self.name, self.directory = name, directory

    def load(self, split):
      made.append((self.name, self.directory, split))

  monkeypatch.setattr(sources, "BenchmarkSource", Source, raising=False)
  monkeypatch.setitem(catalogue.BENCHMARKS, "cub", fake.small("cub", 5))
  return made


def test_list_shows_every_data_set_at_once(tmp_path):
  done = run("list", "--directory", tmp_path / "none")
  lines = done.stdout.splitlines()
  for benchmark in catalogue.BENCHMARKS.values():
    (line,) = [x for x in lines if x.startswith(f"{benchmark.name}:")]
    assert "not prepared" in line
    assert f"{benchmark.total('test'):,}" in line
  assert any(line.startswith("glyph_clutter") for line in lines)
  assert max(map(len, lines)) <= 100 and done.stderr == ""
  assert not (tmp_path / "none").exists()
  code = (
    "import sys, importlib;"
    "importlib.import_module('deepemd_jax.data.__main__').main(['list']);"
    "print([m for m in ('tensorflow_datasets', 'jax', 'numpy')"
    " if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.stdout.endswith("[]\n"), done.stderr


def test_prepare_makes_the_set_and_its_copies(small_cub, tmp_path, capsys):
  source = fake.cub_archive(tmp_path / "x.tgz", 5)
  directory = str(tmp_path / "tfds")
  prepare = ["prepare", "cub:84", "--directory", directory]
  assert command.main([*prepare, "--from", str(source)]) == 0
  assert small_cub == [
    ("cub:84", directory, split) for split in ("train", "val", "test")
  ]
  out, errors = capsys.readouterr()
  place = prepare.place(catalogue.BENCHMARKS["cub"], directory)
  assert out == f"cub:84 is ready in {place}\n"
  assert errors == f"preparing deepemd_cub in {place}\n"
  # Again: the copies are asked for, nothing else happens.
  assert command.main(prepare) == 0
  assert capsys.readouterr() == (out, "") and len(small_cub) == 6
  assert command.main([*prepare, "--from", str(source)]) == 2
  assert "delete that folder" in capsys.readouterr().err
  assert command.main(["list", "--directory", directory]) == 0
  lines = capsys.readouterr().out.splitlines()
  (line,) = [x for x in lines if x.startswith("cub:160")]
  assert "15/15/15" in line and "ready" in line and "kB" in line


def test_bad_images_are_listed_one_a_line(small_cub, tmp_path, capsys):
  names = [f"{c}/{c[4:]}_0000_7.jpg" for c in fake.all_names("cub")]
  source = fake.cub_archive(
    tmp_path / "x.tgz", 5, change=dict.fromkeys(names, b"no image")
  )
  arguments = ["prepare", "cub", "--directory", str(tmp_path / "tfds")]
  arguments += ["--from", str(source)]
  assert command.main(arguments) == 2
  out, errors = capsys.readouterr()
  lines = errors.splitlines()
  assert out == "" and lines[1:-1] == [f"{n}: not an image" for n in names]
  assert lines[-1] == (
    "deepemd_jax: error: 9 of 45 images cannot be read; repair them, or leave "
    "them out with --skip-bad"
  )
  assert command.main([*arguments, "--skip-bad"]) == 0
  out, _ = capsys.readouterr()
  lines = out.splitlines()
  assert lines[:-1] == [f"left out {name}: not an image" for name in names]
  command.main(["list", "--directory", str(tmp_path / "tfds")])
  assert "ready, 9 bad left out" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "required: command"),
    (["make"], "invalid choice: 'make'"),
    (["prepare"], "required: name"),
    (["prepare", "cubs"], "no data set 'cubs'; did you mean cub"),
    (["prepare", "fc100:84"], "32 pixels wide"),
    (["prepare", "cub", "--from", "/no/file"], "no file or folder '/no/file'"),
    (["prepare", "cub", "--skip"], "unrecognized arguments|ambiguous|no file"),
    (["prepare", "glyph_clutter", "--skip-bad"], "give its name alone"),
    (["list", "all"], "unrecognized arguments: all"),
  ],
)
def test_mistakes_are_one_line(
  arguments, message, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(prepare, "_source", lambda *a: tmp_path / "no file")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  assert command.main(arguments) == 2
  out, errors = capsys.readouterr()
  line = errors.splitlines()[-1]
  assert out == "" and line.startswith("deepemd_jax: error: ")
  assert any(words in line for words in message.split("|"))


def test_missing_data_are_explained_with_exit_code_2(tmp_path):
  done = run("prepare", "miniimagenet", "--directory", tmp_path, code=2)
  lines = done.stderr.splitlines()
  assert lines[0].startswith("deepemd_jax: error: data set miniimagenet is not")
  assert 3 < len(lines) <= 8 and done.stdout == ""
  assert not list(tmp_path.iterdir())


def test_help_is_there():
  assert "prepare" in run("--help").stdout
  assert "--skip-bad" in run("prepare", "--help").stdout


def test_an_interrupt_is_one_line_and_130(tmp_path):
  """Ctrl-C while images are looked at, and nothing is left."""
  source = fake.cub_archive(tmp_path / "x.tgz", 5)
  code = """
import sys, importlib, os, signal
from deepemd_jax.data import pictures
real, seen = pictures.as_rgb_file, []
def interrupted(*arguments):
  seen.append(1)
  if len(seen) == 20:
    os.kill(os.getpid(), signal.SIGINT)
  return real(*arguments)
pictures.as_rgb_file = interrupted
command = importlib.import_module("deepemd_jax.data.__main__")
sys.exit(command.main(sys.argv[1:]))
"""
  process = subprocess.run(
    [sys.executable, "-c", code, "prepare", "cub", "--directory"]
    + [str(tmp_path / "tfds"), "--from", str(source)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 130, process.stderr
  lines = process.stderr.splitlines()
  assert lines[1:] == ["interrupted; nothing half-made is left"]
  left = (tmp_path / "tfds" / "deepemd_cub").iterdir()
  assert [p.name for p in left] == [".lock"]


def test_a_download_can_be_interrupted(tmp_path):
  """A server that never ends: Ctrl-C does, at once."""
  code = """
import http.server, sys, threading, time, dataclasses, importlib
class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.send_response(200)
    self.send_header("Content-Length", "1000000000")
    self.end_headers()
    self.wfile.write(bytes(100000))
    self.wfile.flush()
    print("started", flush=True)
    time.sleep(60)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
from deepemd_jax.data import catalogue
cub = catalogue.BENCHMARKS["cub"]
url = f"http://127.0.0.1:{server.server_port}/x"
archive = dataclasses.replace(cub.archives[0], url=url)
catalogue.BENCHMARKS["cub"] = dataclasses.replace(cub, archives=(archive,))
sys.argv[0] = "deepemd_jax.data"
import runpy
runpy.run_module("deepemd_jax.data", run_name="__main__", alter_sys=True)
"""
  process = subprocess.Popen(
    [sys.executable, "-c", code, "prepare", "cub", "--directory"]
    + [str(tmp_path)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  for line in process.stdout:  # the server's own log goes to stderr
    if line == "started\n":
      break
  process.send_signal(signal.SIGINT)
  out, errors = process.communicate(timeout=20)
  assert process.returncode == 130, errors
  assert errors.splitlines()[-1] == "interrupted; nothing half-made is left"
  place = tmp_path / "downloads" / "deepemd_jax"
  assert [p.name for p in place.iterdir()] == [".lock"]


_LINE = r"[0-9]+ of 1,000 images, (99|100)/s, 0:[0-9]{2} left"


class Terminal(io.StringIO):
  def __init__(self, answer):
    super().__init__()
    self.isatty = lambda: answer


def test_progress_on_a_terminal_is_one_line():
  now = [0.0]
  stream = Terminal(True)
  progress = command.Progress(stream, clock=lambda: now[0])
  for done in range(0, 1001, 10):
    progress("images", done, 1000)
    now[0] += 0.1
  progress.close()
  text = stream.getvalue()
  assert text.count("\n") == 1 and text.endswith("\n")
  lines = [line.rstrip() for line in text.strip().split("\r")]
  assert lines[0] == "20 of 1,000 images, 100/s, 0:10 left"
  assert all(re.fullmatch(_LINE, line) for line in lines)
  assert 30 < len(lines) < 60  # not one for each call


def test_progress_in_a_log_is_a_line_every_ten_seconds():
  now = [0.0]
  stream = Terminal(False)
  progress = command.Progress(stream, clock=lambda: now[0])
  for done in range(0, 10**9 + 1, 10**7):
    progress("bytes", done, 10**9)
    now[0] += 1.0
  progress.close()
  lines = stream.getvalue().splitlines()
  assert len(lines) == 10
  assert lines[4] == "500.0 MB of 1.0 GB, 10.0 MB/s, 0:50 left"
