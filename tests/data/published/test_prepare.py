"""Preparation: the published images, whole or not at all."""

import io
import signal
import subprocess
import sys

import fake
import numpy as np
import pytest
import tensorflow_datasets as tfds
from paths import ROOT
from PIL import Image

from deepemd_jax.data.published import catalogue, prepare, tfds_builder
from deepemd_jax.errors import InputError, MissingData


def prepared(benchmark, directory, source, **options):
  """{split: {key: row}} of a data set that is prepared now; and its info."""
  prepare.prepare(benchmark, str(directory), source=source, **options)
  builder = prepare.make(benchmark, str(directory))
  raw = {"image": tfds.decode.SkipDecoding()}
  names = builder.info.features["label"].names
  rows = {}
  for split in benchmark.splits:
    rows[split] = {}
    for row in builder.as_data_source(split, decoders=raw):
      key = row["key"].decode()
      assert key not in rows[split]
      rows[split][key] = row | {"label": names[row["label"]]}
  return rows, builder.info


def pixels(content):
  return np.asarray(Image.open(io.BytesIO(content)))


CASES = {
  "cub": (fake.cub_archive, {}),
  "cub_full": (fake.cub_archive, {}),
  "fc100": (fake.cifar_archive, {"classes": 100}),
  "cifar_fs": (fake.cifar_archive, {"classes": 100}),
  "miniimagenet": (fake.ilsvrc_archive, {}),
  "tieredimagenet": (
    lambda path: fake.ready_folders(path, "tieredimagenet"),
    {},
  ),
  "cub_retrieval": (
    lambda path: fake.cub_archive(
      path, classes=fake.all_names("cub_retrieval")
    ),
    {},
  ),
  "cars196": (fake.cars_folder, {}),
  "stanford_online_products": (fake.products_archive, {}),
}


@pytest.mark.parametrize("name", catalogue.BENCHMARKS)
def test_every_data_set_is_prepared_from_its_archive(name, tmp_path, capfd):
  make, options = CASES[name]
  benchmark = fake.small(name, **options)
  source = make(tmp_path / "source")
  directory = tmp_path / "tfds"
  assert not prepare.is_ready(benchmark, str(directory))
  steps = []
  rows, info = prepared(
    benchmark, directory, source, progress=lambda *step: steps.append(step)
  )
  assert prepare.is_ready(benchmark, str(directory))
  total = sum(benchmark.total(split) for split in benchmark.splits)
  assert steps[-1] == ("images", total, total)
  for split in benchmark.splits:
    counts = dict.fromkeys(benchmark.counts(split), 0)
    for row in rows[split].values():
      counts[row["label"]] += 1
      image = pixels(row["image"])
      assert image.shape == (row["height"], row["width"], 3)
      assert image.dtype == np.uint8
    assert counts == benchmark.counts(split)
  assert info.features["label"].names == list(benchmark.split_of())
  metadata = prepare.metadata(benchmark, str(directory))
  assert metadata == info.metadata
  assert metadata["skipped"] == []
  assert metadata["counts"] == {
    s: benchmark.counts(s) for s in benchmark.splits
  }
  assert metadata["source"].startswith(f"{benchmark.title}; made from source")
  folder = prepare.place(benchmark, str(directory))
  assert [p.name for p in folder.parent.iterdir() if p.name[0] != "."] == [
    "1.0.0"
  ]
  out, errors = capfd.readouterr()
  assert out == ""
  assert errors == f"preparing deepemd_{name} in {folder}\n"


def test_cub_is_cropped_without_loss_and_cub_full_kept_as_it_is(tmp_path):
  source = fake.cub_archive(tmp_path / "CUB_200_2011.tgz")
  cropped, _ = prepared(fake.small("cub"), tmp_path, source)
  whole, _ = prepared(fake.small("cub_full"), tmp_path, source)
  for split, rows in whole.items():
    assert set(rows) == set(cropped[split])
    for key, row in rows.items():
      name = f"CUB_200_2011/images/{key}"
      assert row["image"] == fake.cub_files()[name]
      np.testing.assert_array_equal(
        pixels(cropped[split][key]["image"]),
        pixels(row["image"])[2:18, 4:24],  # the box is 4 2 20 16
      )


