"""Published data sets as sources, whose counts agree with what they load."""

import argparse
import collections
import os
import pathlib
import pickle
import shutil

import fake
import numpy as np
import pytest

from deepemd_jax.data import pixel_cache, published_source
from deepemd_jax.data.published import catalogue, command, prepare
from deepemd_jax.data.published_source import PublishedSource
from deepemd_jax.errors import InputError, MissingData


def counted(images):
  names = [images.class_names[label] for label in images.labels]
  return dict(collections.Counter(names))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A small prepared cub: {name: benchmark} and its directory."""
  root = tmp_path_factory.mktemp("published")
  small = {"cub": fake.small("cub", 4)}
  archive = fake.cub_archive(root / "CUB_200_2011.tgz", 4)
  prepare.prepare(small["cub"], str(root / "tfds"), source=archive)
  return small, root / "tfds"


@pytest.fixture
def cub(prepared, tmp_path, monkeypatch):
  """A separate directory in which cub is prepared."""
  small, directory = prepared
  monkeypatch.setattr(catalogue, "BENCHMARKS", small)
  return pathlib.Path(shutil.copytree(directory, tmp_path / "tfds"))


def test_a_published_data_set_is_as_counted(cub, capfd):
  for name, side in (("cub", 16), ("cub:20", 20), ("cub:original", 0)):
    source = PublishedSource(name, str(cub))
    source.check()
    assert source.protocol == f"cub:{side or 'original'}"
    assert "bounding boxes" in source.title
    assert source.title.endswith(
      "made from CUB_200_2011.tgz (not the official file)"
    )
    for split in ("train", "val", "test"):
      images = source.load(split)
      assert counted(images) == source.counts(split)
      assert list(source.counts(split)) == list(images.class_names)
      assert (images.sizes == (16, 20)).all()  # the size of the boxes
      for key, label in zip(images.keys, images.labels, strict=True):
        assert images.class_names[label] in key
      place = (
        cub / "stored" / "cub" / "1.0.0" / (str(side) if side else "original")
      )
      assert ("pixels" in os.listdir(place / split)) == bool(side)
      images = pickle.loads(pickle.dumps(images))
      assert images.whole(np.array([1, 0]), 84).shape == (
        2,
        *[side or 84] * 2,
        3,
      )
  with pytest.raises(InputError, match="would enlarge cub:21.*use cub:20"):
    PublishedSource("cub:21", str(cub)).load("val")
  assert capfd.readouterr() == ("", "")


def test_copies_and_originals_are_of_the_same_images(cub):
  rows = np.arange(12)
  copies, originals = (
    PublishedSource(name, str(cub)).load("val")
    for name in ("cub:20", "cub:original")
  )
  assert copies.keys == originals.keys
  np.testing.assert_array_equal(copies.labels, originals.labels)
  seen = [each.whole(rows, 20).astype(int) for each in (copies, originals)]
  assert np.abs(seen[0] - seen[1]).mean() < 3  # one is bicubic, one is bilinear
  assert np.abs(seen[0] - seen[1][::-1]).mean() > 20


def test_rows_do_not_depend_on_what_it_was_prepared_from(cub, tmp_path):
  """Otherwise an episode would have other images on another machine."""
  files = fake.cub_files(4)
  backwards = dict(reversed(files.items()))
  archive = fake.tar(tmp_path / "backwards.tgz", backwards)
  small, other = catalogue.BENCHMARKS["cub"], str(tmp_path / "other")
  prepare.prepare(small, other, source=archive)
  for name in ("cub:20", "cub:original"):
    here, there = (
      PublishedSource(name, place).load("val") for place in (str(cub), other)
    )
    assert here.keys == there.keys
    assert list(zip(here.labels, here.keys, strict=True)) == sorted(
      zip(here.labels, here.keys, strict=True)
    )
    rows = np.arange(len(here.keys))
    np.testing.assert_array_equal(here.whole(rows, 20), there.whole(rows, 20))


def test_what_is_not_prepared_is_explained(cub):
  empty = PublishedSource("cub", str(cub / "empty"))
  published = catalogue.BENCHMARKS["cub"].counts("val")
  assert empty.counts("val") == published
  for method in (empty.check, lambda: empty.load("val")):
    with pytest.raises(MissingData, match="cub is not prepared") as refused:
      method()
    assert 2 < len(refused.value.lines) <= 8
  with pytest.raises(InputError, match="no split 'dev'"):
    empty.counts("dev")
  assert not (cub / "empty").exists()


def test_copies_of_another_preparation_are_made_again(cub, tmp_path, capfd):
  source = PublishedSource("cub", str(cub))
  source.load("val")
  small = catalogue.BENCHMARKS["cub"]
  shutil.rmtree(prepare.prepared_folder(small, str(cub)))
  name = f"{fake.names('cub', 'val')[0]}"
  files = fake.cub_files(4)
  broken = next(f for f in files if f"images/{name}" in f)
  archive = fake.tar(tmp_path / "bad.tgz", files | {broken: b"not an image"})
  prepare.prepare(small, str(cub), source=archive, skip_bad=True)
  capfd.readouterr()
  published_source._open_records.cache_clear()
  images = source.load("val")
  assert counted(images) == source.counts("val") and len(images.keys) == 11
  assert source.title.endswith(
    "made from bad.tgz (not the official file); 1 bad images left out"
  )
  errors = capfd.readouterr().err
  assert errors.count("\n") == 1 and "made from other images" in errors


def test_the_data_command_makes_the_copies(prepared, tmp_path, monkeypatch):
  """A run then decodes nothing."""
  monkeypatch.setattr(catalogue, "BENCHMARKS", prepared[0])
  archive = fake.cub_archive(tmp_path / "CUB_200_2011.tgz", 4)
  command.run(
    argparse.Namespace(
      data_command="prepare",
      name="cub:20",
      directory=str(tmp_path / "tfds"),
      source=archive,
      skip_bad=False,
    )
  )
  monkeypatch.setattr(
    pixel_cache, "_copy", lambda *unused: pytest.fail("decoded")
  )
  for split in ("train", "val", "test"):
    PublishedSource("cub:20", str(tmp_path / "tfds")).load(split)
