"""Ready folders are read, or refused with a reason."""

import dataclasses
import json
import os

import fake
import fake_basics
import pytest
from preparing import expected, labels, read

from deepemd_jax.data.published import archives, catalogue
from deepemd_jax.errors import InputError

READY = {
  "DeepEMD's miniImageNet": ("miniimagenet", fake.ready_tables, {}),
  "DeepEMD's CUB": ("cub", fake.ready_tables, {"below": ""}),
  "FEAT's CUB": ("cub", fake.ready_tables, {}),
  "DeepEMD's FC100": ("fc100", fake.ready_folders, {}),
  "DeepEMD's CIFAR-FS": ("cifar_fs", fake.ready_folders, {"meta": True}),
  "DeepEMD's tiered": ("tieredimagenet", fake.ready_folders, {}),
  "easyfsl's mini": ("miniimagenet", fake.easyfsl_tables, {}),
  "easyfsl's tiered": ("tieredimagenet", fake.easyfsl_lists, {}),
  "easyfsl's CUB": ("cub_full", fake.easyfsl_lists, {}),
}


@pytest.mark.parametrize("case", READY)
def test_ready_folders(case, tmp_path):
  name, make, options = READY[case]
  root = make(tmp_path / "ready", name, **options)
  benchmark = fake.small(name)
  found = read(benchmark, root)
  assert labels(found) == expected(benchmark)
  files = [
    group[file]
    for classes in fake.ready_files(name).values()
    for group in classes.values()
    for file in group
  ]
  assert sorted(c for _, c, _ in found.values()) == sorted(files)
  assert "a ready folder" in archives.describe(benchmark, root)


def test_the_published_list_decides_on_the_split(tmp_path):
  """A folder of CIFAR-FS has the images of FC100 in another split."""
  fc100 = fake.small("fc100", classes=100)
  root = fake.ready_folders(tmp_path, "cifar_fs", classes=100, meta=True)
  assert labels(read(fc100, root)) == expected(fc100)


@pytest.mark.parametrize(
  "places",
  [
    *[("", ""), ("images", "images"), ("train", "val"), ("train", "test")],
    ("dataset/val", "test"),
  ],
)
@pytest.mark.parametrize(
  "name", ["miniimagenet", "cifar_fs", "fc100", "grocery"]
)
def test_class_folders_as_classifiers_have_them(name, places, tmp_path):
  """The folders of a class may be in any split.

  For example, all 100 classes of miniImageNet may be in train/ and val/, in
  files like n0153282900000005.jpg. The files of CIFAR are PNG.
  """
  benchmark = fake.small(name)
  suffix = "png" if benchmark.native else "jpg"
  same_names = places[0] != places[1]
  for classes in fake.ready_files(name).values():
    for label, images in classes.items():
      for number, content in enumerate(images.values()):
        folder = tmp_path / places[number] / label
        folder.mkdir(parents=True, exist_ok=True)
        last = 5 if same_names else number
        (folder / f"{folder.name}{last:08}.{suffix}").write_bytes(content)
  found = read(benchmark, tmp_path)
  assert labels(found) == expected(benchmark)


def test_a_class_may_lie_in_folders_of_several_names(tmp_path):
  brown = {"Mushroom/Brown": {"images": 2, "also": ["Brown"]}}
  lists = {"splits": {"a": brown, "b": {"Plain": {"images": 1}}}}
  benchmark = dataclasses.replace(
    catalogue.BENCHMARKS["grocery"],
    splits=("a", "b"),
    lists=fake_basics.Lists(json.dumps(lists)),
  )
  for name in ("train/Mushroom/Brown", "val/Brown", "val/Plain"):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "1.jpg").write_bytes(fake.picture(name))
  found = read(benchmark, tmp_path)
  assert labels(found) == {"Mushroom/Brown": 2, "Plain": 1}