# Odd images that everybody can see, and bad ones.
ODD = {
  "cmyk": fake.picture("odd", mode="CMYK"),
  "palette": fake.picture("odd", kind="PNG", mode="P"),
  "alpha": fake.picture("odd", kind="PNG", mode="RGBA"),
  "gray": fake.picture("odd", mode="L"),
}
BAD = {
  "empty": b"",
  "text": b"no image",
  "cut": fake.picture("bad", height=200, width=200)[:2000],
}


def bad_archive(path, content, per_class=5):
  """CUB with some images of some classes replaced, of all three splits."""
  names = [
    f"{label}/{label[4:]}_{i:04d}_{i + 7}.jpg"
    for split in ("train", "val", "test")
    for i, label in enumerate(fake.names("cub", split))
  ]
  change = dict(zip(names, content, strict=False))
  return fake.cub_archive(path, per_class, change=change), list(change)


def test_odd_images_become_rgb(tmp_path):
  source, keys = bad_archive(tmp_path / "x.tgz", ODD.values())
  rows, _ = prepared(fake.small("cub_full", 5), tmp_path, source)
  rows = {key: row for split in rows.values() for key, row in split.items()}
  for key in keys:
    image = Image.open(io.BytesIO(rows[key]["image"]))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 24))


def test_all_bad_images_of_all_splits_are_named_and_nothing_is_left(tmp_path):
  content = list(BAD.values()) * 3
  source, keys = bad_archive(tmp_path / "x.tgz", content)
  benchmark = fake.small("cub", 5)
  with pytest.raises(tfds_builder.BadImages) as refused:
    prepare.prepare(benchmark, str(tmp_path / "tfds"), source=source)
  assert str(refused.value).startswith("9 of 45 images cannot be read; ")
  assert "--skip-bad" in str(refused.value)
  assert [line.partition(": ")[0] for line in refused.value.lines] == keys
  assert refused.value.lines[0].endswith(": an empty file")
  assert refused.value.lines[1].endswith(": not an image")
  left = (tmp_path / "tfds" / "deepemd_cub").iterdir()
  assert [p.name for p in left] == [".lock"]


def test_bad_images_are_left_out_and_noted(tmp_path):
  source, keys = bad_archive(tmp_path / "x.tgz", BAD.values())
  benchmark = fake.small("cub", 5)
  rows, info = prepared(benchmark, tmp_path / "tfds", source, skip_bad=True)
  skipped = info.metadata["skipped"]
  assert [key for key, _ in skipped] == keys
  assert all(reason for _, reason in skipped)
  assert sum(len(split) for split in rows.values()) == 45 - 3
  assert not set(keys) & {key for split in rows.values() for key in split}
  counts = info.metadata["counts"]["train"]
  assert list(counts.values()) == [4, 4, 4]


def test_a_listed_image_that_is_not_there_is_bad(tmp_path):
  root = fake.ready_tables(tmp_path / "ready", "miniimagenet")
  (root / "images" / "n01930112_0.jpg").unlink()
  benchmark = fake.small("miniimagenet")
  with pytest.raises(tfds_builder.BadImages) as refused:
    prepare.prepare(benchmark, str(tmp_path), source=root)
  assert refused.value.lines == ["n01930112_0.jpg: it is listed, but not there"]
  _, info = prepared(benchmark, tmp_path, root, skip_bad=True)
  assert info.metadata["skipped"] == [
    ["n01930112_0.jpg", "it is listed, but not there"]
  ]


@pytest.mark.parametrize("has", [1, 3])
def test_other_counts_than_the_published_are_refused(has, tmp_path):
  source = fake.cub_archive(tmp_path / "x.tgz", per_class=has)
  with pytest.raises(InputError) as refused:
    prepare.prepare(fake.small("cub", 2), str(tmp_path), source=source)
  message = str(refused.value)
  name = fake.names("cub", "train")[0]
  assert f"class '{name}' (train) has {has} images and should have 2" in message
  assert "and 4 more" in message and "\n" not in message
  assert not prepare.is_ready(fake.small("cub", 2), str(tmp_path))


