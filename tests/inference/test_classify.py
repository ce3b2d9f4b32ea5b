"""`classify` makes a table and a report from folders."""

import os
import pathlib
import re

import pytest
from commands import COLORS, assert_refused, paint, rows

from deepemd_jax.inference import classify, image_encoder

USUAL = ("--support=support", "--query=query", "--out=out.csv")


def test_known_truth(call, monkeypatch):
  code, out, errors = call("classify", *USUAL, "--report=report.html")
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
  # The second time all encodings are in the cache.
  before = pathlib.Path("out.csv").read_bytes()
  monkeypatch.setattr(image_encoder.ImageEncoder, "_encode_new", None)
  assert call("classify", *USUAL, "--pictures=0")[0] == 0
  assert pathlib.Path("out.csv").read_bytes() == before


def test_unknown_truth(call, folder):
  for i, path in enumerate(sorted((folder / "query").rglob("*.png"))):
    path.rename(folder / "query" / f"{i}.png")
    path.parent.rmdir() if not any(path.parent.iterdir()) else None
  arguments = (*USUAL, "--report=r.html", "--pictures=2", "--no-cache")
  code, out, errors = call("classify", *arguments)
  assert code == 0 and "6 images, 3 classes\n" in out and errors == ""
  assert "label" not in rows()[0]
  page = pathlib.Path("r.html").read_text()
  assert "Confusion" not in page and "least certain first" in page
  assert page.count("<section") == 2
  assert not pathlib.Path("home").exists()
  one = ("--support=support", "--query=query/3.png", "--out=out.csv")
  assert call("classify", *one)[0] == 0
  assert [row["file"] for row in rows()] == ["query/3.png"]


def test_truth_half_known_is_unknown(call, folder):
  (folder / "query" / "red").rename(folder / "query" / "pink")
  code, _, errors = call("classify", *USUAL)
  assert code == 0 and "in 'pink'" in errors and "label" not in rows()[0]


@pytest.mark.parametrize(
  ("support", "query"),
  [("Mu\u0308ller", "M\u00fcller"), ("red", "Red"), ("red", "red ")],
)
def test_truth_in_another_spelling(support, query, tmp_path):
  path = tmp_path / query / "1.png"
  found = classify.truth(str(tmp_path), [path], {support: [], "blue": []})
  assert found == ([support], "")


def test_truth_one_folder_deeper(tmp_path):
  """The query may be the root of a data set, for example."""
  paths = [tmp_path / split / "red" / "1.png" for split in ("train", "test")]
  labels, remark = classify.truth(str(tmp_path), paths, {"Red": [], "blue": []})
  assert labels is None and f"in '{tmp_path}/train' have the names of" in remark


def test_the_table_opens_in_a_spreadsheet(call, folder):
  for place in ("support", "query"):
    (folder / place / "red").rename(folder / place / "Köln ß")
  assert call("classify", *USUAL)[0] == 0
  content = pathlib.Path("out.csv").read_bytes()
  assert (
    content.startswith(b"\xef\xbb\xbffile,") and "Köln ß".encode() in content
  )
  assert {row["label"] for row in rows()} == {"Köln ß", "green", "blue"}


def test_what_no_class_is_and_what_a_root_is(call, folder):
  (folder / "support" / "pink").mkdir()
  (folder / "query" / "Thumbs.db").write_bytes(b"x")
  code, out, errors = call("classify", *USUAL)
  assert code == 0 and "6 images, 3 classes" in out
  assert errors == "'support/pink' is not a class: it holds no images\n"
  (folder / "data").mkdir()
  for part, split in (("support", "train"), ("query", "test")):
    os.rename(folder / part, folder / "data" / split)
  result = call("classify", "--support=data", *USUAL[1:])
  assert_refused(result, "'data' is the root of a data set: train, test are")


def test_the_worst_first(call, folder):
  (folder / "query" / "red" / "0.png").rename(folder / "query/blue/red.png")
  call("classify", *USUAL, "--report=r.html", "--pictures=1")
  page = pathlib.Path("r.html").read_text()
  first = page.partition("<section class=")[2]
  assert first.startswith("'wrong'><p class=file>query/blue/red.png")
  assert "<b>red</b>, but it is <b>blue</b>" in first
  assert "5 right, 83.3 %" in page


def test_bad_queries(call, folder):
  (folder / "query" / "red" / "bad.png").write_bytes(b"no picture")
  (folder / "query" / "blue" / "empty.png").touch()
  (folder / "out.csv").write_text("precious")
  result = call("classify", *USUAL, "--report=r.html")
  assert_refused(
    result, "2 of 8 images cannot be read: .*empty.png' .an empty file"
  )
  assert "bad.png' (not an image)" in result[2] and "--skip-bad" in result[2]
  assert (folder / "out.csv").read_text() == "precious"
  assert not (folder / "r.html").exists()
  code, out, _ = call(
    "classify", *USUAL, "--report=r.html", "--skip-bad", "--pictures=1"
  )
  assert code == 0 and "6 right, 100.0 %; 2 left out, unreadable" in out
  left = {r["file"]: r for r in rows() if r["skipped"]}
  assert left["query/red/bad.png"]["skipped"] == "not an image"
  assert left["query/red/bad.png"]["prediction"] == "" and len(left) == 2
  page = (folder / "r.html").read_text()
  assert "Left out" in page and "query/blue/empty.png" in page


def test_names_that_trick(call, folder):
  """No name is interpreted as HTML, mathematics, a formula or a path."""
  trick = "<script>alert('1')<"
  for path in ("red/0.png", "red/1.png", "blue/1.png", "green/1.png"):
    (folder / "query" / path).unlink()
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
  usual = (*USUAL, "--report=r.html", "--pictures=2")
  code, _, errors = call("classify", *usual)
  assert code == 0, errors
  page = pathlib.Path("r.html").read_text("utf-8")
  assert "<script" not in page and "&lt;script&gt;alert(&#x27;1&#x27;)" in page
  files = [row["file"] for row in rows()]
  assert not [f for f in files if f.startswith(tuple("=+-@"))]
  assert f"query/{trick}/a\nb\x1b[2J.png" in files
  assert "query/blue/\\udcff.png" in files
  code, out, _ = call("search", "--gallery=query", f"--query={files[0]}")
  assert code == 0 and "\x1b" not in out
