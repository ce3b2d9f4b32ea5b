"""Fixtures: a tiny run, and a folder of images for commands."""

import commands
import pytest
from recipes import tiny_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
  """The workdir of a tiny run."""
  return tiny_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Images in support/ and query/, in the working directory."""
  commands.paint_folders(tmp_path)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  return tmp_path


@pytest.fixture
def call(run, folder, capsys):
  """Calls a command in `folder`; returns exit code, stdout and stderr."""

  def calling(*arguments, checkpoint=run):
    return commands.call(capsys, *arguments, f"--checkpoint={checkpoint}")

  return calling
