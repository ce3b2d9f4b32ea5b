"""What the tests of devices and processes share."""

import functools

import pytest
from fixtures_runs import draw
from process_pairs import run


@pytest.fixture(scope="session")
def images(tmp_path_factory):
  """The drawings of the tiny run, which these tests need not wait for."""
  folder = tmp_path_factory.mktemp("drawings") / "images"
  draw(folder)
  return folder


@pytest.fixture(scope="session")
def on_one_device(images, tmp_path_factory):
  """Network -> the workdir of a run by one process on one device."""

  @functools.cache
  def trained(network):
    workdir = tmp_path_factory.mktemp("one") / "run"
    run(workdir, images, network=network)
    return workdir

  return trained


@pytest.fixture
def one_device(on_one_device):
  """The workdir of such a run with the whole ResNet-12."""
  return on_one_device("resnet12")
