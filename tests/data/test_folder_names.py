"""Tables and folders may spell names differently; wrong folders are refused."""

import unicodedata

import pytest
from PIL import Image

from deepemd_jax.data import folder
from deepemd_jax.errors import InputError

NFD, NFC = "Mu\u0308ller", "M\u00fcller"
FILES = "filename,label,split\n"


def fill(root, *names):
  """Makes small images at the given paths."""
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "PNG")
  return root


def listed(root, text, tmp_path):
  """Returns {split: {class: file names}} by a table."""
  table = tmp_path / "table.csv"
  table.write_text(text, "utf-8")
  found = folder.listing(root, table=table)
  return {
    split: {
      label: [path.relative_to(root).as_posix() for path in paths]
      for label, paths in classes.items()
    }
    for split, classes in found.items()
    if classes
  }


@pytest.mark.parametrize(
  ("folder_name", "label"),
  [(NFD, NFC), (NFC, NFD), ("cat", "Cat"), ("Cat ", "cat"), ("a b", "A  B ")],
)
def test_a_class_is_found_by_any_spelling(folder_name, label, tmp_path):
  root = fill(tmp_path / "root", f"{folder_name}/1.png", "dog/1.png")
  text = f"label,split\n{label}, Validation\n"
  found = listed(root, text, tmp_path)
  assert found == {"val": {folder_name: [f"{folder_name}/1.png"]}}


@pytest.mark.parametrize(
  ("file", "written"),
  [
    ("a/1.png", "a\\1.png"),
    ("a/1.png", ".\\a\\1.png"),
    ("a/1.png", "A/1.PNG"),
    ("a/1.png", "C:\\photos\\root\\a\\1.png"),
    ("a/1.png", "/home/someone/a/1.png"),
    ("a /1.png", "a/1.png"),
    (f"{NFD}/é.png", unicodedata.normalize("NFC", f"{NFD}/é.png")),
    ("a\\1.png", "a\\1.png"),  # here this is the name of a file
  ],
)
def test_a_file_is_found_by_any_spelling(file, written, tmp_path):
  root = fill(tmp_path / "root", file, "b/1.jpg")
  text = f"{FILES}{written},x,train\n"
  assert listed(root, text, tmp_path) == {"train": {"x": [file]}}


def test_labels_that_look_the_same_are_one_class(tmp_path):
  root = fill(tmp_path / "root", "1.png", "2.png", "3.png")
  text = f"{FILES}1.png,{NFC},train\n2.png,{NFD},train\n3.png,{NFC} ,train\n"
  assert listed(root, text, tmp_path) == {
    "train": {NFC: ["1.png", "2.png", "3.png"]}
  }


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (f"1.png,{NFC},train\n2.png,{NFD},test\n", "is in train and in test"),
    ("1.png,cat,train\n2.png,Cat,test\n", "labels 'cat' and 'Cat'; write them"),
    (
      "a/1.png,x,train\na\\1.png,y,test\n",
      r"line 3: 'a\\\\1.png' occurs twice",
    ),
    ("A/X.png,x,train\n", "'A/X.png' may mean 'a/X.PNG' or 'a/x.png'"),
    ("/home/me/9.png,x,train\n", "no file '/home/me/9.png'.*names relative"),
  ],
)
def test_what_is_ambiguous_is_refused(rows, message, tmp_path):
  root = fill(
    tmp_path / "root", "1.png", "2.png", "a/1.png", "a/x.png", "a/X.PNG"
  )
  with pytest.raises(InputError, match=message):
    listed(root, FILES + rows, tmp_path)


def test_a_path_of_this_machine_is_not_taken_for_another_file(tmp_path):
  root = fill(tmp_path / "root", "a/1.png")
  fill(tmp_path / "other", "a/1.png")
  with pytest.raises(InputError, match="out of the image folder"):
    listed(root, f"{FILES}{tmp_path}/other/a/1.png,x,train\n", tmp_path)


def test_two_folders_of_one_name_are_refused(tmp_path):
  fill(tmp_path, f"{NFC}/1.png", f"{NFD}/1.png")
  for look in (folder.classes, folder.listing):
    with pytest.raises(InputError, match="two classes look the same"):
      look(tmp_path)


ROOTS = {
  "splits": (
    ["train/a/1.png", "train/b/1.png", "val/c/1.png", "test/d/1.png"],
    "root of a data set: train, val, test are splits.*give one of them: "
    ".*root/train' or .*root/val' or .*root/test'",
  ),
  "splits, called otherwise": (
    ["Training/a/1.png", "Validation/b/1.png"],
    "Training, Validation are splits",
  ),
  "splits beside a class": (
    ["train/a/1.png", "test/b/1.png", "more/1.png"],
    "train, test are splits",
  ),
  "splits without classes": (
    ["train/1.png", "val/2.png", "test/3.png"],
    "train, val, test are splits, not classes; put the images of each class",
  ),
  "one folder around all": (
    ["images/a/1.png", "images/b/1.png"],
    "no directory in .*root' contains images itself.*give the folder whose "
    "directories are the classes, .*root/images', or put all",
  ),
  "folders of folders": (
    ["animals/cat/1.png", "plants/rose/1.png"],
    "classes, .*root/animals' or .*root/plants', or put all images",
  ),
  "deeper yet": (["x/y/z/cat/1.png"], "classes, .*root/x/y/z', or put"),
}


@pytest.mark.parametrize("kind", ROOTS)
def test_a_folder_that_holds_no_classes_is_told(kind, tmp_path):
  paths, message = ROOTS[kind]
  root = fill(tmp_path / "root", *paths)
  with pytest.raises(InputError, match=message):
    folder.classes(root)
  if kind == "splits without classes" or "splits" not in kind:
    with pytest.raises(InputError, match=message):
      folder.listing(root)


def test_some_images_deeper_than_others_are_fine(tmp_path):
  fill(tmp_path, "a/1.png", "a/day 2/2.png", "train/1.png", "b/day 1/1.png")
  assert list(folder.classes(tmp_path)) == ["a", "b", "train"]


def test_splits_are_taken_under_other_names(tmp_path):
  fill(tmp_path, "Train/a/1.png", "valid/b/1.png", "TEST/c/1.png")
  found = folder.listing(tmp_path)
  assert {split: list(x) for split, x in found.items()} == {
    "train": ["a"],
    "val": ["b"],
    "test": ["c"],
  }
  fill(tmp_path, "val/d/1.png")
  with pytest.raises(InputError, match="both 'val' and 'valid' are split val"):
    folder.listing(tmp_path)


def test_images_of_no_class_are_told(tmp_path, capfd):
  fill(tmp_path, "a/1.png", "1.png", "2.heic")
  for _ in range(2):
    assert folder.listing(tmp_path)["train"]
  said = capfd.readouterr().err
  assert said.count("\n") == 1
  assert "2 images in" in said and "such as '1.png'; they are left out" in said
