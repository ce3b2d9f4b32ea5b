"""Folders of copies made by others, which are squares of one size.

The name in a result says how many pixels they have.
"""

import argparse
import dataclasses

import fake
import numpy as np
import pytest
from preparing import pixels

from deepemd_jax.data.published import archives, catalogue, command, prepare
from deepemd_jax.data.published_source import PublishedSource
from deepemd_jax.errors import InputError, MissingData


def prepared(directory, name, source=None):
  """Returns the text that `data prepare` prints at its end."""
  return command.run(
    argparse.Namespace(
      data_command="prepare",
      name=name,
      directory=str(directory),
      source=source and str(source),
      skip_bad=False,
    )
  )


@pytest.fixture
def mini(monkeypatch):
  """A small miniImageNet, with copies of 30 pixels and originals of 24 x 32."""
  benchmark = dataclasses.replace(fake.small("miniimagenet"), side=30)
  monkeypatch.setattr(catalogue, "BENCHMARKS", {"miniimagenet": benchmark})
  return benchmark


@pytest.fixture
def squares(tmp_path):
  return fake.ready_tables(tmp_path / "given", "miniimagenet", side=20)


def test_squares_are_not_enlarged_and_their_name_is_proposed(
  mini, squares, tmp_path
):
  for name in ("miniimagenet", "miniimagenet:21"):
    message = "are 20 pixels wide.*enlarge.*prepare miniimagenet:20$"
    with pytest.raises(InputError, match=message):
      prepared(tmp_path / "tfds", name, squares)
  assert not (tmp_path / "tfds").exists()
  text = prepared(tmp_path / "tfds", "miniimagenet:20", squares)
  assert text.splitlines()[0] == (
    f"{mini.title}; made from given, a ready folder, its images unchanged, "
    "squares of 20 pixels"
  )
  source = PublishedSource("miniimagenet:20", str(tmp_path / "tfds"))
  images = source.load("val")
  for row, key in enumerate(images.keys):
    copy = images.images[np.array([row])][0]
    given = (squares / "images" / key).read_bytes()
    np.testing.assert_array_equal(copy, pixels(given))


def test_squares_lie_beside_what_is_made_from_originals(
  mini, squares, tmp_path
):
  """In any order of preparation, each name keeps its meaning."""
  archive = fake.ilsvrc_archive(
    tmp_path / "x.tar", classes=fake.all_names("miniimagenet")
  )
  named = {"miniimagenet": archive, "miniimagenet:20": squares}
  for order in (list(named), list(named)[::-1]):
    place = tmp_path / order[0].replace(":", "-")
    for name in order:
      prepared(place, name, named[name])
    for name, (full, source) in {
      "miniimagenet": ("miniimagenet:30", "x.tar"),
      "miniimagenet:20": ("miniimagenet:20", "given"),
      "miniimagenet:16": ("miniimagenet:16", "x.tar"),
      "miniimagenet:original": ("miniimagenet:original", "x.tar"),
    }.items():
      found = PublishedSource(name, str(place))
      assert found.protocol == full and f"made from {source}" in found.title
    for name, given in named.items():
      assert f"{name}" in prepared(place, name)
      with pytest.raises(InputError, match="is ready in .*delete that folder"):
        prepared(place, name, given)
  rows = command.table(str(place)).splitlines()
  ready = [row.split()[0] for row in rows if " ready " in row]
  assert ready == ["miniimagenet:30", "miniimagenet:20"]


def test_where_there_are_squares_alone(mini, squares, tmp_path):
  prepared(tmp_path, "miniimagenet:20", squares)
  with pytest.raises(MissingData) as refused:
    PublishedSource("miniimagenet", str(tmp_path)).check()
  assert refused.value.lines[0].endswith(
    "smaller squares of it are ready: miniimagenet:20"
  )
  for name, full in (("16", "16"), ("original", "20")):
    source = PublishedSource(f"miniimagenet:{name}", str(tmp_path))
    source.check()
    assert source.protocol == f"miniimagenet:{full}"
    assert source.load("val").sizes.tolist() == [[20, 20]] * 6
  assert prepare.find(mini, 30, str(tmp_path)) is mini


def test_photographs_are_no_squares(mini, squares, tmp_path):
  """Squares of several sizes do not count either; a bad file is ignored."""
  images = sorted((squares / "images").iterdir())
  images[0].write_bytes(b"bad")
  assert archives.side_of_squares(mini, squares) == 20
  for height, width in ((20, 24), (16, 16)):
    images[-1].write_bytes(fake.picture("x", height, width))
    assert archives.side_of_squares(mini, squares) == 0
  folder = fake.ilsvrc_folder(tmp_path / "originals")
  assert archives.side_of_squares(mini, folder) == 0


def test_images_of_cifar_have_32_pixels(tmp_path):
  """With other sizes, the name would not say how many pixels they have."""
  benchmark = fake.small("cifar_fs")
  root = fake.ready_tables(tmp_path / "given", "cifar_fs", side=20)
  assert archives.side_of_squares(benchmark, root) == 0
  with pytest.raises(InputError, match="20 x 20 .* cifar_fs:32 have 32 x 32"):
    prepare.prepare(benchmark, str(tmp_path / "tfds"), source=root)
  assert not prepare.is_ready(benchmark, str(tmp_path / "tfds"))
