"""Small runs by one process, by two, or on several devices of one."""

import json
import os
import socket
import subprocess
import time

import numpy as np
import one_block
from fixtures_runs import command
from paths import ROOT

from deepemd_jax.checkpoints import integrity

# All stages, checkpoints close together, and time to send a signal. Learning
# rates are low, so that rounding stays rounding, and three episodes a step do
# not divide by any number of devices here.
LONG = {
  "pretrain.epochs": 6,
  "pretrain.batch_size": 16,
  "pretrain.validate_every": 1,
  "pretrain.lr": 2e-4,
  "metatrain.batch_size": 3,
  "metatrain.epochs": 1,
  "metatrain.steps": 1,
  "metatrain.lr": 2e-4,
  "evaluate.heads": ("deepemd", "prototype"),
  "evaluate.pictures": 0,
}
SHORT = LONG | {"pretrain.epochs": 2}
# The network does not matter to how work is shared, as long as it has batch
# norm; the long tests have the whole one.
NETWORKS = {
  "one block": (one_block.MODULE, {"model.backbone": one_block.NAME}),
  "resnet12": ("deepemd_jax.main", {}),
}


def command_of(network, workdir, images, fields=None):
  """The tiny run's command with one of `NETWORKS`."""
  module, more = NETWORKS[network]
  arguments = command(workdir, images, LONG | more | (fields or {}))
  return [module if x == "deepemd_jax.main" else x for x in arguments]


def free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def flags_for(devices):
  """XLA's flags for so many CPU devices."""
  flags = os.environ.get("XLA_FLAGS", "")
  if devices > 1:
    flags += f" --xla_force_host_platform_device_count={devices}"
  return flags


def run(workdir, images, fields=None, *, devices=1, network="resnet12"):
  """One process, so many CPU devices; it must end well."""
  done = subprocess.run(
    command_of(network, workdir, images, fields),
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": flags_for(devices)},
  )
  assert done.returncode == 0, done.stderr[-3000:]


class Pair:
  """Two processes of one run; a context manager that leaves none behind.

  Args:
    arguments: of both.
    folder: for what they say.
    positional: whether (coordinator, count, index) follow as plain arguments,
      not as flags.
    more: further arguments of the second.
    devices: CPU devices of each.
  """

  def __init__(
    self, arguments, folder, *, positional=False, more=(), devices=1
  ):
    address = f"127.0.0.1:{free_port()}"
    names = ("--coordinator", "--num_processes", "--process_id")
    self.logs = [folder / f"log{i}" for i in (0, 1)]
    self.processes = []
    for i in (0, 1):
      place = [address, "2", str(i)]
      if not positional:
        place = [f"{n}={x}" for n, x in zip(names, place, strict=True)]
      with open(self.logs[i], "w") as log:
        self.processes.append(
          subprocess.Popen(
            [*arguments, *place, *(more if i else ())],
            cwd=ROOT,
            # Otherwise the coordinator listens to the network.
            env={
              **os.environ,
              "JAX_COORDINATOR_BIND_ADDRESS": address,
              "XLA_FLAGS": flags_for(devices),
            },
            stdout=subprocess.DEVNULL,
            stderr=log,
          )
        )

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    for process in self.processes:
      process.kill()
      process.wait()

  def wait(self, seconds=240):
    """The exit codes."""
    end = time.monotonic() + seconds
    return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]

  def errors(self, index):
    """What a process has said so far."""
    return self.logs[index].read_text()

  def wait_for_progress(self, workdir, index, progress):
    """Until that process has reached so many collectives."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
      assert [p.poll() for p in self.processes] == [None, None], self.errors(0)
      for path in (workdir / ".processes").glob(f"*/{index}"):
        try:
          sign = json.loads(path.read_text())
        except ValueError:
          continue
        pid = self.processes[index].pid
        if sign["pid"] == pid and sign["progress"] >= progress:
          return
      time.sleep(0.05)
    raise AssertionError(self.errors(0))


def arrays(workdir, stage):
  """All arrays of a stage's last checkpoint, by place."""
  steps = [p for p in (workdir / stage / "checkpoints").iterdir()]
  last = max((p for p in steps if p.name.isdigit()), key=lambda p: int(p.name))
  return {
    f"{part}/{place}": store.read().result()
    for part in ("model", "train")
    for place, store in integrity.open_arrays(last / part).items()
  }


def rows(workdir, stage):
  """A stage's metrics, without speed."""
  return [
    {k: v for k, v in json.loads(line).items() if "second" not in k}
    for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()
  ]


def scores(workdir):
  """What an evaluation has measured: of each head, and paired."""
  found = json.loads((workdir / "results.json").read_text())
  for encoder in found["encoders"].values():
    del encoder["sha256"]  # of weights that may differ in the last digit
  return {name: found[name] for name in ("heads", "paired", "encoders")}


def assert_same_training(one, other, stage, *, parts=("model", "train")):
  """Every array of the last checkpoint: of `model` parameters and running
  statistics, of `train` the momentum, which is the last steps' gradients."""
  first, second = arrays(one, stage), arrays(other, stage)
  assert first.keys() == second.keys() and len(first) > 30
  for name, expected in first.items():
    if not name.startswith(parts):
      continue
    # Of a gradient a single number may differ by more: rounding decides which
    # of two nearly equal values a max pool takes.
    scale = max(1.0, np.abs(expected).max())
    scale *= 10 if name.startswith("train") else 1
    assert np.abs(second[name] - expected).max() <= 1e-5 * scale, name