def test_a_missing_class_is_named(tmp_path):
  classes = fake.all_names("cub")
  source = fake.cub_archive(tmp_path / "x.tgz", classes=classes[:-1])
  message = f"class '{classes[-1]}' .test. has 0 images and should have 2"
  with pytest.raises(InputError, match=message):
    prepare.prepare(fake.small("cub"), str(tmp_path), source=source)


def test_where_only_totals_are_published_they_are_compared():
  from collections import Counter

  benchmark = catalogue.BENCHMARKS["cars196"]
  found = Counter()
  for split in benchmark.splits:
    names = list(benchmark.counts(split))
    found.update(names)
    found[names[0]] += benchmark.total(split) - len(names)
  tfds_builder.compare(benchmark, found, Counter())
  first = next(iter(benchmark.counts("train")))
  with pytest.raises(InputError, match="train has 8053 images.* have 8054$|;"):
    tfds_builder.compare(benchmark, found - Counter([first]), Counter())
  tfds_builder.compare(benchmark, found - Counter([first]), Counter([first]))
  last = list(benchmark.counts("test"))[-1]
  with pytest.raises(InputError, match="has 0 images and should have at least"):
    tfds_builder.compare(benchmark, found - Counter([last]), Counter())


def test_the_same_image_twice_is_refused(tmp_path):
  root = fake.ready_tables(tmp_path / "ready", "miniimagenet")
  with open(root / "split" / "test.csv", "a") as file:
    file.write("\nn01930112_0.jpg,n01930112\n")
  with pytest.raises(InputError, match="'n01930112_0.jpg' comes twice"):
    prepare.prepare(fake.small("miniimagenet"), str(tmp_path), source=root)


def test_what_is_ready_is_not_made_again(tmp_path, capfd):
  source = fake.cub_archive(tmp_path / "x.tgz")
  benchmark = fake.small("cub")
  prepare.prepare(benchmark, str(tmp_path), source=source)
  capfd.readouterr()
  prepare.prepare(benchmark, str(tmp_path), source=tmp_path / "nothing")
  assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json"])
def test_a_set_that_somebody_has_damaged_is_not_taken(name, tmp_path):
  source = fake.cub_archive(tmp_path / "x.tgz")
  benchmark = fake.small("cub")
  prepare.prepare(benchmark, str(tmp_path), source=source)
  (prepare.place(benchmark, str(tmp_path)) / name).unlink()
  assert not prepare.is_ready(benchmark, str(tmp_path))
  with pytest.raises(InputError, match="is damaged; delete that folder"):
    prepare.prepare(benchmark, str(tmp_path), source=source)


