"""Tests of what `python -m deepemd_jax data` prints and refuses."""

import argparse
import dataclasses
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

import crashes
import fake
import forked
import pytest
from paths import ROOT

from deepemd_jax.data import image_io, published_source, registry
from deepemd_jax.data.published import (
  archives,
  authenticity,
  catalogue,
  checks,
  command,
  prepare,
)
from deepemd_jax.errors import InputError, MissingData


class Parser(argparse.ArgumentParser):
  """A parser that raises errors like the parser of the command."""

  def error(self, message):
    raise InputError(message)


def run(*arguments):
  """Returns the text that the command prints at its end."""
  parser = Parser()
  command.add_arguments(parser)
  return command.run(parser.parse_args(list(map(str, arguments))))


@pytest.fixture
def small_cub(monkeypatch):
  """`cub` with 45 images; requests for copies are only recorded."""
  made = []

  class Source:
    def __init__(self, name, directory):
      self.name = self.protocol = name
      self.directory = directory

    def load(self, split):
      made.append((self.name, self.directory, split))

  monkeypatch.setattr(published_source, "PublishedSource", Source)
  monkeypatch.setitem(catalogue.BENCHMARKS, "cub", fake.small("cub", 5))
  return made


def test_list_shows_every_data_set_at_once(tmp_path, capfd):
  lines = run("list", "--directory", tmp_path / "none").splitlines()
  for benchmark in catalogue.BENCHMARKS.values():
    (line,) = [x for x in lines if x.startswith(f"{benchmark.name}:")]
    assert "not prepared" in line
    assert f"{benchmark.total('test'):,}" in line
  for name, entry in registry.DATA_SETS.items():
    assert any(x.startswith(f"  {name}: {entry.title[:20]}") for x in lines)
  assert any(line.startswith("glyph_clutter") for line in lines)
  assert max(map(len, lines)) <= 100 and capfd.readouterr() == ("", "")
  assert not (tmp_path / "none").exists()


def test_prepare_makes_the_set_and_its_copies(small_cub, tmp_path, capfd):
  source = fake.cub_archive(tmp_path / "x.tgz", 5)
  directory = str(tmp_path / "tfds")
  cub = ["prepare", "cub:20", "--directory", directory]
  text = run(*cub, "--from", source)
  assert small_cub == [
    ("cub:20", directory, split) for split in ("train", "val", "test")
  ]
  place = prepare.prepared_folder(catalogue.BENCHMARKS["cub"], directory)
  title = catalogue.BENCHMARKS["cub"].title
  assert text == (
    f"{title}; made from x.tgz (not the official file)\n"
    f"cub:20 is ready in {place}"
  )
  assert capfd.readouterr() == ("", f"preparing deepemd_cub in {place}\n")
  # The second time only the copies are requested.
  assert run(*cub) == text
  assert capfd.readouterr() == ("", "") and len(small_cub) == 6
  with pytest.raises(InputError, match="delete that folder"):
    run(*cub, "--from", source)
  lines = run("list", "--directory", directory).splitlines()
  (line,) = [x for x in lines if x.startswith("cub:16 ")]
  assert "15/15/15" in line and "ready" in line and "kB" in line


def test_the_official_archive_is_told_from_others(
  small_cub, tmp_path, monkeypatch
):
  source = fake.cub_archive(tmp_path / "x.tgz", 5)
  content = source.read_bytes()
  official = dataclasses.replace(
    catalogue.BENCHMARKS["cub"].archives[0],
    size=len(content),
    sha256=hashlib.sha256(content).hexdigest(),
  )
  cub = dataclasses.replace(catalogue.BENCHMARKS["cub"], archives=(official,))
  monkeypatch.setitem(catalogue.BENCHMARKS, "cub", cub)
  other = tmp_path / "other.tgz"
  other.write_bytes(content[:-1] + b"?")  # has the same size
  unpacked = fake.unpack(fake.cub_files(5), tmp_path / "unpacked")
  fake.unpack({official.file: content}, tmp_path / "given")
  for number, (path, words) in enumerate(
    [
      (source, "x.tgz (official, SHA-256 agrees)"),
      (tmp_path / "given", f"{official.file} (official, SHA-256 agrees)"),
      (unpacked, "unpacked, an unpacked archive"),
    ]
  ):
    directory = str(tmp_path / str(number))
    text = run("prepare", "cub", "--directory", directory, "--from", path)
    assert text.startswith(f"{cub.title}; made from {words}")
    metadata = prepare.metadata(cub, directory)
    assert metadata["source"] == text.splitlines()[0]
  assert archives.describe(cub, other) == (
    "made from other.tgz (not the official file)"
  )


