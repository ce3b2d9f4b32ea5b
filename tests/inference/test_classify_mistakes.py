"""Mistakes in `classify` and `search` give one line, and write no files."""

import json
import os
import pathlib
import shutil

import pytest
from commands import assert_refused, paint, rows

USUAL = ("--support=support", "--query=query", "--out=out.csv")


def change(folder, what):
  """Puts one mistake into the folder."""
  support, query = folder / "support", folder / "query"
  if what == "one class":
    for name in ("red", "green"):
      for path in (support / name).iterdir():
        path.unlink()
      (support / name).rmdir()
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
    ("loose image", (), "loose.png' belongs to no class"),
    ("bad example", (), "1 of 7 images cannot be read: 'support/red/x.png'"),
    ("link out", (), "link out of the image folder"),
    ("pipe", (), "pipe.png' .not a file"),
    ("no images", ("--query=empty",), "'empty' holds no images"),
    ("", ("--query=absent",), "no image folder 'absent'"),
    ("", ("--support=absent",), "no image folder 'absent'"),
    ("", ("--support=../support/red",), "no image folder"),
    ("", ("--out=absent/o.csv",), "there is no such folder"),
    ("", ("--out=query",), "it exists and is not a file"),
    ("", ("--out=/dev/null",), "it exists and is not a file"),
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
  assert_refused(call("classify", *USUAL, *more), message)
  after = [p for p in folder.rglob("*") if "home" not in p.parts]
  assert sorted(after) == before


def test_a_full_disk_leaves_what_was_there(call, folder, monkeypatch):
  """If the second file does not fit, the first one is not replaced either."""
  (folder / "out.csv").write_text("precious")
  write = pathlib.Path.write_bytes

  def full(path, content):
    if content.startswith(b"<!doctype"):
      write(path, content[:100])
      raise OSError(28, "No space left on device")
    return write(path, content)

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  result = call("classify", *USUAL, "--report=r.html", "--pictures=0")
  assert_refused(result, "cannot write 'r.html': No space left on device")
  assert (folder / "out.csv").read_text() == "precious"
  left = {p.name for p in folder.iterdir()}
  assert left == {"home", "out.csv", "query", "support"}


def test_a_link_is_written_through(call, folder):
  (folder / "real.csv").write_text("old")
  (folder / "out.csv").symlink_to("real.csv")
  assert call("classify", *USUAL)[0] == 0
  assert (folder / "out.csv").is_symlink() and len(rows("real.csv")) == 6


def test_no_checkpoint(call):
  assert_refused(
    call("classify", *USUAL, checkpoint="absent"), "'absent' is not"
  )
  assert_refused(call("classify"), "required: --support, --query, --out")


def test_a_config_with_a_wrong_value(call, run, folder):
  shutil.copytree(run, folder / "edited")
  path = folder / "edited" / "config.json"
  fields = json.loads(path.read_text())
  fields["image"]["size"] = "large"
  path.write_text(json.dumps(fields))
  for arguments in (
    ("classify", *USUAL),
    ("search", "--gallery=query", "--query=query/red/0.png"),
  ):
    result = call(*arguments, checkpoint=folder / "edited")
    assert_refused(result, "edited/config.json' image.size is 'large'")
