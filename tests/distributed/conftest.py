"""What the tests of devices and processes share."""

import os

import pytest
from process_pairs import run


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
  """Of the processes that are started."""
  return dict(os.environ)


@pytest.fixture(scope="session")
def images(shared):
  """The images of the tiny run; to be copied before they are changed."""
  return shared / "images"


@pytest.fixture(scope="session")
def one_device(images, environment, tmp_path_factory):
  """The workdir of a run by one process on one device."""
  workdir = tmp_path_factory.mktemp("one") / "run"
  run(workdir, images, environment)
  return workdir