def test_what_was_prepared_before_the_comparison_still_loads(
  small_cub, tmp_path
):
  """Old metadata do not say if the archive was the official one."""
  source = fake.cub_archive(tmp_path / "x.tgz", 5)
  where = ["prepare", "cub", "--directory", tmp_path / "tfds"]
  run(*where, "--from", source)
  cub = catalogue.BENCHMARKS["cub"]
  path = prepare.prepared_folder(cub, str(tmp_path / "tfds")) / "metadata.json"
  metadata = json.loads(path.read_text())
  metadata["source"] = f"{cub.title}; made from x.tgz"
  path.write_text(json.dumps(metadata))
  assert run(*where).startswith(f"{cub.title}; made from x.tgz\ncub:16 is")


def test_the_comparison_of_a_large_archive_shows_progress(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(authenticity, "_BLOCK", 1000)
  path = tmp_path / "x"
  path.write_bytes(bytes(2500))
  archive = catalogue.Archive("x", "", 2500, "0" * 64)
  steps = []
  words = authenticity.compare(archive, path, lambda *step: steps.append(step))
  assert words == "not the official file"
  assert steps == [(1000, 2500), (2000, 2500), (2500, 2500)]
  # If the size differs, the archive, which may have 148 GB, is not read.
  longer = dataclasses.replace(archive, size=2501)
  assert authenticity.compare(longer, path, steps.append) == words


def test_bad_images_are_listed_one_a_line(small_cub, tmp_path):
  names = [f"{c}/{c[4:]}_0000_7.jpg" for c in fake.all_names("cub")]
  source = fake.cub_archive(
    tmp_path / "x.tgz", 5, change=dict.fromkeys(names, b"no image")
  )
  arguments = ["prepare", "cub", "--directory", tmp_path / "tfds"]
  arguments += ["--from", source]
  with pytest.raises(checks.BadImages) as refused:
    run(*arguments)
  assert refused.value.lines == [f"{n}: not an image" for n in names]
  assert str(refused.value) == (
    "9 of 45 images cannot be read; repair them, or leave them out with "
    "--skip-bad"
  )
  lines = run(*arguments, "--skip-bad").splitlines()
  assert lines[:-2] == [f"left out {name}: not an image" for name in names]
  assert "ready, 9 bad images left out" in run("list", *arguments[2:4])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "required: list.prepare"),
    (["make"], "invalid choice: 'make'"),
    (["prepare"], "required: name"),
    (["prepare", "cubs"], "no data set 'cubs'; did you mean cub"),
    (["prepare", "fc100:84"], "32 pixels wide"),
    (["prepare", "cub", "--from", "/no/file"], "no file or folder '/no/file'"),
    (["prepare", "glyph_clutter", "--skip-bad"], "give only its name"),
    (["list", "all"], "unrecognized arguments: all"),
  ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  with pytest.raises(InputError, match=message) as refused:
    run(*arguments)
  assert "\n" not in str(refused.value)


def test_missing_data_are_explained(tmp_path):
  with pytest.raises(MissingData) as refused:
    run("prepare", "miniimagenet", "--directory", tmp_path)
  lines = refused.value.lines
  assert lines[0].startswith("data set miniimagenet is not prepared")
  assert 3 < len(lines) <= 8
  assert not list(tmp_path.iterdir())


def test_help_names_everything(capsys):
  with pytest.raises(SystemExit):
    run("prepare", "--help")
  assert "--skip-bad" in capsys.readouterr().out
  assert command.HELP and "\n" not in command.HELP and command.DESCRIPTION


