"""Calling the scripts in launch/.

Programs with the names of the real ones, on PATH, note how they were called and
do as they are told.
"""

import subprocess

from paths import ROOT

LAUNCH = ROOT / "launch"
ARGUMENTS = ["--config=configs/cub.py:5shot", "--workdir=/a b", "it's", "$x;*"]


def calls(tmp_path, name):
  """The argument lists that a program got, in order."""
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
