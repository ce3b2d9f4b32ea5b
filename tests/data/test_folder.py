"""Folders of the user's images: layouts, kinds of pictures, and mistakes."""

import contextlib
import os
import pathlib
import shutil
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepemd_jax.data import folder
from deepemd_jax.errors import InputError


def fill(root, *names):
  """Makes small images at the given paths."""
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def names(found, root):
  """Returns a listing with file names instead of paths."""
  return {
    split: {
      label: [path.relative_to(root).as_posix() for path in paths]
      for label, paths in classes.items()
    }
    for split, classes in found.items()
  }


@settings(deadline=None, max_examples=30)
@given(
  count=st.integers(1, 30),
  fractions=st.tuples(*[st.floats(0.01, 1)] * 3),
  seed=st.integers(0, 2**32),
)
def test_every_class_goes_to_one_split(count, fractions, seed):
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    for i in range(count):
      (root / f"c{i:02d}").mkdir()
      (root / f"c{i:02d}" / "a.jpg").touch()
    found = folder.listing(root, fractions=fractions, seed=seed)
    assert found == folder.listing(root, fractions=fractions, seed=seed)
  classes = [name for split in found.values() for name in split]
  assert sorted(classes) == [f"c{i:02d}" for i in range(count)]
  for split, share in zip(folder.SPLITS, fractions, strict=True):
    expected = count * share / sum(fractions)
    assert abs(len(found[split]) - expected) <= 1


def test_another_seed_is_another_split(tmp_path):
  fill(tmp_path, *(f"c{i}/a.png" for i in range(20)))
  first, second = (folder.listing(tmp_path, seed=seed) for seed in (0, 1))
  assert [len(c) for c in first.values()] == [13, 3, 4]
  assert set(first["train"]) != set(second["train"])


def test_ready_splits_are_taken_as_they_stand(tmp_path):
  fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/c/1.png", "x/d/1.png")
  assert names(folder.listing(tmp_path), tmp_path) == {
    "train": {"a": ["train/a/1.png"], "b": ["train/b/1.png"]},
    "val": {},
    "test": {"c": ["test/c/1.png"]},
  }


def test_a_class_may_be_called_train(tmp_path):
  fill(tmp_path, "train/1.png", "plane/1.png", "car/1.png")
  found = folder.listing(tmp_path, fractions=(1, 0, 0))
  assert list(found["train"]) and set(found["train"]) == {
    "car",
    "plane",
    "train",
  }


def test_nested_images_count_and_hidden_or_foreign_files_do_not(tmp_path):
  fill(tmp_path, "a/z.png", "a/deep/er/b.JPG", "a/.c.png", "a/.d/e.png")
  fill(tmp_path, ".hidden/f.png")
  (tmp_path / "a" / "notes.txt").write_text("not an image")
  (tmp_path / "empty").mkdir()
  (tmp_path / "top.png").touch()
  found = folder.listing(tmp_path, fractions=(1, 0, 0))
  assert names(found, tmp_path)["train"] == {
    "a": ["a/deep/er/b.JPG", "a/z.png"]
  }


def table(root, text):
  path = root / "table.csv"
  path.write_text(text, "utf-8")
  return path


def test_a_table_of_classes(tmp_path):
  fill(tmp_path, "a/1.png", "b/1.png", "c/1.png")
  rows = table(tmp_path, "\ufefflabel,split\nb,train\na,test\n")
  assert names(folder.listing(tmp_path, table=rows), tmp_path) == {
    "train": {"b": ["b/1.png"]},
    "val": {},
    "test": {"a": ["a/1.png"]},
  }


def test_a_table_of_files(tmp_path):
  fill(tmp_path, "images/1.png", "images/2.png", "images/3.png")
  text = "filename,label,split\nimages/2.png,a,val\nimages/1.png,a,val\n"
  rows = table(tmp_path, text + "images/3.png,b,train\n")
  assert names(folder.listing(tmp_path, table=rows), tmp_path) == {
    "train": {"b": ["images/3.png"]},
    "val": {"a": ["images/2.png", "images/1.png"]},
    "test": {},
  }


FILES = "filename,label,split\n"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "it is empty"),
    ("label,split\n", "no rows below its header"),
    ("a,b\n1,2\n", "its first line is 'a,b'"),
    ("label,split\na,dev\n", "line 2: split is 'dev'"),
    ("label,split\na,train\nz,train\n", "line 3: class 'z' has no images"),
    ("label,split\na,train\na,test\n", "line 3: 'a' occurs twice"),
    (FILES + "a/9.png,a,train\n", "line 2: no file 'a/9.png'"),
    (FILES + "../outside.png,a,train\n", "line 2: no file '../outside.png'"),
    (FILES + "a/1.png,a,train\na//1.png,b,test\n", "'a//1.png' occurs twice"),
    (
      FILES + "a/1.png,a,train\nb/1.png,a,test\n",
      "'a' is in train and in test",
    ),
    (FILES + "a/1.png,a\n", "line 2: split is empty"),
    (FILES + "a/1.png,,train\n", "line 2: label is empty"),
    (FILES + ",a,train\n", "line 2: filename is empty"),
  ],
)
def test_a_wrong_table_is_refused(tmp_path, text, message):
  root = tmp_path / "root"
  fill(root, "a/1.png", "b/1.png", "../outside.png")
  with pytest.raises(InputError, match=message) as refused:
    folder.listing(root, table=table(tmp_path, text))
  assert "\n" not in str(refused.value)


