"""A file is written completely or not at all."""

import os
import secrets

import pytest

from deepemd_jax.utils import files


def test_a_written_file_has_its_content_and_nothing_else_is_there(tmp_path):
  files.write(tmp_path / "a.txt", "ä")
  files.write(tmp_path / "a.txt", b"second")
  assert (tmp_path / "a.txt").read_bytes() == b"second"
  assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_the_old_content_and_no_scratch(tmp_path):
  files.write(tmp_path / "a.txt", "old")
  with pytest.raises(OSError, match="full"):
    with files.replacing(tmp_path / "a.txt") as scratch:
      scratch.write_text("half")
      raise OSError(28, "full")
  assert (tmp_path / "a.txt").read_text() == "old"
  assert os.listdir(tmp_path) == ["a.txt"]


def test_of_several_files_none_is_replaced_before_all_are_written(tmp_path):
  files.write(tmp_path / "a", "old")
  bad = str(tmp_path / "missing" / "b")
  with pytest.raises(OSError) as error:
    files.write_together({str(tmp_path / "a"): "new", bad: "new"})
  assert error.value.filename == bad
  assert (tmp_path / "a").read_text() == "old"
  assert os.listdir(tmp_path) == ["a"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
  (tmp_path / "real").write_text("old")
  (tmp_path / "link").symlink_to(tmp_path / "real")
  files.write(tmp_path / "link", "new")
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "real").read_text() == "new"


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
  files.write(tmp_path / ("x" * 255), "whole")
  assert (tmp_path / ("x" * 255)).read_text() == "whole"


def test_only_regular_files_are_read_and_nothing_stays_open(tmp_path):
  files.write(tmp_path / "a", "content")
  os.mkfifo(tmp_path / "pipe")
  before = len(os.listdir("/dev/fd"))
  assert files.read_regular(tmp_path / "a", 7) == b"content"
  with pytest.raises(OSError, match="larger than 6 bytes"):
    files.read_regular(tmp_path / "a", 6)
  for place in (tmp_path, tmp_path / "pipe", "/dev/zero", tmp_path / "none"):
    with pytest.raises(OSError):
      files.read_regular(place)
  assert len(os.listdir("/dev/fd")) == before


def test_a_link_in_place_of_the_scratch_file_is_not_followed(
  tmp_path, monkeypatch
):
  (tmp_path / "mine").write_text("mine")
  monkeypatch.setattr(secrets, "token_hex", lambda count: "guessed")
  link = files.scratch_beside(tmp_path / "a")
  for write in (files.write, lambda path, unused: files.probe_beside(path)):
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError):
      write(tmp_path / "a", "content")
  assert (tmp_path / "mine").read_text() == "mine"
