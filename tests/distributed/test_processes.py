"""Several devices or processes give the same numbers as one.

If one process ends, all of them end. The network is one block of ResNet-12. In
`make soak`, it is the whole network, and one process also has eight devices.
test_ends.py has longer tests of how processes end, in real runs.
"""

import shutil
import signal
import socket
import subprocess
import sys

import pytest
from fixtures_runs import command
from paths import ROOT
from process_pairs import (
  Pair,
  assert_same_training,
  command_of,
  free_port,
  rows,
  run,
  scores,
)

from deepemd_jax.errors import LOST

networks = pytest.mark.parametrize(
  "network", ["one block", pytest.param("resnet12", marks=pytest.mark.soak)]
)


@pytest.mark.soak
@networks
def test_eight_devices_go_on_as_one_does(
  network, on_one_device, images, tmp_path
):
  """They resume from the last but one checkpoint of pre-training on one device.

  They run two steps of pre-training, one of meta-training, and an evaluation.
  """
  one_device, workdir = on_one_device(network), tmp_path / "run"
  shutil.copytree(one_device, workdir)
  shutil.rmtree(workdir / "pretrain" / "checkpoints" / "12")
  shutil.rmtree(workdir / "metatrain")
  (workdir / "results.json").unlink()
  run(workdir, images, devices=8, network=network)
  for stage in ("pretrain", "metatrain"):
    assert_same_training(one_device, workdir, stage)
    for row, expected in zip(
      rows(workdir, stage), rows(one_device, stage), strict=True
    ):
      assert row == pytest.approx(expected, rel=1e-5)
  assert scores(workdir) == scores(one_device)


@pytest.mark.parametrize(
  ("network", "stopped"),
  [
    ("one block", False),
    pytest.param("one block", True, marks=pytest.mark.soak),
    pytest.param("resnet12", True, marks=pytest.mark.soak),
  ],
)
def test_two_processes_find_what_one_finds(
  network, stopped, on_one_device, images, tmp_path
):
  """Each process has two devices.

  If `stopped`, one process gets SIGTERM in the middle of training, and the same
  command is given again.
  """
  one_device, workdir = on_one_device(network), tmp_path / "run"
  # In the whole ResNet-12, rounding errors grow, and meta-training would give
  # another encoder.
  all_stages = network == "one block"
  stages = ("pretrain", "metatrain", "evaluate")[:: 1 if all_stages else 2]
  arguments = command_of(network, workdir, images, {"stages": stages})
  if stopped:
    with Pair(arguments, tmp_path, devices=2) as pair:
      pair.wait_for_progress(workdir, 1, 8)
      pair.processes[1].send_signal(signal.SIGTERM)
      assert pair.wait() == [143, 143], pair.errors(0)
      last = pair.errors(0).splitlines()[-1]
      assert "and saved; the same command continues" in last
    assert not (workdir / "results.json").exists()
  with Pair(arguments, tmp_path, devices=2) as pair:
    assert pair.wait() == [0, 0], pair.errors(0)
    assert ("pretrain: step 0 of" in pair.errors(0)) != stopped
    assert "on 4 x cpu, 2 processes" in pair.errors(0)
  # The momentum is not compared: over twelve steps, rounding may change which
  # value a max pool takes.
  for stage in stages[:-1]:
    assert_same_training(one_device, workdir, stage, parts="model")
  last, expected = rows(workdir, "pretrain")[-1], rows(one_device, "pretrain")
  # The training loss is not compared: after a stop it is the mean since the
  # restart.
  for name in ("step", "val_accuracy", "val_prototype"):
    assert last[name] == expected[-1][name]
  found, expected = scores(workdir), scores(one_device)
  if not all_stages:
    # The encoder of the other head was meta-trained on one device.
    found, expected = (
      {k: x[k]["prototype"] for k in ("heads", "encoders")}
      for x in (found, expected)
    )
  assert found == expected


_DIES = """
import os, pathlib, signal, sys
import jax, numpy as np
from deepemd_jax.distributed import runtime, sharding
from deepemd_jax.errors import InputError
runtime.initialize(sys.argv[1], 2, int(sys.argv[3]))
try:
  try:
    runtime.check_same("config" if runtime.is_main() else "another")
  except InputError as error:
    print(error, file=sys.stderr, flush=True)
  runtime.check_same("config")
  runtime.start_watchdog(pathlib.Path({folder!r}))
  total = jax.jit(lambda x: x.sum(), out_shardings=sharding.replicated())
  for step in range(3):
    if step == 2 and not runtime.is_main():
      os.kill(os.getpid(), signal.SIGKILL)
    runtime.mark_progress()
    batch = sharding.shard_batch(np.ones(1))
    print(total(batch), file=sys.stderr, flush=True)
except Exception as error:
  runtime.abort(error)
"""


def test_one_that_dies_ends_both_and_another_config_is_named(
  tmp_path,
):
  arguments = [sys.executable, "-c", _DIES.format(folder=str(tmp_path))]
  with Pair(arguments, tmp_path, positional=True) as pair:
    assert pair.wait(90) == [LOST, -signal.SIGKILL], pair.errors(0)
    pid = pair.processes[1].pid
    for index in (0, 1):
      refusal, *sums = pair.errors(index).splitlines()[:3]
      assert "process 1 of 2 was started with another config" in refusal
      assert sums == ["2.0", "2.0"]
  last = pair.errors(0).splitlines()[-1]
  assert last == (
    f"deepemd_jax: process 1 of 2 (host {socket.gethostname()}, pid {pid}) has "
    "ended without a message; process 0 ends too; "
    "the same command continues the run"
  )


def test_a_mistake_ends_each_process_before_they_connect(images, tmp_path):
  """Without this, the process would wait minutes for the other one."""
  place = f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"
  done = subprocess.run(
    [
      *command(tmp_path / "run", images, {"episode.query": 30}),
      *(*place, "--process_id=1"),
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=60,
  )
  assert done.returncode == 2
  assert "lower config.metatrain.shot" in done.stderr
  assert not (tmp_path / "run").exists()
