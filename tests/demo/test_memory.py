"""The demo frees the memory of large images."""

import contextlib
import io
import pathlib
import re
import subprocess
import sys

import pytest
from forms import classify, fields
from paths import ROOT
from PIL import Image

pytestmark = pytest.mark.skipif(
  sys.platform != "linux", reason="the size of the process is read from /proc"
)
ALLOWED = 20  # MiB more than before; the image has 34


@contextlib.contextmanager
def demo_process(run):
  """Runs the demo in a separate process, so that its memory can be measured."""
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "deepemd_jax", "demo"),
      *(f"--checkpoint={run}", "--port=0", "--no-browser"),
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  with process:
    try:
      line = process.stdout.readline()
      yield process.pid, int(re.search(r"127\.0\.0\.1:(\d+)", line)[1])
    finally:
      process.kill()


def resident(pid: int) -> float:
  """Returns the resident memory of a process in MiB."""
  lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
  (line,) = (line for line in lines if line.startswith("VmRSS:"))
  return int(line.split()[1]) / 2**10


def large_image() -> bytes:
  """Returns a file of 0.1 MiB with 12 million pixels."""
  file = io.BytesIO()
  image = Image.new("RGB", (4_000, 3_000), "red")
  image.save(file, "PNG", compress_level=1)
  return file.getvalue()


def test_images_of_12_megapixels(run):
  large = fields(query=[(large_image(), "q.png")])
  with demo_process(run) as (pid, port):
    for values in (fields(), large):  # compiles the programs
      assert classify(port, values)[0] == 200
    before = resident(pid)
    for _ in range(2):  # glibc would keep memory from the second on
      status, found = classify(port, values)
      assert status == 200, found
      assert resident(pid) - before < ALLOWED
