"""Memory: large images leave none behind."""

import io
import pathlib
import sys

import pytest
from forms import classify, fields, serving
from PIL import Image

from deepemd_jax.demo import server

pytestmark = pytest.mark.skipif(
  sys.platform != "linux", reason="the size of the process is read from /proc"
)
ALLOWED = 70  # MiB more than before; the image has 143


def resident() -> float:
  """MiB of this process."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  (line,) = (line for line in lines if line.startswith("VmRSS:"))
  return int(line.split()[1]) / 2**10


@pytest.fixture(scope="module")
def bomb():
  """A file of 0.6 MiB with just as many pixels as are taken."""
  file = io.BytesIO()
  image = Image.new("RGB", (10_000, 5_000), "red")
  image.save(file, "PNG", compress_level=1)
  return file.getvalue()


def test_images_of_50_megapixels(run, bomb, monkeypatch):
  """They are decoded; the long version classifies them, too."""
  monkeypatch.setattr(server.answer, "classify", lambda *_: {})
  values = fields(query=[(bomb, "q.png")])
  with serving(server.Demo(run)) as port:
    assert classify(port, fields())[0] == 200
    before = resident()
    for _ in range(3):  # glibc starts to keep memory at the second
      status, found = classify(port, values)
      assert status == 200, found
    assert resident() - before < ALLOWED


@pytest.mark.soak
def test_classified_images_of_50_megapixels(run, bomb):
  values = fields(query=[(bomb, "q.png")])
  with serving(server.Demo(run)) as port:
    for size in (fields(), values):
      assert classify(port, size)[0] == 200
    before = resident()
    for _ in range(3):
      status, found = classify(port, values)
      assert status == 200, found
      assert resident() - before < ALLOWED
