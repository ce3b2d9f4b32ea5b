"""Long tests of runs of two processes.

One process ends in every possible way. Every kind of evaluation and solver runs
on one device, on eight devices, and on two processes.
"""

import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from fixtures_runs import command
from paths import ROOT
from process_pairs import (
  LONG,
  SHORT,
  Pair,
  assert_same_training,
  free_port,
  rows,
  run,
  scores,
)
from test_end_to_end import results

from deepemd_jax.errors import LOST

pytestmark = pytest.mark.soak

# Several ways to test a trained encoder.
EVALUATIONS = {
  "file": {"evaluate.memory": 0.0, "evaluate.heads": ("deepemd", "prototype")},
  "redrawn": {
    "nodes.kind": "sampling",
    "nodes.redraw": True,
    "evaluate.heads": ("deepemd", "prototype", "chamfer"),
  },
  "four": {
    "episode.shot": 4,
    "episode.query": 2,
    "sfc.epochs": 3,
    "evaluate.heads": ("deepemd",),
  },
}
TRAIN_AND_TEST = LONG | {
  "pretrain.epochs": 20,
  "stages": ("pretrain", "evaluate"),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_finds_the_same_on_any_devices(
  name, one_device, images, tmp_path
):
  """All evaluations test the encoders that one device has trained."""
  fields = LONG | EVALUATIONS[name] | {"stages": ("evaluate",)}
  found = []
  for devices in (1, 8):
    workdir = shutil.copytree(one_device, tmp_path / str(devices))
    (workdir / "results.json").unlink()
    run(workdir, images, fields, devices=devices)
    found.append(scores(workdir))
  (workdir / "results.json").unlink()
  arguments = command(workdir, images, fields)
  with Pair(arguments, tmp_path) as pair:
    assert pair.wait() == [0, 0], pair.errors(0)
  assert found == [scores(workdir)] * 2


def test_two_processes_do_all_stages_as_one_does(one_device, images, tmp_path):
  workdir = tmp_path / "run"
  with Pair(command(workdir, images, LONG), tmp_path) as pair:
    assert pair.wait() == [0, 0], pair.errors(0)
  for stage in ("pretrain", "metatrain"):
    assert_same_training(one_device, workdir, stage, parts="model")
    for row, expected in zip(
      rows(workdir, stage), rows(one_device, stage), strict=True
    ):
      assert row == pytest.approx(expected, rel=1e-4)
  assert scores(workdir) == scores(one_device)


def test_two_processes_with_the_simplex_do_as_one_does(images, tmp_path):
  workdirs = tmp_path / "one", tmp_path / "two"
  # There is one step of meta-training. After three steps with any solver,
  # differences in the last digit would have grown to 1e-4.
  fields = SHORT | {"emd.solver": "network_simplex"}
  run(workdirs[0], images, fields)
  with Pair(command(workdirs[1], images, fields), tmp_path) as pair:
    assert pair.wait() == [0, 0], pair.errors(0)
  for stage in ("pretrain", "metatrain"):
    assert_same_training(*workdirs, stage)
  assert scores(workdirs[0]) == scores(workdirs[1])


def test_ends_are_shared_and_nothing_is_lost(images, tmp_path):
  """The same command is ended in several ways, and then runs to its end.

  It is compared with an uninterrupted run. All stages that train have the same
  loop.
  """
  workdir, untouched = tmp_path / "run", tmp_path / "untouched"
  arguments = command(workdir, images, TRAIN_AND_TEST)
  for victim, number in (
    *((1, signal.SIGKILL), (0, signal.SIGKILL)),
    # SIGINT has the same effect as SIGTERM.
    *((1, signal.SIGINT), (1, signal.SIGSTOP)),
  ):
    with Pair(arguments, tmp_path) as pair:
      pair.wait_for_progress(workdir, victim, 20)
      pair.processes[victim].send_signal(number)
      began = time.monotonic()
      survivor = pair.processes[1 - victim]
      code = survivor.wait(60)
      errors = pair.errors(1 - victim)
      if number == signal.SIGINT:
        assert pair.wait(10) == [143, 143], errors
        last = pair.errors(0).splitlines()[-1]
        assert "and saved; the same command continues" in last
        continue
      if number == signal.SIGKILL:
        assert time.monotonic() - began < 20
      if victim == 0 and code == -signal.SIGABRT:
        # JAX noticed the end of process 0 first. Its message has no name.
        assert "another task died" in errors
        continue
      assert code == LOST and named(victim) in errors, errors
      assert "the same command continues the run" in errors.splitlines()[-1]
  assert_untouched(workdir, untouched, TRAIN_AND_TEST, images)
  last, expected = (rows(w, "pretrain")[-1] for w in (workdir, untouched))
  # The training loss is not compared: after a stop it is the mean since the
  # restart.
  for name in ("step", "val_accuracy", "val_prototype"):
    assert last[name] == expected[name]


def named(index):
  return f"process {index} of 2 (host {socket.gethostname()}, pid"


def assert_untouched(workdir, untouched, fields, images):
  """Asserts that the resumed run ends like an uninterrupted one."""
  for folder in (workdir, untouched):
    arguments = command(folder, images, fields)
    with Pair(arguments, untouched.parent) as pair:
      assert pair.wait() == [0, 0], pair.errors(0)
  assert results(workdir) == results(untouched)


@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_in_one_of_them_ends_both(victim, images, tmp_path):
  other = 1 - victim
  with failing("fail", tmp_path / "run", images, victim) as pair:
    codes = pair.wait()
    assert codes[victim] == 1, pair.errors(victim)
    assert codes[other] == LOST, pair.errors(other)
    assert "ValueError: a mistake of ours" in pair.errors(victim)
    last = pair.errors(other).splitlines()[-1]
    assert named(victim) in last
    assert "has ended (ValueError: a mistake of ours)" in last


def test_a_full_disk_ends_both(
  one_device,  # makes the copies of the images
  images,
  tmp_path,
):
  """Process 0 cannot write, and the other process waits for it inside orbax."""
  limited = ["bash", "-c", 'ulimit -f 64; exec "$@"', "-"]
  arguments = [*limited, *command(tmp_path / "run", images, SHORT)]
  with Pair(arguments, tmp_path) as pair:
    assert pair.wait(120) == [2, 2], pair.errors(0)
    last = pair.errors(0).splitlines()[-1]
    assert last.startswith("deepemd_jax: error: a checkpoint in"), last
    assert "make room; the same command then continues" in last
    assert named(0) in pair.errors(1).splitlines()[-1]


def test_another_config_in_one_of_them_ends_both(images, tmp_path):
  arguments = command(tmp_path / "run", images)
  other = ["--config.metatrain.lr=0.1"]
  with Pair(arguments, tmp_path, more=other) as pair:
    assert pair.wait(60) == [2, 2], pair.errors(0)
    for index in (0, 1):
      last = pair.errors(index).splitlines()[-1]
      assert "process 1 of 2 was started with another config" in last


def test_one_that_has_not_its_share_of_a_batch_ends_both(tmp_path):
  """The other process waits inside a computation, which gives no message."""
  code = f"""
import pathlib, sys, time
import jax, numpy as np
from deepemd_jax.distributed import runtime, sharding, watchdog
watchdog.STUCK_SECONDS = 5
runtime.initialize(sys.argv[1], 2, int(sys.argv[3]))
runtime.start_watchdog(pathlib.Path({str(tmp_path)!r}))
total = jax.jit(lambda x: x.sum(), out_shardings=sharding.replicated())
try:
  for step in range(3):
    if step == 2 and not runtime.is_main():
      time.sleep(3600)
    runtime.mark_progress()
    print(total(sharding.shard_batch(np.ones(1))), file=sys.stderr)
except Exception as error:
  runtime.abort(error)
"""
  arguments = [sys.executable, "-c", code]
  with Pair(arguments, tmp_path, positional=True) as pair:
    assert pair.wait(90) == [LOST, LOST], pair.errors(0)
    *done, last = pair.errors(0).splitlines()
    assert done[-2:] == ["2.0", "2.0"]
    assert "process 1 of 2" in last and "is stuck" in last


def test_one_that_nobody_joins_ends():
  """The process ends although it waits inside JAX."""
  code = f"""
from deepemd_jax.distributed import runtime
runtime._PATIENCE_SECONDS, runtime._MEETING_SECONDS = 1, 3
runtime.initialize("127.0.0.1:{free_port()}", 2, 1)
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=60,
  )
  assert done.returncode == LOST, done.stderr
  first, last = done.stderr.splitlines()
  assert "waiting for the other processes" in first
  assert "not all processes have connected" in last


def test_one_that_ends_before_the_first_step_ends_both(tmp_path):
  code = """
import os, signal, sys
from deepemd_jax.distributed import runtime
runtime.initialize(sys.argv[1], 2, int(sys.argv[3]))
if not runtime.is_main():
  os.kill(os.getpid(), signal.SIGKILL)
try:
  runtime.check_same("")
except Exception as error:
  runtime.abort(error)
"""
  arguments = [sys.executable, "-c", code]
  with Pair(arguments, tmp_path, positional=True) as pair:
    assert pair.wait(60) == [LOST, -signal.SIGKILL], pair.errors(0)
    last = pair.errors(0).splitlines()[-1]
    assert "another process has ended before the first step" in last


def test_one_that_hangs_though_alive_ends_both(images, tmp_path):
  with failing("hang", tmp_path / "run", images) as pair:
    assert pair.wait() == [LOST, LOST], pair.errors(0)
    last = pair.errors(0).splitlines()[-1]
    assert "process 1 of 2" in last and "is stuck" in last
  arguments = command(tmp_path / "run", images, SHORT)
  with Pair(arguments, tmp_path) as pair:
    assert pair.wait() == [0, 0], pair.errors(0)


def test_a_storm_of_signals_loses_nothing(images, tmp_path):
  """Signals come at any time after the processes are connected, to either."""
  workdir, untouched = tmp_path / "run", tmp_path / "untouched"
  rng = np.random.default_rng(0)
  arguments = command(workdir, images, SHORT)
  for _ in range(12):
    with Pair(arguments, tmp_path) as pair:
      victim = int(rng.integers(2))
      number = signal.SIGKILL if rng.random() < 0.4 else signal.SIGTERM
      time.sleep(rng.uniform(8, 30))
      pair.processes[victim].send_signal(number)
      codes, errors = pair.wait(100), pair.errors(0) + pair.errors(1)
      if codes == [0, 0]:  # the signal came too late
        break
      if 0 in codes:  # too late for one of them
        continue
      if number == signal.SIGTERM:
        assert codes == [143, 143], errors
      else:
        # With the second code, JAX has noticed the end of process 0 first.
        assert codes[1 - victim] in (LOST, -signal.SIGABRT), errors
  assert_untouched(workdir, untouched, SHORT, images)


def test_a_signal_while_they_save_is_heeded(images, tmp_path):
  with failing("saved", tmp_path / "run", images) as pair:
    assert pair.wait() == [143, 143], pair.errors(0)
    last = pair.errors(0).splitlines()[-1]
    assert "and saved; the same command continues" in last


def test_a_signal_while_they_validate_loses_nothing(images, tmp_path):
  """The step is saved before its score is known, and then again."""
  workdir, untouched = tmp_path / "run", tmp_path / "untouched"
  with failing("signal", workdir, images) as pair:
    assert pair.wait() == [143, 143], pair.errors(0)
    assert "and saved; the same command continues" in pair.errors(0)
  assert_untouched(workdir, untouched, SHORT, images)
  scores_of = [
    [row.get("val_accuracy") for row in rows(x, "pretrain")]
    for x in (workdir, untouched)
  ]
  assert scores_of[0] == scores_of[1]


def failing(kind, workdir, images, victim=1):
  """Starts a pair of processes of `tests/failing.py`."""
  arguments = command(workdir, images, SHORT)
  assert arguments[1:3] == ["-m", "deepemd_jax.main"]
  arguments[1:3] = ["tests/failing.py", kind, str(victim)]
  return Pair(arguments, workdir.parent)
