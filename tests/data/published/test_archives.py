"""Official archives and ready folders: the images in them, or what is wrong."""

import contextlib
import os
import pathlib
import tarfile
import zipfile

import fake
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepemd_jax.data.published import archives, catalogue
from deepemd_jax.errors import InputError


def read(benchmark, source):
  """{key: (class, bytes or pixels, box)}."""
  found = {}
  for item in archives.read(benchmark, source):
    content = item.content
    if isinstance(content, pathlib.Path):
      content = content.read_bytes()
    if isinstance(content, Image.Image):
      content = np.asarray(content).tobytes()
    assert item.key not in found
    found[item.key] = (item.label, content, item.box)
  return found


def labels(found):
  counts = {}
  for label, *_ in found.values():
    counts[label] = counts.get(label, 0) + 1
  return counts


def expected(benchmark):
  return {
    c: n for s in benchmark.splits for c, n in benchmark.counts(s).items()
  }


BOX = (4.0, 2.0, 20.0, 16.0)


@pytest.mark.parametrize("name", ["cub", "cub_full", "cub_retrieval"])
def test_cub_archive_and_unpacked_are_the_same(name, tmp_path):
  benchmark = fake.small(name)
  # With classes of others: they are left out.
  classes = fake.all_names("cub_retrieval", 60)
  archive = fake.cub_archive(tmp_path / "CUB_200_2011.tgz", classes=classes)
  found = read(benchmark, archive)
  assert set(labels(found)) <= set(expected(benchmark))
  files = fake.cub_files(classes=classes)
  assert found == {
    name.removeprefix("CUB_200_2011/images/"): (
      name.split("/")[2],
      content,
      BOX if benchmark.boxed else None,
    )
    for name, content in files.items()
    if name.endswith(".jpg") and name.split("/")[2] in expected(benchmark)
  }
  unpacked = fake.unpack(files, tmp_path / "unpacked")
  for source in (tmp_path, unpacked, unpacked / "CUB_200_2011"):
    assert read(benchmark, source) == found


@pytest.mark.parametrize("name", ["fc100", "cifar_fs"])
def test_cifar_pools_train_and_test(name, tmp_path):
  benchmark = fake.small(name, per_class=3, classes=100)
  archive = fake.cifar_archive(tmp_path / "any.tar.gz", 3)
  found = read(benchmark, archive)
  assert labels(found) == expected(benchmark)
  files = fake.cifar_files(3)
  for part, count in (("train", 200), ("test", 100)):
    records = np.frombuffer(files[f"cifar-100-binary/{part}.bin"], np.uint8)
    for i, record in enumerate(records.reshape(count, 3074)):
      label, pixels, _ = found[f"{part}_{i:05d}"]
      assert label == fake.fine_labels()[record[1]]
      channels = record[2:].reshape(3, 32, 32)
      assert pixels == channels.transpose(1, 2, 0).tobytes()
  unpacked = fake.unpack(files, tmp_path / "unpacked")
  for source in (unpacked, unpacked / "cifar-100-binary"):
    assert read(benchmark, source) == found


def test_only_the_listed_images_of_mini_are_taken(tmp_path):
  benchmark = fake.small("miniimagenet")
  other = ["n01440764", *fake.all_names("miniimagenet")]
  archive = fake.ilsvrc_archive(tmp_path / "x.tar", classes=other)
  found = read(benchmark, archive)
  assert labels(found) == expected(benchmark)
  for key, (label, content, box) in found.items():
    assert key.startswith(label) and content == fake.picture(key)
    assert box is None
  root = tmp_path / "ilsvrc"
  fake.ilsvrc_folder(root / "train", classes=other)
  fake.ilsvrc_folder(root / "val", classes=other)  # the validation images
  for source in (root, root / "train"):
    assert read(benchmark, source) == found
  deep = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "train"
  fake.ilsvrc_folder(deep)
  assert read(benchmark, tmp_path / "kaggle") == found


def test_all_images_of_tiered_are_taken(tmp_path):
  benchmark = fake.small("tieredimagenet")
  classes = fake.all_names("tieredimagenet")
  files = fake.ilsvrc_files(classes=classes)
  archive = fake.ilsvrc_archive(tmp_path / "x.tar", classes=classes)
  found = read(benchmark, archive)
  assert set(found) == {name for group in files.values() for name in group}
  assert read(
    benchmark, fake.ilsvrc_folder(tmp_path / "f", classes=classes)
  ) == (found)


