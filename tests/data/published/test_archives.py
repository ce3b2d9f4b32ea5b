"""Images are read from official archives, packed and unpacked."""

import os
import struct
import tarfile
import zlib

import fake
import fake_cars
import numpy as np
import pytest
import scipy.io
from preparing import expected, labels, read

from deepemd_jax.data.published import archive_formats, archives
from deepemd_jax.errors import InputError

BOX = (4.0, 2.0, 20.0, 16.0)


@pytest.mark.parametrize("name", ["cub", "cub_full", "cub_retrieval"])
def test_cub_archive_and_unpacked_are_the_same(name, tmp_path):
  benchmark = fake.small(name)
  # The archive also has classes of other data sets, which are left out.
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
  assert lacking == ("00001", None, None)  # will be reported by its name


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
  with pytest.raises(InputError, match="cars_annos.mat.*put that file there"):
    read(benchmark, root)
  for broken in (b"", b"MATLAB 5.0 MAT-file", b"x" * 500):
    (root / "cars_annos.mat").write_bytes(broken)
    with pytest.raises(InputError, match="cars_annos.mat.*is damaged"):
      read(benchmark, root)


@pytest.mark.parametrize("place", ["devkit", "."])
def test_cars_as_mirrors_have_them(place, tmp_path):
  """The two tables of a mirror use the same names in both folders."""
  benchmark = fake.small("cars196")
  root = fake_cars.mirrored_cars(tmp_path / "cars", tables=("devkit", place))
  found = read(benchmark, root)
  assert labels(found) == expected(benchmark)
  first = "AM General Hummer SUV 2000"
  for part in ("cars_train", "cars_test"):
    content = (root / part / "00001.jpg").read_bytes()
    assert found[f"{part}/00001.jpg"] == (first, content, None)
  assert "made from cars, a mirror's folders" in archives.describe(
    benchmark, root
  )
  os.rename(root, tmp_path / "stanford_cars")
  assert read(benchmark, tmp_path) == found
  table = "cars_test_annos_withlabels.mat"
  (tmp_path / "stanford_cars" / place / table).unlink()
  with pytest.raises(
    InputError, match=f"there is no .*{table}.*put that file there"
  ):
    read(benchmark, tmp_path)


def test_a_compressed_table_of_cars(tmp_path, monkeypatch):
  """MATLAB compresses its files. SciPy would inflate them without a limit."""
  benchmark = fake.small("cars196")
  root = fake.cars_folder(tmp_path / "cars")
  found = read(benchmark, root)
  table = root / "cars_annos.mat"
  rows = scipy.io.loadmat(table)["annotations"]
  scipy.io.savemat(table, {"annotations": rows}, do_compression=True)
  assert read(benchmark, root) == found
  monkeypatch.setattr(archive_formats, "_LARGEST_MAT", 100_000)
  assert read(benchmark, root) == found
  bomb = zlib.compress(bytes(100_000))
  head = table.read_bytes()[:128]
  table.write_bytes(head + struct.pack("<II", 15, len(bomb)) + bomb)
  with pytest.raises(InputError, match="cars_annos.mat.*is damaged"):
    read(benchmark, root)


def test_an_archive_is_a_stream(tmp_path, monkeypatch):
  """A tar.gz is opened only once if no table has to be read first.

  An image is in memory only while it is used.
  """
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
