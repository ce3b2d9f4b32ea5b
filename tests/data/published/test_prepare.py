"""Preparation makes the published images completely, or nothing at all."""

import signal

import crashes
import fake
import forked
import numpy as np
import pytest
from preparing import pixels, prepared

from deepemd_jax.data.published import catalogue, prepare
from deepemd_jax.errors import InputError, MissingData
from deepemd_jax.utils.terminal import human_size


@pytest.mark.parametrize("name", catalogue.BENCHMARKS)
def test_every_data_set_is_prepared_from_its_archive(name, tmp_path, capfd):
  source, benchmark = fake.source(name, tmp_path / "source")
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
  made = metadata["source"].removeprefix(f"{benchmark.title}; made from ")
  ready = "source, a ready folder, its images unchanged"
  assert made.startswith(
    {
      "tieredimagenet": ready,
      "grocery": ready,
      "cars196": "car_ims.tgz (its official SHA-256 is not known)",
    }.get(name, "source (not the official file)")
  )
  folder = prepare.prepared_folder(benchmark, str(directory))
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


def test_the_same_image_twice_is_refused(tmp_path):
  root = fake.ready_tables(tmp_path / "ready", "miniimagenet")
  with open(root / "split" / "test.csv", "a") as file:
    file.write("\nn01930112_0.jpg,n01930112\n")
  with pytest.raises(InputError, match="'n01930112_0.jpg' occurs twice"):
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
  (prepare.prepared_folder(benchmark, str(tmp_path)) / name).unlink()
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
  assert ("GB" in text or "MB" in text) == bool(benchmark.archives)
  assert f"{prepare.COMMAND} prepare {name} --directory {tmp_path}" in text
  assert ("--from FOLDER" in text) == (not benchmark.archives)
  if not any(archive.open for archive in benchmark.archives):
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


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
  """CUB with five images of each class."""
  return fake.cub_archive(tmp_path_factory.mktemp("archive") / "x.tgz", 5)


def killed_and_made_again(tmp_path, source, image, number):
  code, _, errors = forked.run(
    crashes.prepare_cub_until_killed,
    *(str(tmp_path / "tfds"), source, image, number),
  )
  assert code == (-number if number == signal.SIGKILL else 130), errors
  benchmark = fake.small("cub", 5)
  assert not prepare.is_ready(benchmark, str(tmp_path / "tfds"))
  folder = tmp_path / "tfds" / "deepemd_cub"
  unfinished = [p for p in folder.iterdir() if p.name.startswith("incomplete")]
  assert len(unfinished) == (number == signal.SIGKILL)
  rows, _ = prepared(benchmark, tmp_path / "tfds", source)
  assert sum(len(split) for split in rows.values()) == 45
  assert sorted(p.name for p in folder.iterdir()) == [".lock", "1.0.0"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_preparation_leaves_nothing(number, archive, tmp_path):
  killed_and_made_again(tmp_path, archive, 30, number)


@pytest.mark.soak
@pytest.mark.parametrize("image", range(1, 46))
def test_a_preparation_killed_at_any_image_leaves_nothing(
  image, archive, tmp_path
):
  killed_and_made_again(tmp_path, archive, image, signal.SIGKILL)


def full_at(tmp_path, source, limits):
  code, out, errors = forked.run(
    crashes.prepare_cub_on_a_full_disk,
    *(str(tmp_path / "tfds"), source, limits),
  )
  assert code == 0, errors
  lines = out.splitlines()
  assert len(lines) == len(limits)
  for line in lines:
    assert "cannot prepare data in" in line and "--directory" in line
    # The second message comes if there is no space for any temporary file.
    assert "File too large" in line or "No usable temporary" in line
    assert line.endswith(" False")  # it is not ready
  left = (tmp_path / "tfds" / "deepemd_cub").iterdir()
  assert [p.name for p in left] == [".lock"]


def test_a_full_disk_leaves_nothing(archive, tmp_path):
  full_at(tmp_path, archive, [100, 3000, 10000])


@pytest.mark.soak
def test_a_disk_that_is_full_at_any_byte_leaves_nothing(archive, tmp_path):
  full_at(tmp_path, archive, range(10, 20000, 97))


def test_two_processes_may_prepare_at_once(archive, tmp_path):
  """They load neither TensorFlow nor JAX."""
  call = (crashes.prepare_cub, str(tmp_path / "tfds"), archive)
  results = [p.communicate() for p in [forked.start(*call) for _ in range(2)]]
  assert [out for _, out, _ in results] == ["True []\n"] * 2, results
  errors = "".join(errors for *_, errors in results)
  assert errors.count("preparing deepemd_cub") == 1


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").write_text("in the way")
  source = fake.cub_archive(tmp_path / "x.tgz")
  with pytest.raises(InputError, match="cannot prepare data.*--directory"):
    prepare.prepare(
      fake.small("cub"), str(tmp_path / "file" / "below"), source=source
    )


def test_sizes_are_readable():
  sizes = [0, 999, 1000, 168513733, 1150585339, 147897477120, 5 * 10**12]
  assert [human_size(size) for size in sizes] == [
    *("0 B", "999 B", "1.0 kB", "168.5 MB", "1.2 GB", "147.9 GB", "5.0 TB")
  ]
