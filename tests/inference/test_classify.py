"""The commands on one's own images: from folders to files, and mistakes."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from recipes import tiny_run

from deepemd_jax.inference import classify, encodings, search

COLORS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def paint(path, color, seed, size=(24, 30)):
  rng = np.random.default_rng(seed)
  pixels = np.array(color) + rng.integers(-30, 30, (*size, 3))
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
  return tiny_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def folder(tmp_path):
  """Two examples and two queries of each color."""
  for k, (name, color) in enumerate(COLORS.items()):
    for i in range(2):
      paint(tmp_path / "support" / name / f"{i}.png", color, 10 * k + i)
      paint(tmp_path / "query" / name / f"{i}.png", color, 100 + 10 * k + i)
  return tmp_path


@pytest.fixture
def call(run, folder, capsys, monkeypatch):
  """Calls a command in `folder`; exit code, stdout and stderr."""
  monkeypatch.chdir(folder)
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "home"))

  def calling(main, *arguments, checkpoint=run):
    code = main([*map(str, arguments), f"--checkpoint={checkpoint}"])
    return code, *capsys.readouterr()

  return calling


USUAL = ("--support=support", "--query=query", "--out=out.csv")


def rows(path="out.csv"):
  with open(path, newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def refused(result, message):
  code, out, errors = result
  assert code == 2 and out == "", (out, errors)
  assert errors.startswith("deepemd_jax: error: ") and errors.count("\n") == 1
  assert re.search(message, errors), errors


def test_known_truth(call, monkeypatch):
  code, out, errors = call(classify.main, *USUAL, "--report=report.html")
  assert code == 0, errors
  assert "6 images, 3 classes: 6 right, 100.0 %" in out
  found = rows()
  assert [r["file"] for r in found] == sorted(r["file"] for r in found)
  for row in found:
    assert row["prediction"] == row["label"] == row["file"].split("/")[1]
    p = [float(row[f"p {name}"]) for name in COLORS]
    assert sum(p) == pytest.approx(1, abs=1e-5)
    assert float(row["probability"]) == max(p)
  page = pathlib.Path("report.html").read_text()
  for part in ("Confusion", "calibration error", "pretrain, step 7", "SFC"):
    assert part in page
  assert page.count("<section class='right'>") == 6
  assert page.count("data:image/jpeg;base64,") == 7
  assert not re.search(r"https?:|<script|<link|url\(", page)
  assert {p.name for p in pathlib.Path().iterdir()} == {
    *("home", "out.csv", "query", "report.html", "support")
  }
  # The second time everything is at hand.
  before = pathlib.Path("out.csv").read_bytes()
  monkeypatch.setattr(encodings, "encode", None)
  assert call(classify.main, *USUAL, "--pictures=0")[0] == 0
  assert pathlib.Path("out.csv").read_bytes() == before


def test_unknown_truth(call, folder):
  for i, path in enumerate(sorted((folder / "query").rglob("*.png"))):
    path.rename(folder / "query" / f"{i}.png")
    path.parent.rmdir() if not any(path.parent.iterdir()) else None
  arguments = (*USUAL, "--report=r.html", "--pictures=2", "--no-cache")
  code, out, errors = call(classify.main, *arguments)
  assert code == 0 and "6 images, 3 classes\n" in out and errors == ""
  assert "label" not in rows()[0]
  page = pathlib.Path("r.html").read_text()
  assert "Confusion" not in page and "least certain first" in page
  assert page.count("<section") == 2
  assert not pathlib.Path("home").exists()
  one = ("--support=support", "--query=query/3.png", "--out=out.csv")
  assert call(classify.main, *one)[0] == 0
  assert [row["file"] for row in rows()] == ["query/3.png"]


def test_truth_half_known_is_unknown(call, folder):
  (folder / "query" / "red").rename(folder / "query" / "pink")
  code, _, errors = call(classify.main, *USUAL)
  assert code == 0 and "in 'pink'" in errors and "label" not in rows()[0]


def test_the_worst_first(call, folder):
  (folder / "query" / "red" / "0.png").rename(folder / "query/blue/red.png")
  call(classify.main, *USUAL, "--report=r.html")
  page = pathlib.Path("r.html").read_text()
  first = page.partition("<section class=")[2]
  assert first.startswith("'wrong'><p class=file>query/blue/red.png")
  assert "<b>red</b>, is <b>blue</b>" in first
  assert "5 right, 83.3 %" in page


def test_bad_queries(call, folder):
  (folder / "query" / "red" / "bad.png").write_bytes(b"no picture")
  (folder / "query" / "blue" / "empty.png").touch()
  (folder / "out.csv").write_text("precious")
  result = call(classify.main, *USUAL, "--report=r.html")
  refused(result, "2 of 8 images cannot be read: .*empty.png' .an empty file")
  assert "bad.png' (not an image)" in result[2] and "--skip-bad" in result[2]
  assert (folder / "out.csv").read_text() == "precious"
  assert not (folder / "r.html").exists()
  code, out, _ = call(classify.main, *USUAL, "--report=r.html", "--skip-bad")
  assert code == 0 and "6 right, 100.0 %; 2 left out, unreadable" in out
  left = {r["file"]: r for r in rows() if r["skipped"]}
  assert left["query/red/bad.png"]["skipped"] == "not an image"
  assert left["query/red/bad.png"]["prediction"] == "" and len(left) == 2
  page = (folder / "r.html").read_text()
  assert "Left out" in page and "query/blue/empty.png" in page


def test_names_that_trick(call, folder):
  """No name becomes HTML, mathematics, a formula or a path."""
  trick = "<script>alert('1')<"
  (folder / "support" / "red").rename(folder / "support" / trick)
  (folder / "query" / "red").rename(folder / "query" / trick)
  for k, name in enumerate(("=cmd.png", "$x^$ & y.png", "a\nb\x1b[2J.png")):
    paint(folder / "query" / trick / name, COLORS["red"], k)
  os.rename(
    folder / "query" / "blue" / "0.png",
    os.fsencode(folder / "query" / "blue") + b"/\xff.png",
  )
  (folder / "support" / "green").rename(folder / "support" / "$x^$ &")
  (folder / "query" / "green").rename(folder / "query" / "$x^$ &")
  code, _, errors = call(classify.main, *USUAL, "--report=r.html")
  assert code == 0, errors
  page = pathlib.Path("r.html").read_text("utf-8")
  assert "<script" not in page and "&lt;script&gt;alert(&#x27;1&#x27;)" in page
  files = [row["file"] for row in rows()]
  assert not [f for f in files if f.startswith(tuple("=+-@"))]
  assert f"query/{trick}/a\nb\x1b[2J.png" in files
  assert "query/blue/\\udcff.png" in files
  code, out, _ = call(search.main, "--gallery=query", f"--query={files[0]}")
  assert code == 0 and "\x1b" not in out


def change(folder, what):
  """Puts one mistake into the folder."""
  support, query = folder / "support", folder / "query"
  if what == "one class":
    for name in ("red", "green"):
      for path in (support / name).iterdir():
        path.unlink()
      (support / name).rmdir()
  elif what == "empty class":
    (support / "pink").mkdir()
  elif what == "loose image":
    paint(support / "loose.png", (0, 0, 0), 0)
  elif what == "bad example":
    (support / "red" / "x.png").write_bytes(b"x")
  elif what == "link out":
    paint(folder / "secret.png", (0, 0, 0), 0)
    (query / "link.png").symlink_to(folder / "secret.png")
  elif what == "pipe":
    os.mkfifo(query / "pipe.png")
  elif what == "no images":
    (folder / "empty").mkdir()


@pytest.mark.parametrize(
  ("what", "more", "message"),
  [
    ("one class", (), "one class, 'blue'"),
    ("empty class", (), "class 'pink' in 'support' has no images"),
    ("loose image", (), "loose.png' belongs to no class"),
    ("bad example", (), "1 of 7 images cannot be read: 'support/red/x.png'"),
    ("link out", (), "link out of the image folder"),
    ("pipe", (), "pipe.png' .not a file"),
    ("no images", ("--query=empty",), "'empty' holds no images"),
    ("", ("--query=absent",), "no image folder 'absent'"),
    ("", ("--support=absent",), "no image folder 'absent'"),
    ("", ("--support=../support/red",), "no image folder"),
    ("", ("--out=absent/o.csv",), "there is no such folder"),
    ("", ("--out=query",), "something, not a file"),
    ("", ("--out=/dev/null",), "something, not a file"),
    ("", ("--out=query/red/0.png",), "is one of the images"),
    ("", ("--out=/proc/o.csv",), "cannot write '/proc/o.csv'"),
    ("", ("--report=./out.csv",), "are the same file"),
    ("", ("--pictures=-1",), "--pictures is -1"),
    ("", ("--pictures=x",), "invalid int value: 'x'"),
    ("", ("--varant=fcn",), "unrecognized arguments: --varant=fcn"),
    ("", ("--variant=voc",), "use one of fcn"),
    ("", ("--solver=voc",), "use one of auto"),
    ("", ("--cache=support/red/0.png",), "cannot keep encodings"),
  ],
)
def test_mistakes(call, folder, what, more, message):
  change(folder, what)
  before = sorted(folder.rglob("*"))
  refused(call(classify.main, *USUAL, *more), message)
  after = [p for p in folder.rglob("*") if "home" not in p.parts]
  assert sorted(after) == before


def test_a_full_disk_leaves_what_was_there(call, folder, monkeypatch):
  """The second file does not fit: the first is not replaced either."""
  (folder / "out.csv").write_text("precious")
  write = pathlib.Path.write_bytes

  def full(path, content):
    if content.startswith(b"<!doctype"):
      write(path, content[:100])
      raise OSError(28, "No space left on device")
    return write(path, content)

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  result = call(classify.main, *USUAL, "--report=r.html", "--pictures=0")
  refused(result, "cannot write 'r.html': No space left on device")
  assert (folder / "out.csv").read_text() == "precious"
  left = {p.name for p in folder.iterdir()}
  assert left == {"home", "out.csv", "query", "support"}


def test_a_link_is_written_through(call, folder):
  (folder / "real.csv").write_text("old")
  (folder / "out.csv").symlink_to("real.csv")
  assert call(classify.main, *USUAL)[0] == 0
  assert (folder / "out.csv").is_symlink() and len(rows("real.csv")) == 6


def test_no_checkpoint(call, capsys):
  refused(call(classify.main, *USUAL, checkpoint="absent"), "'absent' is not")
  refused(call(classify.main), "required: --support, --query, --out")
  result = classify.main(list(USUAL)), *capsys.readouterr()
  refused(result, "no trained encoder in runs/quickstart; `make quickstart`")


def test_a_config_with_a_wrong_value(call, run, folder):
  shutil.copytree(run, folder / "edited")
  path = folder / "edited" / "config.json"
  fields = json.loads(path.read_text())
  fields["image"]["size"] = "large"
  path.write_text(json.dumps(fields))
  for main, arguments in (
    (classify.main, USUAL),
    (search.main, ("--gallery=query", "--query=query/red/0.png")),
  ):
    result = call(main, *arguments, checkpoint=folder / "edited")
    refused(result, "edited/config.json' image.size is 'large'")


def test_mistakes_are_told_before_jax_is_loaded():
  code = (
    "import sys, deepemd_jax.inference.classify as c; "
    "import deepemd_jax.inference.search as s; "
    "print(c.main(['--out=x']), s.main([]), "
    "[m for m in ('jax', 'flax', 'orbax', 'matplotlib') if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
  )
  assert done.stdout.strip() == "2 2 []", done.stdout + done.stderr


def test_interrupted(run, folder):
  """One line, code 130, no file, wherever it strikes."""
  source = folder / "query" / "red" / "0.png"
  for i in range(3000):
    os.link(source, folder / "query" / "red" / f"copy{i}.png")
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "deepemd_jax.inference.classify", "--no-cache"),
      f"--support={folder / 'support'}",
      f"--query={folder / 'query'}",
      f"--out={folder / 'out.csv'}",
      f"--checkpoint={run}",
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  time.sleep(3)
  process.send_signal(signal.SIGINT)
  began = time.monotonic()
  out, errors = process.communicate()
  assert time.monotonic() - began < 2
  assert process.returncode == 130, errors
  assert errors.strip() == "interrupted; nothing was written" and out == ""
  assert sorted(p.name for p in folder.iterdir()) == ["query", "support"]


def measured(arguments, home, interrupt=lambda: False):
  """Runs classify in a process of its own; Ctrl-C as soon as `interrupt`.

  Returns:
    exit code, stdout, stderr, seconds, and the peak of its memory in MiB.
  """
  began = time.monotonic()
  with open(home / "out", "w+") as out, open(home / "err", "w+") as errors:
    process = subprocess.Popen(
      [sys.executable, "-m", "deepemd_jax.inference.classify", *arguments],
      cwd=ROOT,
      stdout=out,
      stderr=errors,
    )
    usage = None
    while usage is None:
      time.sleep(0.1)
      pid, status, found = os.wait4(process.pid, os.WNOHANG)
      if pid:
        usage, process.returncode = found, os.waitstatus_to_exitcode(status)
      elif interrupt():
        process.send_signal(signal.SIGINT)
        interrupt = lambda: False  # noqa: E731
    texts = [file.seek(0) or file.read() for file in (out, errors)]
  unit = 2**20 if sys.platform == "darwin" else 2**10
  seconds = time.monotonic() - began
  return process.returncode, *texts, seconds, usage.ru_maxrss / unit


@pytest.mark.soak
def test_ten_thousand_queries(run, tmp_path):
  """Of ten classes with five examples each: memory does not grow with the
  queries, the table is whole and in order, and after Ctrl-C in the middle the
  same command goes on from the cache to the same result."""
  rng = np.random.default_rng(0)
  colors = {f"class {k}": rng.integers(30, 226, 3) for k in range(10)}
  for k, (name, color) in enumerate(colors.items()):
    for i in range(5):
      paint(tmp_path / "support" / name / f"{i}.png", color, [k, i])
    for i in range(1000):
      file = f"{name}/{i:03}.png"
      paint(tmp_path / "query" / file, color, [k, i, 1], (12, 15))
  for name in list(colors)[:2]:
    for i in range(50):
      file = tmp_path / "few" / name / f"{i:03}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      os.link(tmp_path / "query" / name / file.name, file)

  def arguments(out, cache, query="query"):
    return [
      f"--support={tmp_path / 'support'}",
      f"--query={tmp_path / query}",
      f"--out={tmp_path / out}",
      f"--report={tmp_path / out}.html",
      f"--checkpoint={run}",
      f"--cache={tmp_path / cache}" if cache else "--no-cache",
    ]

  code, _, errors, _, few = measured(arguments("few.csv", "", "few"), tmp_path)
  assert code == 0, errors
  code, out, errors, seconds, peak = measured(arguments("a.csv", ""), tmp_path)
  assert code == 0, errors
  print(f"{seconds:.0f} s, {peak:.0f} MiB; 100 queries: {few:.0f} MiB")
  assert peak < few + 100 and peak < 1500
  assert seconds < 300
  table = rows(tmp_path / "a.csv")
  names = [row["file"] for row in table]
  assert len(names) == 10_000 and names == sorted(names)
  assert f"10000 images, 10 classes: {sum(_right(table))} right" in out
  page = (tmp_path / "a.csv.html").read_text()
  assert page.count("<section") == 50
  assert page.count(".png") > 10_000 and len(page) < 10_000_000

  cache = tmp_path / "cache"

  def half_done():
    return sum(1 for _ in cache.rglob("*.npz")) > 5000

  again = arguments("b.csv", "cache")
  code, out, errors, *_ = measured(again, tmp_path, half_done)
  assert code == 130 and "interrupted; nothing was written" in errors
  assert not (tmp_path / "b.csv").exists() and out == ""
  kept = sum(1 for _ in cache.rglob("*.npz"))
  assert 5000 < kept < 10_000
  code, _, errors, seconds, peak = measured(again, tmp_path)
  assert code == 0, errors
  print(f"with {kept} in the cache: {seconds:.0f} s, {peak:.0f} MiB")
  assert peak < few + 100
  for one, other in zip(table, rows(tmp_path / "b.csv"), strict=True):
    assert (one["file"], one["label"]) == (other["file"], other["label"])
    p, q = (
      np.array([float(row[f"p {name}"]) for name in colors])
      for row in (one, other)
    )
    np.testing.assert_allclose(p, q, atol=2e-5)


def _right(table):
  return [row["prediction"] == row["label"] for row in table]


def test_search(call, folder):
  code, out, errors = call(
    search.main, "--gallery=query", "--query=query/red/1.png", "--top=2"
  )
  assert code == 0 and errors == ""
  header, *lines = out.splitlines()
  assert header.split() == ["rank", "EMD", "global", "image"]
  found = [line.split() for line in lines]
  assert found[0] == ["1", "1.000", "1.000", "query/red/1.png"]
  assert found[1][0] == "2" and found[1][3] == "query/red/0.png"
  assert float(found[1][1]) <= 1 and len(found) == 2


def test_search_takes_the_global_top(call, folder):
  """Against all at once: the K most alike by pooled nodes, then by EMD."""
  _, out, _ = call(search.main, "--gallery=.", "--query=query/red/1.png")
  found = [line.split() for line in out.splitlines()[1:]]
  assert len(found) == 10
  values = [float(row[1]) for row in found]
  assert values == sorted(values, reverse=True)
  _, out, _ = call(
    search.main, "--gallery=.", "--query=query/red/1.png", "--top=12"
  )
  everything = [line.split() for line in out.splitlines()[1:]]
  best = sorted(everything, key=lambda row: -float(row[2]))[:10]
  assert {row[3] for row in best} == {row[3] for row in found}


def test_search_mistakes(call, folder):
  usual = ("--gallery=query", "--query=query/red/1.png")
  refused(call(search.main, *usual, "--top=0"), "--top is 0")
  refused(call(search.main, usual[0], "--query=x.png"), "no image 'x.png'")
  refused(call(search.main, "--gallery=x", usual[1]), "no image folder 'x'")
  refused(call(search.main, usual[0], "--query=query"), "not a file")
  (folder / "query" / "bad.png").write_bytes(b"x")
  refused(call(search.main, *usual), "1 of 7 images cannot be read")
  code, out, errors = call(search.main, *usual, "--skip-bad")
  assert code == 0 and errors == "left out 'query/bad.png': not an image\n"
  assert out.count("\n") == 7
