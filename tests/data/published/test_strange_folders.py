"""`data prepare` reads a stranger's folder with links, pipes and odd names."""

import os
import shutil

import fake
import hostile
import pytest
from preparing import prepared, read

from deepemd_jax.data.published import archives, checks, prepare
from deepemd_jax.errors import InputError

OUT = "link out of the image folder, to '.*'; copy the files into the folder"
# name of a data set, function that makes its folder, place of images in it
FOLDERS = {
  "tables": ("miniimagenet", fake.ready_tables, "images"),
  "folders": ("fc100", fake.ready_folders, "test/{label}"),
  "lists": ("tieredimagenet", fake.easyfsl_lists, "images/{label}"),
  "ilsvrc": (
    "tieredimagenet",
    lambda root, name: fake.ilsvrc_folder(root, classes=fake.all_names(name)),
    "{label}",
  ),
  "cub": (
    "cub_full",
    lambda root, name: fake.unpack(fake.cub_files(), root),
    "CUB_200_2011/images/{label}",
  ),
  "cars": ("cars196", None, "car_ims"),
}


def unpacked_cars(root):
  fake.cars_folder(root)
  shutil.unpack_archive(root / "car_ims.tgz", root, "gztar", filter="data")
  (root / "car_ims.tgz").unlink()


@pytest.fixture(params=FOLDERS)
def strange(request, tmp_path):
  """A benchmark, its source folder, and a folder and an image in that."""
  name, make, below = FOLDERS[request.param]
  root = tmp_path / "given"
  unpacked_cars(root) if make is None else make(root, name)
  place = root / below.format(label=fake.names(name, "test")[0])
  return fake.small(name), root, place, min(place.iterdir())


def moved_out(path, root):
  """Moves a file or folder out of the root, and leaves a link."""
  target = root.parent / "elsewhere"
  shutil.move(path, target)
  path.symlink_to(target)


def test_a_linked_image(strange):
  benchmark, root, place, image = strange
  whole = read(benchmark, root)
  aside = image.with_name(".aside")
  image.rename(aside)
  image.symlink_to(aside.name)
  assert read(benchmark, root) == whole  # a link inside the folder
  (root.parent / "link").symlink_to("given")
  assert read(benchmark, root.parent / "link") == whole
  image.unlink()
  aside.rename(image)
  moved_out(image, root)
  with pytest.raises(InputError, match=OUT) as refused:
    read(benchmark, root)
  assert str(image) in str(refused.value) and "\n" not in str(refused.value)


def test_a_linked_folder(strange):
  benchmark, root, place, _ = strange
  moved_out(place, root)
  with pytest.raises(InputError, match=OUT):
    read(benchmark, root)


@pytest.mark.parametrize("kind", ["pipe", "loop", "nothing", "zero"])
def test_no_image_file(kind, strange, tmp_path):
  benchmark, root, _, image = strange
  image.unlink()
  if kind == "pipe":
    os.mkfifo(image)
  else:
    image.symlink_to({"loop": image, "zero": "/dev/zero"}.get(kind, "no"))
  with hostile.in_time(60), pytest.raises(InputError) as refused:
    prepare.prepare(benchmark, str(tmp_path / "tfds"), source=root)
  assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
  ("make", "name", "table"),
  [
    (fake.ready_tables, "miniimagenet", "split/val.csv"),
    (fake.easyfsl_lists, "tieredimagenet", "val.json"),
    (None, "cars196", "cars_annos.mat"),
  ],
)
def test_a_table_that_is_linked_or_a_pipe(make, name, table, tmp_path):
  root = tmp_path / "given"
  unpacked_cars(root) if make is None else make(root, name)
  moved_out(root / table, root)
  with pytest.raises(InputError, match=OUT):
    read(fake.small(name), root)
  (root / table).unlink()
  os.mkfifo(root / table)
  with hostile.in_time(), pytest.raises(InputError):
    read(fake.small(name), root)


def test_links_to_archives(tmp_path):
  """A link works if it is given itself, but not inside a given folder."""
  path, benchmark = hostile.make("cub", tmp_path / "large")
  (tmp_path / "given").mkdir()
  link = tmp_path / "given" / path.name
  link.symlink_to(path)
  assert read(benchmark, link) == read(benchmark, path)
  with pytest.raises(InputError, match="or give that place instead"):
    read(benchmark, tmp_path / "given")
  fake.unpack(fake.cub_files(), tmp_path / "unpacked")
  link.unlink()
  link.with_name("CUB_200_2011").symlink_to(tmp_path / "unpacked/CUB_200_2011")
  with pytest.raises(InputError, match=OUT):
    read(benchmark, tmp_path / "given")
  assert read(benchmark, link.with_name("CUB_200_2011")) == (
    read(benchmark, path)
  )


@pytest.mark.parametrize("name", ["cub", "stanford_online_products"])
def test_archives_that_are_no_files(name, tmp_path):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "loop").symlink_to("loop")
  benchmark = fake.small(name)
  for look in (read, archives.describe):
    for path, message in (
      ("pipe", "is not a regular file"),
      ("/dev/zero", "is not a regular file"),
      ("loop", "no file or folder"),
      ("x" * 5000, "no file or folder"),
    ):
      with hostile.in_time(), pytest.raises(InputError, match=message):
        look(benchmark, tmp_path / path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[[1]]", '{"class_names": 5}'])
def test_lists_that_are_none(text, tmp_path):
  root = fake.easyfsl_lists(tmp_path, "tieredimagenet")
  (root / "val.json").write_text(text)
  with pytest.raises(InputError, match="val.json.*class_names and class_roots"):
    read(fake.small("tieredimagenet"), root)


def test_lists_of_anything(tmp_path):
  root = fake.easyfsl_lists(tmp_path, "tieredimagenet")
  for names in ('[["a"]]', "[{}]", '["\\ud800"]', "[null]"):
    for folder in ('["x"]', "[5]", f'["{"x" * 5000}"]', '["\\u0000"]'):
      text = f'{{"class_names": {names}, "class_roots": {folder}}}'
      (root / "val.json").write_text(text)
      with pytest.raises(InputError, match="val.json"):
        read(fake.small("tieredimagenet"), root)


def test_a_name_that_is_no_text_is_a_bad_image(tmp_path):
  benchmark = fake.small("fc100")
  root = fake.ready_folders(tmp_path / "given", "fc100")
  label = fake.names("fc100", "test")[0]
  image = root / "test" / label / f"{label}_0.jpg"
  image.rename(image.with_name("\udcff.jpg"))
  with pytest.raises(checks.BadImages) as refused:
    prepare.prepare(benchmark, str(tmp_path / "tfds"), source=root)
  assert refused.value.lines == [f"{label}/\udcff.jpg: its name is not UTF-8"]
  rows, _ = prepared(benchmark, tmp_path / "tfds", root, skip_bad=True)
  assert len(rows["test"]) == 5
