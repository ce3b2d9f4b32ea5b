"""What the tests of devices and processes share."""

import pytest
from process_pairs import run
from test_end_to_end import environment, images  # noqa: F401


@pytest.fixture(scope="session")
def one_device(images, environment, tmp_path_factory):  # noqa: F811
  """The workdir of a run by one process on one device."""
  workdir = tmp_path_factory.mktemp("one") / "run"
  run(workdir, images, environment)
  return workdir