def test_help_and_list_load_nothing_heavy():
  code = (
    "import sys, argparse;"
    "from deepemd_jax.data import sources;"
    "from deepemd_jax.data.published import command;"
    "parser = argparse.ArgumentParser(); command.add_arguments(parser);"
    "command.run(parser.parse_args(['list']));"
    "print([m for m in ('tensorflow_datasets', 'jax', 'numpy', 'PIL')"
    " if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.stdout == "[]\n", done.stderr


def test_an_interrupt_leaves_nothing(small_cub, tmp_path, monkeypatch):
  """Ctrl-C comes while images are encoded."""
  source = fake.cub_archive(tmp_path / "x.tgz", 5)
  with monkeypatch.context() as patch:
    patch.setattr(image_io, "as_rgb_file", image_io.as_rgb_file)
    crashes.kill_at(image_io, "as_rgb_file", 20, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      run("prepare", "cub", "--directory", tmp_path / "tfds", "--from", source)
      time.sleep(10)  # the signal arrives here at the latest
  left = (tmp_path / "tfds" / "deepemd_cub").iterdir()
  assert [p.name for p in left] == [".lock"]


class Endless(http.server.BaseHTTPRequestHandler):
  """A server that announces one GB, sends a little of it, and then stops."""

  def do_GET(self):
    self.send_response(200)
    self.send_header("Content-Length", "1000000000")
    self.end_headers()
    self.wfile.write(bytes(100000))
    self.wfile.flush()
    self.server.started.set()
    self.server.ended.wait(60)

  def log_message(self, *arguments):
    pass


@pytest.fixture
def endless():
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
    server.daemon_threads = True
    server.started, server.ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    thread.join()


def test_a_download_can_be_interrupted(endless, tmp_path):
  """Ctrl-C ends the command at once, although the server never finishes."""
  url = f"http://127.0.0.1:{endless.server_port}/x"
  child = forked.start(crashes.prepare_from, url, str(tmp_path))
  assert endless.started.wait(60)
  os.kill(child.process.pid, signal.SIGINT)
  code, _, errors = child.communicate()
  assert code == 130, errors
  place = tmp_path / "downloads" / "deepemd_jax"
  assert [p.name for p in place.iterdir()] == [".lock"]


def test_a_data_set_is_a_list_and_a_folder(tmp_path, monkeypatch):
  """A data set without an archive is prepared with `--from` only."""
  flowers = dataclasses.replace(
    fake.small("cub_full"),
    **{"name": "flowers", "title": "flowers, 3/3/3 classes", "kind": ""},
    archives=(),
    layouts=("folders",),
  )
  monkeypatch.setitem(catalogue.BENCHMARKS, "flowers", flowers)
  where = ["--directory", tmp_path / "tfds"]
  with pytest.raises(MissingData) as refused:
    run("prepare", "flowers", *where)
  assert refused.value.lines == [
    f"data set flowers is not prepared in {tmp_path / 'tfds'}",
    "  needed: a folder of its images (flowers, 3/3/3 classes)",
    f"  then run: {prepare.COMMAND} prepare flowers --directory "
    f"{tmp_path / 'tfds'} --from FOLDER",
  ]
  (tmp_path / "file").touch()
  (tmp_path / "other").mkdir()
  tables = fake.ready_tables(tmp_path / "tables", "cub_full")
  for path, message in (
    (tmp_path / "file", "is a file; give the folder"),
    (tmp_path / "other", "looked for train/<class>, meta-train/<class>"),
    (tables, "its ready folders are folders"),
  ):
    with pytest.raises(InputError, match=message):
      run("prepare", "flowers", *where, "--from", path)
  folder = fake.ready_folders(tmp_path / "flowers", "cub_full")
  text = run("prepare", "flowers:24", *where, "--from", folder)
  assert text.splitlines()[1].startswith("flowers:24 is ready in ")
  images = published_source.PublishedSource("flowers:24", str(where[1]))
  assert images.load("val").images.shape == (6, 24, 24, 3)
  assert images.title.endswith(
    "made from flowers, a ready folder, its images unchanged"
  )
