"""`classify` as a process, with Ctrl-C at any time, and its memory."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import paint, rows
from paths import ROOT


def test_interrupted(run, folder):
  """At any time, Ctrl-C gives one line and code 130, and leaves no file."""
  source = folder / "query" / "red" / "0.png"
  for i in range(3000):
    os.link(source, folder / "query" / "red" / f"copy{i}.png")
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "deepemd_jax", "classify", "--no-cache"),
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
  assert (
    errors.strip() == "interrupted; no incomplete file is left" and out == ""
  )
  assert sorted(p.name for p in folder.iterdir()) == ["query", "support"]


def measured(arguments, home, interrupt=lambda: False):
  """Runs classify in a separate process, with Ctrl-C if `interrupt()`.

  Returns:
    exit code, stdout, stderr, seconds, and the peak of its memory in MiB.
  """
  began = time.monotonic()
  with open(home / "out", "w+") as out, open(home / "err", "w+") as errors:
    process = subprocess.Popen(
      [sys.executable, "-m", "deepemd_jax", "classify", *arguments],
      cwd=ROOT,
      stdout=out,
      stderr=errors,
    )
    peak = 0
    while process.poll() is None:
      peak = max(peak, resident_peak(process.pid))
      time.sleep(0.1)
      if interrupt():
        process.send_signal(signal.SIGINT)
        interrupt = lambda: False  # noqa: E731
    texts = [file.seek(0) or file.read() for file in (out, errors)]
  seconds = time.monotonic() - began
  return process.returncode, *texts, seconds, peak


def resident_peak(pid) -> float:
  """Returns the peak memory of a process in MiB; 0 if it has just ended.

  `os.wait4` would include the memory that the parent had when it forked.
  """
  try:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
  except OSError:
    return 0
  found = re.search(r"VmHWM:\s+(\d+) kB", status)
  return int(found[1]) / 2**10 if found else 0


def paint_ten_thousand(folder):
  """Paints examples and ten thousand queries; a hundred of these are in `few`.

  Returns:
    {class name: its color}.
  """
  rng = np.random.default_rng(0)
  colors = {f"class {k}": rng.integers(30, 226, 3) for k in range(10)}
  for k, (name, color) in enumerate(colors.items()):
    for i in range(5):
      paint(folder / "support" / name / f"{i}.png", color, [k, i])
    for i in range(1000):
      file = f"{name}/{i:03}.png"
      paint(folder / "query" / file, color, [k, i, 1], (12, 15))
  for name in list(colors)[:2]:
    for i in range(50):
      file = folder / "few" / name / f"{i:03}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      os.link(folder / "query" / name / file.name, file)
  return colors


@pytest.mark.soak
def test_ten_thousand_queries(run, tmp_path):
  """There are ten classes with five examples each.

  Memory does not grow with the queries. The table is complete and in order.
  After Ctrl-C in the middle, the same command uses the cache, and gives the
  same result.
  """
  colors = paint_ten_thousand(tmp_path)

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
  assert code == 130 and "interrupted; no incomplete file is left" in errors
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
