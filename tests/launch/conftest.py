"""Puts fake programs on PATH in place of the real ones."""

import os
import shlex
import shutil

import pytest


@pytest.fixture
def place(tmp_path):
  """(environment with a folder first on PATH, function that fills it)."""
  folder = tmp_path / "bin"
  folder.mkdir()

  def make(name, body):
    program = folder / name
    calls = shlex.quote(str(tmp_path / f"{name}.calls"))
    program.write_text(
      f"#!{shutil.which('bash')}\n"
      # There is a single write, because several processes may write at once,
      # and bash writes each line separately.
      f"printf '%s\\0' \"$@\" $'\\1' >>{calls}\n{body}\n"
    )
    program.chmod(0o755)

  kept = {
    k: os.environ[k] for k in ("HOME", "LANG", "TMPDIR") if k in os.environ
  }
  make("nvidia-smi", "exit 9")
  return {**kept, "PATH": f"{folder}:{os.environ['PATH']}"}, make