@pytest.mark.parametrize(
  ("name", "make", "message"),
  [
    ("cub", fake.easyfsl_lists, "easyfsl's images are whole"),
    ("cub_full", fake.ready_tables, "images are cropped to their boxes"),
    ("cub_retrieval", fake.ready_folders, "no ready folders of it are known"),
    ("cars196", fake.ready_folders, "or use car_ims.tgz"),
  ],
)
def test_ready_folders_of_other_images_are_refused(
  name, make, message, tmp_path
):
  root = make(tmp_path, name)
  with pytest.raises(InputError, match=message):
    read(fake.small(name), root)


@pytest.mark.parametrize("name", ["train_labels.pkl", "CIFAR_FS_test.pickle"])
def test_pickles_are_refused_with_the_reason(name, tmp_path):
  (tmp_path / "train_images.npz").touch()
  (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
  with pytest.raises(InputError, match="pickles are programs.*no class names"):
    read(fake.small("tieredimagenet"), tmp_path)


@pytest.mark.parametrize("name", catalogue.BENCHMARKS)
def test_an_unknown_folder_is_told_what_was_looked_for(name, tmp_path):
  (tmp_path / "notes.txt").touch()
  benchmark = catalogue.BENCHMARKS[name]
  with pytest.raises(InputError) as refused:
    read(benchmark, tmp_path)
  message = str(refused.value)
  assert f"{name} can be made from; looked for" in message
  assert all(a.file in message for a in benchmark.archives[:1])
  assert "\n" not in message
  for layout, sign in (
    ("tables", "split/train.csv"),
    ("folders", "meta-train"),
    ("lists", "train.json"),
    ("classes", "for each class"),
  ):
    assert (sign in message) == (layout in benchmark.layouts)
  with pytest.raises(InputError, match="there is no file or folder"):
    read(benchmark, tmp_path / "none")


@pytest.mark.parametrize(
  ("make", "removed"),
  [
    (fake.ready_tables, "split/val.csv"),
    (fake.ready_folders, "val"),
    (fake.easyfsl_tables, "val.csv"),
    (fake.easyfsl_lists, "val.json"),
  ],
)
def test_an_unfinished_folder_is_refused(make, removed, tmp_path):
  root = make(tmp_path / "root", "miniimagenet")
  os.rename(root / removed, tmp_path / "aside")
  with pytest.raises(
    InputError, match=f"is not complete: there is no .*{removed}"
  ):
    read(fake.small("miniimagenet"), root)


HEAD = "filename,label\n"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "needs a header"),
    ("a,b\n1,2\n", "its first line is 'a,b'"),
    (HEAD + "x.jpg,7\n", "line 2: '7' is not a class of this data set.*'n01"),
    (HEAD + "x.jpg\n", "line 2: label is empty"),
    (HEAD + "../x.jpg,n01930112\n", "'../x.jpg' leads out of the folder"),
    (HEAD + "a/../../x.jpg,n01930112\n", "leads out of the folder"),
  ],
)
def test_wrong_tables_are_refused(text, message, tmp_path):
  root = fake.ready_tables(tmp_path / "root", "miniimagenet")
  (tmp_path / "x.jpg").write_bytes(fake.picture("outside"))
  (root / "split" / "test.csv").write_text(text)
  with pytest.raises(InputError, match=message) as refused:
    read(fake.small("miniimagenet"), root)
  assert "test.csv" in str(refused.value) and "\n" not in str(refused.value)


def test_a_listed_image_that_is_not_there_has_no_content(tmp_path):
  root = fake.ready_tables(tmp_path, "miniimagenet")
  (root / "images" / "n01930112_0.jpg").unlink()
  assert read(fake.small("miniimagenet"), root)["n01930112_0.jpg"][1] is None
  table = root / "split" / "test.csv"
  table.write_text(HEAD + "/etc/passwd,n01930112\n")  # is read below root
  assert read(fake.small("miniimagenet"), root)["/etc/passwd"][1] is None


@pytest.mark.parametrize(
  "text", ["", "[]", "{}", '{"class_names": ["a"], "class_roots": []}']
)
def test_wrong_lists_are_refused(text, tmp_path):
  root = fake.easyfsl_lists(tmp_path, "tieredimagenet")
  (root / "val.json").write_text(text)
  with pytest.raises(InputError, match="val.json.*class_names and class_roots"):
    read(fake.small("tieredimagenet"), root)
