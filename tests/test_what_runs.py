"""Which parts of a stranger's files are executed, and which are not.

SECURITY.md has the promises.
"""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from paths import GOLDEN, ROOT
from PIL import Image
from recipes import tiny_run

from deepemd_jax import FewShotClassifier
from deepemd_jax.config import stored
from deepemd_jax.data import picture_files
from deepemd_jax.errors import InputError
from deepemd_jax.inference import export


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Makes the workdir of a tiny run."""
  return tiny_run(tmp_path_factory.mktemp("runs") / "run")


# Reads all files of a folder, and prints what Python was asked to execute.
READS = """
import os, pathlib, sys
sys.path[:0] = [f"{sys.argv[1]}/tests", f"{sys.argv[1]}/tests/data/published"]
given, run = map(pathlib.Path, sys.argv[2:])

import hostile, preparing
from deepemd_jax import FewShotClassifier
from deepemd_jax.checkpoints import torch_file
from deepemd_jax.data import table

archives = [hostile.make(name, given / name) for name in hostile.KINDS]
classifier = FewShotClassifier(run, cache=given / "cache")
# What a library imports when it is used first has been imported.
paths = sorted((given / "pictures").iterdir())
classifier.fit(paths[:2], ["a", "b"]).predict(paths)

RUNNING = {"pickle.find_class", "subprocess.Popen", "pty.spawn"}
RUNNING |= {f"os.{x}" for x in ("system", "exec", "posix_spawn", "fork")}
asked, opened = [], set()

def watch(event, arguments):
  if event in RUNNING:
    asked.append(f"{event} {arguments}")
  if event == "exec" and arguments[0].co_filename.startswith(str(given)):
    asked.append(f"{event} {arguments}")
  if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
    opened.add(os.path.realpath(arguments[0]))

sys.addaudithook(watch)
for path in (given / "torch").glob("*.pth"):
  assert torch_file.load(path)
for path, benchmark in archives:
  assert preparing.read(benchmark, path)
assert len(table.read(given / "table.csv", ("label", "split"))) == 1
for each in (classifier, FewShotClassifier(run)):
  assert len(each.fit(paths[:2], ["a", "b"]).predict(paths)) == len(paths)
assert not asked, asked
assert {str(x) for x in paths} <= opened and len(opened) > 40
import pickle
pickle.loads(b"cos\\ngetpid\\n.")
assert len(asked) == 1
"""


def test_nothing_that_is_read_is_run(run, tmp_path):
  """An audit hook of Python reports programs and the names in pickles."""
  (tmp_path / "pictures").mkdir()
  image = Image.effect_noise((40, 30), 80).convert("RGB")
  for kind in picture_files.FORMATS:
    mode = "1" if kind in ("XBM", "MSP") else "RGB"
    with contextlib.suppress(KeyError, OSError):  # Pillow cannot write it
      image.convert(mode).save(tmp_path / "pictures" / f"a.{kind}", kind)
  assert len(list((tmp_path / "pictures").iterdir())) > 12
  shutil.copytree(GOLDEN / "torch", tmp_path / "torch")
  (tmp_path / "table.csv").write_text('label,split\n=cmd|"/c calc"!A1,train\n')
  done = subprocess.run(
    [sys.executable, "-c", READS, ROOT, tmp_path, run],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


def test_a_config_file_is_run(tmp_path):
  config = tmp_path / "config.py"
  config.write_text(f"import os; os.mkdir({str(tmp_path / 'made')!r})")
  command = [sys.executable, "-m", "deepemd_jax.main", f"--config={config}"]
  done = subprocess.run(command, capture_output=True, cwd=ROOT)
  assert done.returncode == 2  # the file makes no config
  assert (tmp_path / "made").is_dir()


def test_a_pickled_classifier_runs_what_it_says(tmp_path):
  class Stranger:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / "made"),)

  sent = pickle.dumps(FewShotClassifier(checkpoint=Stranger()))
  assert not (tmp_path / "made").exists()
  pickle.loads(sent)
  assert (tmp_path / "made").is_dir()


@pytest.fixture
def exported(run, tmp_path, monkeypatch):
  """Makes an export with a stranger's programs, and with correct checksums."""

  def program(function, *shapes):
    shapes = [jax.ShapeDtypeStruct(x, np.uint8) for x in shapes]
    return jax_export.export(jax.jit(function))(*shapes)

  images = (2, 8, 8, 3)
  programs = {
    "encoder.stablehlo": program(lambda x: jnp.full(4, 666.0), images),
    "classifier.stablehlo": program(lambda x, y: x + y, images, images),
  }
  monkeypatch.setattr(export, "_programs", lambda trained: programs)
  export.save(run, tmp_path / "exported")
  return tmp_path / "exported"


def test_the_programs_of_an_export_are_run_whoever_wrote_them(exported):
  programs = export.load(exported)
  assert (programs.encode(np.zeros((2, 8, 8, 3), np.uint8)) == 666).all()


def test_the_encoders_of_an_export_are_data(run, exported):
  """The programs of the export are never read."""
  for path in exported.glob("*.stablehlo"):
    path.unlink()
    os.mkfifo(path)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, 36, 48, 3), np.uint8)
  ours, theirs = (
    FewShotClassifier(checkpoint).fit(images[:2], ["a", "b"]).logits(images)
    for checkpoint in (run, exported)
  )
  np.testing.assert_array_equal(ours, theirs)


def test_a_checksum_does_not_tell_who_wrote_a_file(run, tmp_path):
  copy = shutil.copytree(run, tmp_path / "copy")
  path = copy / "config.json"
  fields = json.loads(path.read_text())
  path.write_text(json.dumps(stored.sealed(fields)))
  assert stored.read(path).sfc.epochs == 3
  edited = path.read_text().replace('"epochs": 3', '"epochs": 4')
  path.write_text(edited)
  with pytest.raises(InputError, match="does not match its checksum"):
    stored.read(path)
  fields["sfc"]["epochs"] = 4
  path.write_text(json.dumps(stored.sealed(fields)))
  assert stored.read(path).sfc.epochs == 4
