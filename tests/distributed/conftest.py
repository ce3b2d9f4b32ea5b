"""Fixtures of the tests of devices and processes."""

import functools

import pytest
from fixtures_runs import draw
from process_pairs import run


@pytest.fixture(scope="session")
def images(tmp_path_factory):
  """The drawings of the tiny run, without the run itself."""
  folder = tmp_path_factory.mktemp("drawings") / "images"
  draw(folder)
  return folder


@pytest.fixture(scope="session")
def on_one_device(images, tmp_path_factory):
  """A function from a network to the workdir of a run on one device."""

  @functools.cache
  def trained(network):
    workdir = tmp_path_factory.mktemp("one") / "run"
    run(workdir, images, network=network)
    return workdir

  return trained


@pytest.fixture
def one_device(on_one_device):
  """The workdir of a run on one device with the whole ResNet-12."""
  return on_one_device("resnet12")
