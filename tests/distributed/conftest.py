"""What the tests of devices and processes share."""

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
def one_device(images, tmp_path_factory):
  """The workdir of a run by one process on one device."""
  workdir = tmp_path_factory.mktemp("one") / "run"
  run(workdir, images)
  return workdir