def test_a_missing_or_binary_table_is_refused(tmp_path):
  fill(tmp_path, "a/1.png")
  for path in (tmp_path / "no.csv", tmp_path / "a" / "1.png"):
    with pytest.raises(InputError, match="cannot read the CSV"):
      folder.listing(tmp_path, table=path)


def test_a_class_in_two_splits_is_refused(tmp_path):
  fill(tmp_path, "train/cat/1.png", "test/cat/2.png")
  with pytest.raises(InputError, match="'cat' is in train and in test"):
    folder.listing(tmp_path)


def test_a_missing_or_empty_folder_is_refused(tmp_path):
  (tmp_path / "file").touch()
  for name in ("none", "file"):
    with pytest.raises(InputError, match=f"no image folder .*{name}"):
      folder.listing(tmp_path / name)
  (tmp_path / "empty").mkdir()
  (tmp_path / "text" / "a").mkdir(parents=True)
  (tmp_path / "text" / "a" / "b.txt").touch()
  for name in ("empty", "text"):
    with pytest.raises(InputError, match="holds no images"):
      folder.listing(tmp_path / name)


@pytest.mark.parametrize("fractions", [(1, 1), (0, 0, 0), (1, -1, 1)])
def test_wrong_fractions_are_refused(tmp_path, fractions):
  fill(tmp_path, "a/1.png")
  with pytest.raises(InputError, match="config.data.fractions is"):
    folder.listing(tmp_path, fractions=fractions)


@pytest.mark.parametrize("link", ["a/l.png", "a/l", "l"])
def test_links_out_of_the_folder_are_refused(tmp_path, link):
  root, outside = tmp_path / "root", tmp_path / "outside"
  fill(root, "a/1.png")
  fill(outside, "1.png")
  target = outside / "1.png" if link.endswith("png") else outside
  (root / link).symlink_to(target)
  with pytest.raises(InputError, match="link out of the image folder"):
    folder.listing(root)


def test_links_inside_the_folder_and_to_it_are_fine(tmp_path):
  fill(tmp_path / "root", "a/1.png")
  (tmp_path / "root" / "a" / "2.png").symlink_to("1.png")
  (tmp_path / "link").symlink_to("root")
  found = folder.listing(tmp_path / "link", fractions=(1, 0, 0))
  assert len(found["train"]["a"]) == 2


@contextlib.contextmanager
def unprivileged():
  """Becomes the user nobody for a block, because root may read everything."""
  user = os.geteuid()
  if user == 0:
    os.seteuid(65534)
  try:
    yield
  finally:
    os.seteuid(user)


@pytest.mark.parametrize("locked", [".", "a", "a/deep"])
def test_an_unreadable_folder_is_refused(locked):
  # Other users cannot enter the parents of tmp_path.
  root = pathlib.Path(tempfile.mkdtemp())
  try:
    root.chmod(0o755)
    fill(root, "a/deep/1.png", "b/1.png")
    (root / locked).chmod(0)
    with unprivileged(), pytest.raises(InputError, match="cannot read folder"):
      folder.listing(root)
  finally:
    (root / locked).chmod(0o755)
    shutil.rmtree(root)


def test_examples_by_class(tmp_path, capfd):
  fill(tmp_path, "b/1.png", "b/deep/2.JPG", "a/1.png", ".hidden/1.png")
  (tmp_path / "a" / "notes.txt").touch()
  found = folder.classes(tmp_path)
  assert list(found) == ["a", "b"]
  assert found["b"] == [tmp_path / "b/1.png", tmp_path / "b/deep/2.JPG"]
  (tmp_path / "c").mkdir()
  assert folder.classes(tmp_path) == found
  assert "c' is not a class: it holds no images" in capfd.readouterr().err
  fill(tmp_path, "loose.png")
  with pytest.raises(InputError, match="belongs to no class"):
    folder.classes(tmp_path)
  with pytest.raises(InputError, match="holds no directories of images"):
    folder.classes(tmp_path / "c")
  with pytest.raises(InputError, match="no image folder"):
    folder.classes(tmp_path / "d")


def test_images_below(tmp_path):
  fill(tmp_path, "b/1.png", "a.png", "b/c/d/2.gif", "b/.hidden/3.png")
  found = [
    path.relative_to(tmp_path).as_posix() for path in folder.below(tmp_path)
  ]
  assert found == ["a.png", "b/1.png", "b/c/d/2.gif"]
  assert folder.below(tmp_path / "a.png") == [tmp_path / "a.png"]
  with pytest.raises(InputError, match="holds no images"):
    (tmp_path / "e").mkdir()
    folder.below(tmp_path / "e")
  outside = tmp_path.parent / "outside.png"
  Image.new("RGB", (4, 4)).save(outside)
  (tmp_path / "b" / "link.png").symlink_to(outside)
  (tmp_path / "a.png").unlink()
  for look in (folder.below, folder.classes):
    with pytest.raises(InputError, match="link out of the image folder"):
      look(tmp_path)
