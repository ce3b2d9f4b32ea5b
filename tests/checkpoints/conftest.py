"""Fixtures of the tests of checkpoints."""

import shutil
import sys

import pytest
import torch_files
from small_checkpoints import save_four


@pytest.fixture(scope="session")
def untouched(tmp_path_factory):
  """Steps 2, 3 and 4 with scores 9, 9 and 7. Do not change these files."""
  directory = tmp_path_factory.mktemp("checkpoints") / "c"
  save_four(directory)
  return directory


@pytest.fixture
def four(untouched, tmp_path):
  """A copy of `untouched`."""
  return shutil.copytree(untouched, tmp_path / "c")


@pytest.fixture
def torch(monkeypatch):
  """The fake modules of PyTorch that a pickle names."""
  for name, module in torch_files.fake_torch().items():
    monkeypatch.setitem(sys.modules, name, module)
