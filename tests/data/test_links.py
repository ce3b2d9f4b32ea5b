"""Folders from strangers with outside links, loops, pipes and devices."""

import os
import pathlib

import pytest
from PIL import Image

from deepemd_jax.data import folder, image_io
from deepemd_jax.data.folder_source import FolderSource
from deepemd_jax.errors import InputError

OUT = "link out of the image folder, to '.*'; copy the files into the folder"


@pytest.fixture
def photos(tmp_path):
  """Three splits of one class each, and a folder of another person."""
  for split in ("train", "val", "test"):
    paint(tmp_path / "photos" / split / f"of_{split}" / "1.png")
  paint(tmp_path / "elsewhere" / "a" / "1.png")
  return tmp_path / "photos"


def paint(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (20, 30), "red").save(path)


def source(photos, side=16, **settings):
  return FolderSource(str(photos), str(photos.parent / "kept"), side)


@pytest.mark.parametrize(
  ("link", "target"),
  [
    ("train/of_train/2.png", "elsewhere/a/1.png"),
    ("train/of_train/more", "elsewhere/a"),
    ("train/more", "elsewhere/a"),
    ("more", "photos/more"),  # a loop that is not followed
  ],
)
def test_links_in_a_folder(link, target, photos):
  (photos / link).symlink_to(photos.parent / target)
  if link == "more":
    assert len(source(photos).load("train").keys) == 1
    return
  for look in (
    lambda: source(photos).load("train"),
    lambda: folder.below(photos),
  ):
    with pytest.raises(InputError, match=OUT) as refused:
      look()
    assert "\n" not in str(refused.value)
    assert str(photos.parent / target) in str(refused.value)


def test_a_split_may_not_lead_out(photos):
  (photos / "val" / "of_val" / "1.png").unlink()
  (photos / "val" / "of_val").rmdir()
  (photos / "val").rmdir()
  (photos / "val").symlink_to(photos.parent / "elsewhere")
  with pytest.raises(InputError, match=OUT):
    source(photos).counts("train")


def test_a_table_may_not_lead_out(photos):
  table = photos.parent / "table.csv"
  link = photos / "link.png"
  for name, message in (
    ("../elsewhere/a/1.png", "no file"),
    ("x" * 5000, "no file"),
    ("x" * 200_000, "no file"),
    (photos.parent / "elsewhere/a/1.png", OUT),
    ("link.png", OUT),
  ):
    if name == link.name:
      link.symlink_to(photos.parent / "elsewhere" / "a" / "1.png")
    table.write_text(f"filename,label,split\n{name},a,train\n")
    with pytest.raises(InputError, match=message):
      folder.listing(photos, table=table)


def test_links_inside_work_and_so_does_one_to_the_folder(photos):
  (photos / "train" / "of_train" / "2.png").symlink_to("1.png")
  (photos / "train" / "again").symlink_to(photos / "val" / "of_val")
  (photos / "test" / "of_test" / "up").symlink_to("..")  # a loop
  (photos.parent / "link").symlink_to("photos")
  images = source(photos.parent / "link").load("train")
  assert sorted(images.class_names) == ["again", "of_train"]
  assert len(images.keys) == 3
  assert len(folder.below(photos.parent / "link")) == 4


@pytest.mark.parametrize("side", [0, 16])
@pytest.mark.parametrize(
  ("kind", "reason"),
  [
    ("loop", "Too many levels of symbolic links"),
    ("nothing", "No such file or directory"),
    ("pipe", "not a file"),
    ("zero", "link out of"),
  ],
)
def test_what_is_no_image_file_is_one_line(kind, reason, side, photos):
  path = photos / "train" / "of_train" / "2.png"
  if kind == "pipe":
    os.mkfifo(path)
  else:
    targets = {"loop": path, "nothing": photos / "no.png", "zero": "/dev/zero"}
    path.symlink_to(targets[kind])
  with pytest.raises(InputError, match=reason) as refused:
    source(photos, side).load("train")
  message = str(refused.value)
  assert "\n" not in message and "train/of_train/2.png" in message


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
  os.mkfifo(tmp_path / "pipe.png")
  opened = []
  real = os.open
  monkeypatch.setattr(
    os, "open", lambda *arguments: opened.append(arguments) or real(*arguments)
  )
  for read in (image_io.read_file, image_io.read_rgb, image_io.as_rgb_file):
    for path in (tmp_path / "pipe.png", pathlib.Path("/dev/zero"), tmp_path):
      with pytest.raises(ValueError, match="not a file"):
        read(path)
  assert not opened
