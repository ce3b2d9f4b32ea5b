"""The real entry point, from images to results: resume, refusal, repetition.

One small run (three training stages, seconds each) is shared by all tests.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from paths import ROOT
from PIL import Image, ImageDraw

TINY = [
  "--config=configs/folder.py",
  "--config.image.size=32",
  "--config.model.width=0.0625",
  "--config.data.fractions=(0.4, 0.3, 0.3)",
  "--config.episode.way=2",
  "--config.episode.query=3",
  "--config.pretrain.epochs=4",
  "--config.pretrain.batch_size=8",
  "--config.pretrain.validate_every=2",
  "--config.pretrain.validation_episodes=4",
  "--config.metatrain.epochs=2",
  "--config.metatrain.steps=3",
  "--config.metatrain.validation_episodes=4",
  "--config.evaluate.episodes=7",
  "--config.evaluate.batch_size=3",
  "--config.evaluate.encode_batch_size=16",
  "--config.evaluate.pictures=1",
]
NO_PICTURES = "--config.evaluate.pictures=0"


def command(workdir, images, *more):
  return [
    *(sys.executable, "-m", "deepemd_jax.main", *TINY),
    f"--config.data.folder={images}",
    f"--config.data.directory={images}-kept",
    f"--workdir={workdir}",
    *more,
  ]


@pytest.fixture(scope="session")
def environment():
  return dict(os.environ)


def call(arguments, environment, code=0):
  done = subprocess.run(
    arguments, capture_output=True, text=True, cwd=ROOT, env=environment
  )
  assert done.returncode == code, done.stderr[-3000:]
  return done


@pytest.fixture(scope="session")
def images(tmp_path_factory):
  """Ten classes of eight drawings: a polygon of class-specific corners."""
  root = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for corners in range(3, 13):
    folder = root / f"corners_{corners:02d}"
    folder.mkdir()
    for i in range(8):
      noise = rng.integers(0, 90, (48, 64, 3), dtype=np.uint8)
      image = Image.fromarray(noise)
      center = rng.integers(20, 30, 2).tolist()
      ImageDraw.Draw(image).regular_polygon(
        (*center, 14), corners, rotation=int(rng.integers(360)), fill="white"
      )
      image.save(folder / f"{i}.png")
  return root


@pytest.fixture(scope="session")
def finished(tmp_path_factory, images, environment):
  """(workdir, what the run printed)."""
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  done = call(command(workdir, images), environment)
  return workdir, done


def results(workdir):
  """results.json without what may differ between equal runs."""
  found = json.loads((workdir / "results.json").read_text())
  found.pop("timing")
  return found


def test_a_run_leaves_everything_behind(finished):
  workdir, done = finished
  found = results(workdir)
  assert set(found["heads"]) == {
    *("deepemd", "deepemd_equal_weights", "prototype")
  }
  for row in found["heads"].values():
    assert 0 <= row["accuracy"] <= 100 and row["ci95"] >= 0
  paired = found["paired"]["deepemd - prototype"]
  difference = (
    found["heads"]["deepemd"]["accuracy"]
    - found["heads"]["prototype"]["accuracy"]
  )
  assert paired["mean"] == pytest.approx(difference, abs=1e-4)  # float32
  assert found["episodes"] == 7 and found["seed"] == 0
  assert "DeepEMD, equal weights" in done.stdout
  assert done.stdout.startswith("folder:61: 2-way 1-shot")
  assert found["protocol"]["tested on"] == found["protocol"]["trained on"]
  assert found["protocol"]["tested on"]["name"] == "folder:61"
  for figure in ("learning_curves", "matched_regions"):
    Image.open(workdir / "figures" / f"{figure}.png").verify()
  for stage, last in (("pretrain", 16), ("metatrain", 6)):
    rows = (workdir / stage / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == last
    assert list((workdir / stage).rglob("events.out.tfevents*"))


def test_the_same_command_again_trains_nothing_and_repeats(
  finished, images, environment
):
  workdir, _ = finished
  before = results(workdir)
  log = (workdir / "metatrain" / "metrics.jsonl").read_bytes()
  call(command(workdir, images), environment)
  assert results(workdir) == before
  assert (workdir / "metatrain" / "metrics.jsonl").read_bytes() == log


def test_evaluate_alone_repeats_whatever_the_batch_sizes(
  finished, images, environment, tmp_path
):
  workdir, _ = finished
  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / "results.json").unlink()
  sizes = ["--config.evaluate.batch_size=7"]
  sizes += ["--config.evaluate.encode_batch_size=5"]
  stages = '--config.stages=("evaluate",)'
  call(command(copy, images, stages, *sizes), environment)
  assert results(copy) == results(workdir)


def test_another_test_set_is_named_beside_the_one_trained_on(
  finished, images, environment, tmp_path
):
  copy = shutil.copytree(finished[0], tmp_path / "copy")
  other = "--config.data.test_name=folder:original"
  stages = '--config.stages=("evaluate",)'
  done = call(command(copy, images, stages, other), environment)
  names = {k: v["name"] for k, v in results(copy)["protocol"].items()}
  assert names == {"trained on": "folder:61", "tested on": "folder:original"}
  assert done.stdout.startswith("folder:61 to folder:original: 2-way")


def test_worker_processes_change_nothing(
  finished, images, environment, tmp_path
):
  workdir = tmp_path / "run"
  more = ["--config.data.workers=1", '--config.stages=("pretrain",)']
  call(command(workdir, images, *more), environment)
  rows, expected = (
    [
      {k: v for k, v in json.loads(line).items() if "second" not in k}
      for line in (run / "pretrain" / "metrics.jsonl").open()
    ]
    for run in (workdir, finished[0])
  )
  assert rows == expected


def test_a_data_set_that_is_not_there_is_explained(environment, tmp_path):
  """Before anything is made, and before JAX is loaded."""
  done = call(
    [
      *(sys.executable, "-X", "importtime", "-m", "deepemd_jax.main", *TINY),
      *("--config.data.name=cub", f"--config.data.directory={tmp_path}"),
      f"--workdir={tmp_path / 'run'}",
    ],
    environment,
    code=2,
  )
  lines = [x for x in done.stderr.splitlines() if "import time:" not in x]
  assert lines[0].startswith("deepemd_jax: error: data set cub is not prepared")
  assert 2 < len(lines) <= 8
  assert "python -m deepemd_jax data prepare cub" in done.stderr
  imported = {x.split("|")[-1].strip() for x in done.stderr.splitlines()}
  assert "numpy" in imported and not imported & {"jax", "tensorflow_datasets"}
  assert not list(tmp_path.iterdir())


def killed(arguments, environment, after: float, number=signal.SIGKILL):
  """Starts, waits for `after` seconds, sends the signal; the exit code."""
  process = subprocess.Popen(
    arguments,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    _, errors = process.communicate(timeout=after)
  except subprocess.TimeoutExpired:
    process.send_signal(number)
    _, errors = process.communicate()
  return process.returncode, errors


def kill_until_done(finished, images, environment, workdir, kills, seed=0):
  """Kills anywhere between the first import and the last figure."""
  rng = np.random.default_rng(seed)
  for _ in range(kills):
    after = rng.uniform(2.0, 20.0)
    code, errors = killed(command(workdir, images), environment, after)
    assert code in (0, -signal.SIGKILL), errors[-3000:]
  call(command(workdir, images), environment)
  assert results(workdir) == results(finished[0])


def test_killed_three_times_and_started_again(
  finished, images, environment, tmp_path
):
  kill_until_done(finished, images, environment, tmp_path, 3)


@pytest.mark.soak
def test_killed_fifty_times(finished, images, environment, tmp_path):
  for seed in range(10):
    workdir = tmp_path / str(seed)
    kill_until_done(finished, images, environment, workdir, 5, seed + 1)


def test_terminated_saves_and_goes_on(finished, images, environment, tmp_path):
  """TERM as soon as training has begun: one line, code 143, then the rest."""
  workdir = tmp_path / "run"
  arguments = command(workdir, images, '--config.stages=("pretrain",)')
  process = subprocess.Popen(
    arguments,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  metrics = workdir / "pretrain" / "metrics.jsonl"
  while process.poll() is None and not (
    metrics.exists() and metrics.read_text()
  ):
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate()
  assert process.returncode == 143, errors
  assert "the same command goes on" in errors.splitlines()[-1]
  call(arguments, environment)
  last, expected = (
    json.loads(log.read_text().splitlines()[-1])
    for log in (metrics, finished[0] / "pretrain" / "metrics.jsonl")
  )
  for name in ("step", "val_accuracy", "val_prototype"):
    assert last[name] == expected[name]


def test_a_loss_that_is_not_finite_stops_the_run(images, environment, tmp_path):
  wild = ["--config.pretrain.lr=1e30", "--config.pretrain.optimizer=sgd"]
  done = call(command(tmp_path / "run", images, *wild), environment, code=2)
  assert "the loss is" in done.stderr.splitlines()[-1]
  assert "learning rate" in done.stderr.splitlines()[-1]


def test_another_config_is_refused_in_a_used_workdir(
  finished, images, environment
):
  workdir, _ = finished
  done = call(
    command(workdir, images, "--config.metatrain.lr=0.1"), environment, code=2
  )
  assert "metatrain.lr was" in done.stderr
  assert done.stderr.count("\n") == 1


def test_a_flipped_byte_in_a_checkpoint_is_found(
  finished, images, environment, tmp_path
):
  copy = shutil.copytree(finished[0], tmp_path / "copy")
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
  done = call(
    command(copy, images, '--config.stages=("evaluate",)'), environment, code=2
  )
  assert done.stderr.splitlines()[-1].startswith("deepemd_jax: error: ")
  assert "checkpoints" in done.stderr
  assert (copy / "results.json").read_bytes() == before


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
  finished, images, environment, tmp_path
):
  """A run that was killed after its second validation, say, by a failing disk:
  the end is as if nothing had happened."""
  copy = shutil.copytree(finished[0], tmp_path / "copy")
  steps = copy / "metatrain" / "checkpoints"
  shutil.rmtree(steps / "6")
  for path in (steps / "3" / "train").rglob("d/*"):  # orbax reads some
    path.write_bytes(path.read_bytes()[:-9])
  done = call(command(copy, images, NO_PICTURES), environment)
  assert f"{steps / '3'} is damaged" in done.stderr
  assert f"kept as {steps / 'damaged.3'}" in done.stderr
  assert results(copy) == results(finished[0])


def test_a_full_disk_while_saving_is_one_line_and_nothing_is_lost(
  finished, images, environment, tmp_path
):
  """Files that may not grow beyond 64 kB stand for a disk without room: orbax
  gets the same error at the same place."""
  workdir = shutil.copytree(finished[0], tmp_path / "run")
  shutil.rmtree(workdir / "metatrain")
  limited = ["bash", "-c", 'ulimit -f 64; exec "$@"', "-"]
  done = call([*limited, *command(workdir, images)], environment, code=2)
  last = done.stderr.splitlines()[-1]
  assert last.startswith("deepemd_jax: error: a checkpoint in"), done.stderr
  assert "make room, and the same command goes on" in last
  assert "Traceback" not in done.stderr
  call(command(workdir, images, NO_PICTURES), environment)
  assert results(workdir) == results(finished[0])


def test_a_workdir_that_is_read_only_is_refused_at_once(
  images, environment, tmp_path
):
  workdir = tmp_path / "run"
  workdir.mkdir()
  workdir.chmod(0o555)
  arguments = command(workdir, images)
  if os.geteuid() == 0:  # whom permissions do not stop
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && "$@"'
    arguments = ["unshare", "-m", "sh", "-c", script, workdir, *arguments]
    if subprocess.run(["unshare", "-m", "true"]).returncode:
      pytest.skip("root, and not allowed to mount anything read-only")
  done = call(arguments, environment, code=2)
  assert done.stderr == (
    f"deepemd_jax: error: cannot write to workdir {workdir}: "
    f"{done.stderr.split(': ')[3].split(';')[0]}; give another --workdir\n"
  )
  assert "JAX" not in done.stderr and not list(workdir.iterdir())


def test_a_checkpoint_of_another_width_lists_what_differs(
  finished, images, environment, tmp_path
):
  copy = shutil.copytree(finished[0], tmp_path / "copy")
  config = json.loads((copy / "config.json").read_text())
  config["model"]["width"] = 0.125
  (copy / "config.json").write_text(json.dumps(config))
  wider = ["--config.model.width=0.125", '--config.stages=("evaluate",)']
  done = call(command(copy, images, *wider), environment, code=2)
  assert "layer1" in done.stderr.splitlines()[-1]


def test_a_corrupt_image_is_named(images, environment, tmp_path):
  broken = shutil.copytree(images, tmp_path / "images")
  (broken / "corners_03" / "7.png").write_bytes(b"not a picture")
  workdir = tmp_path / "run"
  done = call(command(workdir, broken), environment, code=2)
  assert "corners_03/7.png" in done.stderr.splitlines()[-1]


def test_an_infeasible_folder_is_refused_before_anything(
  images, environment, tmp_path
):
  few = shutil.copytree(images, tmp_path / "images")
  for number in range(1, 8):
    (few / "corners_12" / f"{number}.png").unlink()
  done = call(command(tmp_path / "run", few), environment, code=2)
  assert "corners_12" in done.stderr
  assert done.stderr.count("\n") == 1
  assert not (tmp_path / "run").exists()
