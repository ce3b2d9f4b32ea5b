"""Calls the scripts in launch/ with fake programs.

The fake programs have the names of the real ones, and are on PATH. They record
their arguments and do what the test says.
"""

import subprocess

from paths import ROOT

LAUNCH = ROOT / "launch"
ARGUMENTS = ["--config=configs/cub.py:5shot", "--workdir=/a b", "it's", "$x;*"]


def calls(tmp_path, name):
  """Returns the argument lists that a program got, in order."""
  text = (tmp_path / f"{name}.calls").read_text()
  return [each.split("\0")[:-1] for each in text.split("\1\0")[:-1]]


def call(environment, script, *arguments, **options):
  return subprocess.run(
    ["bash", LAUNCH / script, *arguments],
    env=environment,
    capture_output=True,
    text=True,
    timeout=60,
    **options,
  )