@pytest.mark.parametrize("name", catalogue.BENCHMARKS)
def test_missing_data_is_explained_in_eight_lines(name, tmp_path):
  benchmark = catalogue.BENCHMARKS[name]
  error = prepare.missing(benchmark, str(tmp_path))
  assert isinstance(error, MissingData)
  assert len(error.lines) <= 8 and not any("\n" in line for line in error.lines)
  text = "\n".join(error.lines)
  for archive in benchmark.archives:
    assert archive.file in text and archive.url in text
  assert "GB" in text or "MB" in text
  assert str(tmp_path) in text
  assert f"python -m deepemd_jax.data prepare {name} --directory" in text
  if not benchmark.archives[0].open:
    with pytest.raises(MissingData):
      prepare.prepare(benchmark, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_archive_in_the_manual_folder_is_found(tmp_path):
  place = tmp_path / "downloads" / "manual"
  place.mkdir(parents=True)
  fake.products_archive(place / "Stanford_Online_Products.zip")
  benchmark = fake.small("stanford_online_products")
  rows, _ = prepared(benchmark, tmp_path, None)
  assert len(rows["train"]) == 6


START = """
import os, resource, signal, sys
sys.path.insert(0, "tests")
import fake
from deepemd_jax.data import builders, pictures
from deepemd_jax.errors import InputError
benchmark = fake.small("cub", 5)
def prepare():
  builders.prepare(benchmark, sys.argv[1], source=sys.argv[2])
"""


def start(code, *arguments):
  return subprocess.Popen(
    [sys.executable, "-c", START + code, *map(str, arguments)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


KILL = """
real, seen = pictures.as_rgb_file, []
def until_killed(*arguments):
  seen.append(1)
  if len(seen) == int(sys.argv[3]):
    os.kill(os.getpid(), int(sys.argv[4]))
  return real(*arguments)
pictures.as_rgb_file = until_killed
prepare()
"""


def killed_and_made_again(tmp_path, source, image, number):
  process = start(KILL, tmp_path / "tfds", source, image, int(number))
  _, errors = process.communicate()
  assert process.returncode == -number, errors
  benchmark = fake.small("cub", 5)
  assert not prepare.is_ready(benchmark, str(tmp_path / "tfds"))
  folder = tmp_path / "tfds" / "deepemd_cub"
  ruins = [p for p in folder.iterdir() if p.name.startswith("incomplete")]
  assert len(ruins) == (number == signal.SIGKILL)
  rows, _ = prepared(benchmark, tmp_path / "tfds", source)
  assert sum(len(split) for split in rows.values()) == 45
  assert sorted(p.name for p in folder.iterdir()) == [".lock", "1.0.0"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_preparation_leaves_nothing(number, tmp_path):
  source = fake.cub_archive(tmp_path / "x.tgz", 5)
  killed_and_made_again(tmp_path, source, 30, number)


@pytest.mark.soak
@pytest.mark.parametrize("image", range(1, 46))
def test_a_preparation_killed_at_any_image_leaves_nothing(image, tmp_path):
  source = fake.cub_archive(tmp_path / "x.tgz", 5)
  killed_and_made_again(tmp_path, source, image, signal.SIGKILL)


FULL = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in map(int, sys.argv[3:]):  # bytes a file: then writing fails
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
  try:
    prepare()
  except InputError as error:
    print(limit, error)
print(builders.is_ready(benchmark, sys.argv[1]))
"""


def full_at(tmp_path, limits):
  source = fake.cub_archive(tmp_path / "x.tgz", 5)
  process = start(FULL, tmp_path / "tfds", source, *limits)
  out, errors = process.communicate()
  assert process.returncode == 0, errors
  *lines, ready = out.splitlines()
  assert ready == "False" and len(lines) == len(limits)
  for line in lines:
    assert "cannot prepare data in" in line and "--directory" in line
    # The latter if not even its name fits.
    assert "File too large" in line or "No usable temporary" in line
  left = (tmp_path / "tfds" / "deepemd_cub").iterdir()
  assert [p.name for p in left] == [".lock"]


def test_a_full_disk_leaves_nothing(tmp_path):
  full_at(tmp_path, [100, 3000, 10000])


@pytest.mark.soak
def test_a_disk_that_is_full_at_any_byte_leaves_nothing(tmp_path):
  full_at(tmp_path, range(10, 20000, 97))


def test_two_processes_may_prepare_at_once(tmp_path):
  source = fake.cub_archive(tmp_path / "x.tgz", 5)
  code = "prepare(); print(builders.is_ready(benchmark, sys.argv[1]))"
  pair = [start(code, tmp_path / "tfds", source) for _ in range(2)]
  results = [process.communicate() for process in pair]
  assert [out for out, _ in results] == ["True\n"] * 2, results
  errors = "".join(errors for _, errors in results)
  assert errors.count("preparing deepemd_cub") == 1


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").write_text("in the way")
  source = fake.cub_archive(tmp_path / "x.tgz")
  with pytest.raises(InputError, match="cannot prepare data.*--directory"):
    prepare.prepare(
      fake.small("cub"), str(tmp_path / "file" / "below"), source=source
    )


def test_neither_tensorflow_nor_jax_is_loaded(tmp_path):
  source = fake.cub_archive(tmp_path / "x.tgz", 5)
  code = (
    "prepare(); print([m for m in ('tensorflow','jax') if m in sys.modules])"
  )
  out, errors = start(code, tmp_path, source).communicate()
  assert out == "[]\n", errors


def test_sizes_are_readable():
  sizes = [0, 999, 1000, 168513733, 1150585339, 147897477120, 5 * 10**12]
  assert [prepare.human_size(size) for size in sizes] == [
    *("0 B", "999 B", "1.0 kB", "168.5 MB", "1.2 GB", "147.9 GB", "5.0 TB")
  ]