def test_products(tmp_path):
  benchmark = fake.small("stanford_online_products")
  found = read(benchmark, fake.products_archive(tmp_path / "p.zip"))
  assert labels(found) == expected(benchmark)
  assert found["bicycle_final/00001_0.JPG"][0] == "00001"
  unpacked = fake.unpack(fake.products_files(), tmp_path / "unpacked")
  assert read(benchmark, unpacked) == found
  (unpacked / "Stanford_Online_Products/bicycle_final/00001_0.JPG").unlink()
  lacking = read(benchmark, unpacked)["bicycle_final/00001_0.JPG"]
  assert lacking == ("00001", None, None)  # to be reported by name


def test_cars(tmp_path):
  benchmark = fake.small("cars196")
  root = fake.cars_folder(tmp_path / "cars")
  found = read(benchmark, root)
  assert labels(found) == expected(benchmark)
  assert found["car_ims/000001.jpg"][0] == "AM General Hummer SUV 2000"
  assert read(benchmark, root / "car_ims.tgz") == found
  with tarfile.open(root / "car_ims.tgz") as archive:
    for info in archive:
      content = archive.extractfile(info).read()
      fake.unpack({info.name: content}, tmp_path / "un")
  os.rename(root / "cars_annos.mat", tmp_path / "un" / "cars_annos.mat")
  assert read(benchmark, tmp_path / "un") == found
  with pytest.raises(InputError, match="cars_annos.mat.*put it there"):
    read(benchmark, root)
  for broken in (b"", b"MATLAB 5.0 MAT-file", b"x" * 500):
    (root / "cars_annos.mat").write_bytes(broken)
    with pytest.raises(InputError, match="cars_annos.mat.*is damaged"):
      read(benchmark, root)


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
  """A folder of CIFAR-FS has the images of FC100, split otherwise."""
  fc100 = fake.small("fc100", classes=100)
  root = fake.ready_folders(tmp_path, "cifar_fs", classes=100, meta=True)
  assert labels(read(fc100, root)) == expected(fc100)


