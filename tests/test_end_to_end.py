"""A whole run: its files, its repetition, and what it refuses.

The run itself is one call of the real command; see `fixtures_runs`. The tests
after it run in this process.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from fixtures_runs import call, command, results, rows, run
from PIL import Image

from deepemd_jax.errors import InputError

EVALUATE = {"stages": ("evaluate",), "evaluate.pictures": 0}


def refusal(workdir, images, fields=None) -> str:
  """Returns the message of a run that is refused."""
  with pytest.raises(InputError) as error:
    run(workdir, images, fields)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_a_run_leaves_everything_behind(finished, shared):
  fields = results(finished)
  assert set(fields["heads"]) == {
    *("deepemd", "deepemd_equal_weights", "prototype")
  }
  for row in fields["heads"].values():
    assert 0 <= row["accuracy"] <= 100 and row["ci95"] >= 0
  paired = fields["paired"]["deepemd - prototype"]
  difference = (
    fields["heads"]["deepemd"]["accuracy"]
    - fields["heads"]["prototype"]["accuracy"]
  )
  assert paired["mean"] == pytest.approx(difference, abs=1e-4)  # float32
  assert fields["episodes"] == 7 and fields["seed"] == 0
  printed = (shared / "run.stdout").read_text()
  assert "DeepEMD, equal weights" in printed
  assert printed.startswith("folder:61: 2-way 1-shot")
  protocol = fields["protocol"]
  assert protocol["trained on"] == protocol["tested on"] | {"seed": 0}
  assert protocol["tested on"]["name"] == "folder:61"
  for figure in ("learning_curves", "matched_regions"):
    Image.open(finished / "figures" / f"{figure}.png").verify()
  for stage, last in (("pretrain", 16), ("metatrain", 6)):
    rows = (finished / stage / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == last
    assert list((finished / stage).rglob("events.out.tfevents*"))


def test_the_same_again_trains_nothing_and_repeats(copy, images):
  before = results(copy)
  (copy / "results.json").unlink()
  logs = [copy / x / "metrics.jsonl" for x in ("pretrain", "metatrain")]
  contents = [log.read_bytes() for log in logs]
  run(copy, images, {"evaluate.pictures": 0})
  assert results(copy) == before
  assert [log.read_bytes() for log in logs] == contents


def test_a_data_set_that_is_not_there_is_explained(tmp_path):
  """The run is refused before it makes a file or loads JAX."""
  missing = {"data.name": "cub", "data.directory": tmp_path}
  python, *rest = command(tmp_path / "run", tmp_path / "images", missing)
  ended = call([python, "-X", "importtime", *rest], code=2)
  lines = [x for x in ended.stderr.splitlines() if "import time:" not in x]
  assert lines[0].startswith("deepemd_jax: error: data set cub is not prepared")
  assert 2 < len(lines) <= 8
  assert "data prepare cub" in ended.stderr
  imported = {x.split("|")[-1].strip() for x in ended.stderr.splitlines()}
  assert "numpy" in imported and not imported & {"jax", "tensorflow_datasets"}
  assert not list(tmp_path.iterdir())


def test_another_config_is_refused_in_a_used_workdir(finished, images):
  line = refusal(finished, images, {"metatrain.lr": 0.1})
  assert "metatrain.lr was" in line


def test_a_flipped_byte_in_a_checkpoint_is_found(copy, images):
  for step in (copy / "metatrain" / "checkpoints").iterdir():
    if step.name.isdigit():
      parts = (step / "model").rglob("*")
      data = max(
        (p for p in parts if p.is_file()), key=lambda p: p.stat().st_size
      )
      content = bytearray(data.read_bytes())
      content[len(content) // 2] ^= 1
      data.write_bytes(content)
  before = (copy / "results.json").read_bytes()
  assert "checkpoints" in refusal(copy, images, EVALUATE)
  assert (copy / "results.json").read_bytes() == before


def test_a_checkpoint_of_another_width_lists_what_differs(copy, images):
  config = json.loads((copy / "config.json").read_text())
  config["model"]["width"] = 0.125
  del config["checksum"]  # an edit on purpose
  (copy / "config.json").write_text(json.dumps(config))
  line = refusal(copy, images, EVALUATE | {"model.width": 0.125})
  assert "layer1" in line


# The first checks of `main.run`, without its imports.
CHECK = """
import pathlib, sys
from deepemd_jax.config import workdir
workdir.check(pathlib.Path(sys.argv[1]), {}, trains=True)
"""


def test_a_workdir_that_is_read_only_is_refused_at_once(tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  workdir.chmod(0o555)
  arguments = [sys.executable, "-c", CHECK, workdir]
  if os.geteuid() == 0:  # permissions do not apply to root
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && "$@"'
    arguments = ["unshare", "-m", "sh", "-c", script, workdir, *arguments]
    if subprocess.run(["unshare", "-m", "true"]).returncode:
      pytest.skip("root, and not allowed to mount anything read-only")
  ended = call(arguments, code=1)
  last = ended.stderr.splitlines()[-1]
  assert f"InputError: cannot write to workdir {workdir}: " in last
  assert last.endswith("; give another --workdir")
  assert not list(workdir.iterdir())


def test_a_corrupt_image_is_named(images, tmp_path):
  broken = shutil.copytree(images, tmp_path / "images")
  (broken / "corners_03" / "7.png").write_bytes(b"not a picture")
  assert "corners_03/7.png" in refusal(tmp_path / "run", broken)


def test_an_infeasible_folder_is_refused_before_anything(images, tmp_path):
  few = shutil.copytree(images, tmp_path / "images")
  for number in range(1, 8):
    (few / "corners_12" / f"{number}.png").unlink()
  assert "corners_12" in refusal(tmp_path / "run", few)
  assert not (tmp_path / "run").exists()


@pytest.mark.soak
def test_the_command_refuses_another_config_in_one_line(finished, images):
  ended = call(command(finished, images, {"metatrain.lr": 0.1}), code=2)
  assert ended.stderr.startswith("deepemd_jax: error: ")
  assert "metatrain.lr was" in ended.stderr
  assert ended.stderr.count("\n") == 1


@pytest.mark.soak
def test_a_loss_that_is_not_finite_stops_the_command(images, tmp_path):
  wild = {"pretrain.lr": 1e12, "pretrain.optimizer": "sgd"}
  ended = call(command(tmp_path / "run", images, wild), code=2)
  last = ended.stderr.splitlines()[-1]
  assert "the loss is" in last and "learning rate" in last


@pytest.mark.soak
def test_worker_processes_change_nothing(finished, images, tmp_path):
  workdir = tmp_path / "run"
  workers = {"data.workers": 1, "stages": ("pretrain",)}
  call(command(workdir, images, workers))
  assert rows(workdir, "pretrain") == rows(finished, "pretrain")


@pytest.mark.soak
def test_the_command_again_repeats_whatever_the_batch_sizes(copy, images):
  before = results(copy)
  (copy / "results.json").unlink()
  sizes = {"evaluate.batch_size": 7, "evaluate.encode_batch_size": 5}
  call(command(copy, images, EVALUATE | sizes))
  assert results(copy) == before
  call(command(copy, images))
  assert results(copy) == before


@pytest.mark.soak
def test_another_test_set_is_named_beside_the_one_trained_on(copy, images):
  other = {"data.test_name": "folder:original", "evaluate.episodes": 2}
  ended = call(command(copy, images, EVALUATE | other))
  names = {k: v["name"] for k, v in results(copy)["protocol"].items()}
  assert names == {"trained on": "folder:61", "tested on": "folder:original"}
  assert ended.stdout.startswith("folder:61 to folder:original: 2-way")
