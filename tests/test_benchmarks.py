"""Every benchmark runs, small."""

import subprocess
import sys

import pytest
from paths import ROOT

SCRIPTS = sorted(p.stem for p in (ROOT / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke(name):
  done = subprocess.run(
    [sys.executable, "-m", f"benchmarks.{name}", "--smoke"],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.strip()
