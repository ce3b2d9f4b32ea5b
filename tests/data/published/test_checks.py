"""Unusual images are read; bad images and wrong sources are refused."""

import io
from collections import Counter

import fake
import pytest
from PIL import Image
from preparing import prepared

from deepemd_jax.data.published import catalogue, checks, prepare
from deepemd_jax.errors import InputError

# Unusual images that every viewer shows, and bad images.
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
  """Makes CUB with some images replaced, in classes of all three splits."""
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
  with pytest.raises(checks.BadImages) as refused:
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
  with pytest.raises(checks.BadImages) as refused:
    prepare.prepare(benchmark, str(tmp_path), source=root)
  assert refused.value.lines == ["n01930112_0.jpg: it is listed, but missing"]
  _, info = prepared(benchmark, tmp_path, root, skip_bad=True)
  assert info.metadata["skipped"] == [
    ["n01930112_0.jpg", "it is listed, but missing"]
  ]


@pytest.mark.parametrize("has", [1, 3])
def test_other_counts_than_the_published_are_refused(has, tmp_path):
  source = fake.cub_archive(tmp_path / "x.tgz", per_class=has)
  with pytest.raises(InputError) as refused:
    prepare.prepare(fake.small("cub", 2), str(tmp_path), source=source)
  message = str(refused.value)
  name = fake.names("cub", "train")[0]
  assert (
    f"class '{name}' (train) has {has} images, but should have 2" in message
  )
  assert "and 4 more" in message and "\n" not in message
  assert not prepare.is_ready(fake.small("cub", 2), str(tmp_path))


def test_a_missing_class_is_named(tmp_path):
  classes = fake.all_names("cub")
  source = fake.cub_archive(tmp_path / "x.tgz", classes=classes[:-1])
  message = f"class '{classes[-1]}' .test. has 0 images, but should have 2"
  with pytest.raises(InputError, match=message):
    prepare.prepare(fake.small("cub"), str(tmp_path), source=source)


def test_where_only_totals_are_published_they_are_compared():
  benchmark = catalogue.BENCHMARKS["cars196"]
  found = Counter()
  for split in benchmark.splits:
    names = list(benchmark.counts(split))
    found.update(names)
    found[names[0]] += benchmark.total(split) - len(names)
  checks.compare_counts(benchmark, found, Counter())
  first = next(iter(benchmark.counts("train")))
  with pytest.raises(InputError, match="train has 8053 images.* have 8054$|;"):
    checks.compare_counts(benchmark, found - Counter([first]), Counter())
  checks.compare_counts(benchmark, found - Counter([first]), Counter([first]))
  last = list(benchmark.counts("test"))[-1]
  with pytest.raises(
    InputError, match="has 0 images, but should have at least"
  ):
    checks.compare_counts(benchmark, found - Counter([last]), Counter())