@pytest.mark.parametrize(
  ("name", "make", "message"),
  [
    ("cub", fake.easyfsl_lists, "easyfsl's images are whole"),
    ("cub_full", fake.ready_tables, "images are cropped to their boxes"),
    ("cub_retrieval", fake.ready_folders, "ready folders of it are not known"),
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
  assert benchmark.archives[0].file in message and "\n" not in message
  for layout, sign in (
    ("tables", "split/train.csv"),
    ("folders", "meta-train"),
    ("lists", "train.json"),
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
    InputError, match=f"is not whole: there is no .*{removed}"
  ):
    read(fake.small("miniimagenet"), root)


HEAD = "filename,label\n"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "needs a header"),
    ("a,b\n1,2\n", r"it has \['a', 'b'\]"),
    (HEAD + "x.jpg,7\n", "line 2: '7' is no class of this data set.*'n01"),
    (HEAD + "x.jpg\n", "line 2: a field is empty"),
    (HEAD + "../x.jpg,n01930112\n", "'../x.jpg' points out of the folder"),
    (HEAD + "a/../../x.jpg,n01930112\n", "points out of the folder"),
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
  table.write_text(HEAD + "/etc/passwd,n01930112\n")  # absolute: below root
  assert read(fake.small("miniimagenet"), root)["/etc/passwd"][1] is None


@pytest.mark.parametrize(
  "text", ["", "[]", "{}", '{"class_names": ["a"], "class_roots": []}']
)
def test_wrong_lists_are_refused(text, tmp_path):
  root = fake.easyfsl_lists(tmp_path, "tieredimagenet")
  (root / "val.json").write_text(text)
  with pytest.raises(InputError, match="val.json.*class_names and class_roots"):
    read(fake.small("tieredimagenet"), root)


MAKERS = {
  "cub": fake.cub_archive,
  "fc100": fake.cifar_archive,
  "miniimagenet": fake.ilsvrc_archive,
  "stanford_online_products": fake.products_archive,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  root = tmp_path_factory.mktemp("whole")
  return {n: make(root / n).read_bytes() for n, make in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_something_else_is_not_taken_for_an_archive(name, whole, tmp_path):
  benchmark = fake.small(name)
  path = tmp_path / "archive"
  others = [whole[other] for other in MAKERS if other != name]
  for content in (b"", b"<!DOCTYPE html>" + b" " * 2000, *others):
    path.write_bytes(content)
    with contextlib.suppress(InputError):
      assert read(benchmark, path) == {}  # then the counts are wrong
  path.write_bytes(b"<!DOCTYPE html>" + b" " * 2000)
  with pytest.raises(
    InputError, match="'.*archive' is damaged.*fetch it again"
  ):
    read(benchmark, path)


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(sorted(MAKERS)), cut=st.floats(0, 0.999))
def test_a_cut_off_archive_is_refused_or_lacks_images(
  name, cut, whole, tmp_path_factory
):
  path = tmp_path_factory.mktemp("cut") / "archive"
  content = whole[name]
  path.write_bytes(content[: int(cut * len(content))])
  benchmark = fake.small(name, classes=3)
  try:
    found = read(benchmark, path)
  except InputError as refused:
    assert str(path) in str(refused) and "\n" not in str(refused)
    return
  # An uncompressed tar may end between two files. Of any archive, what follows
  # its last image may be lacking, and nobody misses it.
  lacks = len(found) < sum(expected(benchmark).values())
  assert name == "miniimagenet" if lacks else cut > 0.9


@settings(deadline=None, max_examples=60)
@given(
  name=st.sampled_from(sorted(MAKERS)),
  flips=st.lists(
    st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4
  ),
)
def test_a_flipped_byte_never_crashes(name, flips, whole, tmp_path_factory):
  path = tmp_path_factory.mktemp("flip") / "archive"
  content = bytearray(whole[name])
  for place, bits in flips:
    content[int(place * (len(content) - 1))] ^= bits
  path.write_bytes(content)
  with contextlib.suppress(InputError):
    read(fake.small(name), path)


def test_names_in_an_archive_are_only_read(tmp_path):
  """Absolute, climbing and linked members: nothing is written anywhere."""
  label = fake.all_names("cub")[0]
  files = {
    f"/tmp/CUB_200_2011/images/{label}/absolute.jpg": fake.picture("a"),
    f"../../../images/{label}/climbing.jpg": fake.picture("b"),
  }
  path = fake.tar(tmp_path / "a" / "evil.tgz", files)
  with tarfile.open(tmp_path / "a" / "links.tar", "w") as archive:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
      info = tarfile.TarInfo(f"images/{label}/{kind.decode()}.jpg")
      info.type, info.linkname = kind, "/etc/passwd"
      archive.addfile(info)
    info = tarfile.TarInfo(f"images/{label}/plain.jpg")
    archive.addfile(info)
  before = sorted(tmp_path.rglob("*"))
  benchmark = fake.small("cub_full")
  assert set(read(benchmark, path)) == {
    f"{label}/absolute.jpg",
    f"{label}/climbing.jpg",
  }
  assert set(read(benchmark, tmp_path / "a" / "links.tar")) == {
    f"{label}/plain.jpg"
  }
  assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_unpacks_to_far_too_much_is_refused(tmp_path):
  """A zip of some kB that says it holds an image of 300 MB."""
  path = tmp_path / "bomb.zip"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in fake.products_files().items():
      if name.endswith("00001_0.JPG"):
        with archive.open(name, "w", force_zip64=True) as file:
          for _ in range(300):
            file.write(bytes(1 << 20))
        continue
      archive.writestr(name, content)
  assert path.stat().st_size < 1 << 20
  with pytest.raises(InputError, match="00001_0.JPG' has 314572800 bytes"):
    read(fake.small("stanford_online_products"), path)


def test_cifar_records_are_checked(tmp_path):
  files = fake.cifar_files()
  benchmark = fake.small("fc100", classes=100)
  name = "cifar-100-binary/train.bin"

  def refuse(message, **changed):
    path = fake.tar(tmp_path / "x.tar.gz", files | changed)
    with pytest.raises(InputError, match=message):
      read(benchmark, path)

  refuse("train.bin is damaged at image 99", **{name: files[name][:-1]})
  wrong = files[name][:1] + b"\xc8" + files[name][2:]
  refuse("train.bin is damaged at image 0", **{name: wrong})
  del files[name]
  refuse("holds no train.bin")


def test_boxes_must_fit_the_images(tmp_path):
  files = fake.cub_files()
  name = "CUB_200_2011/bounding_boxes.txt"

  def refuse(message, content):
    path = fake.tar(tmp_path / "x.tgz", files | {name: content})
    with pytest.raises(InputError, match=message):
      read(fake.small("cub"), path)

  refuse("no bounding box for", b"1 1.0 1.0 2.0 2.0\n")
  refuse("do not fit each other", b"1 1.0 one 2.0 2.0\n")
  refuse("do not fit each other", b"99999 1.0 1.0 2.0 2.0\n")
  del files[name]
  with pytest.raises(InputError, match="holds no bounding_boxes.txt"):
    read(fake.small("cub"), fake.tar(tmp_path / "x.tgz", files))


def test_an_archive_is_a_stream(tmp_path, monkeypatch):
  """A tar.gz is opened once when no table is needed first, and an image is in
  memory only while it is looked at."""
  path = fake.cub_archive(tmp_path / "CUB_200_2011.tgz", per_class=4)
  opened = []
  real = tarfile.open
  monkeypatch.setattr(
    tarfile, "open", lambda *a, **k: opened.append(a) or real(*a, **k)
  )
  items = archives.read(fake.small("cub_full", 4), path)
  next(items)
  assert len(opened) == 1
  assert len(list(items)) == 4 * 9 - 1 and len(opened) == 1
