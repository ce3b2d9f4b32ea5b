"""Small runs by one process, by two, or by one with several devices."""

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

# The run has all stages. It saves checkpoints often, and leaves time to send a
# signal. Learning rates are low, so that rounding errors stay small. Three
# episodes a step cannot be divided by the numbers of devices in these tests.
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
# How the work is shared does not depend on the network, as long as it has batch
# norm. The long tests use the whole network.
NETWORKS = {
  "one block": (one_block.MODULE, {"model.backbone": one_block.NAME}),
  "resnet12": ("deepemd_jax.main", {}),
}


def command_of(network, workdir, images, fields=None):
  """Returns the command of the tiny run with one of `NETWORKS`."""
  module, more = NETWORKS[network]
  arguments = command(workdir, images, LONG | more | (fields or {}))
  return [module if x == "deepemd_jax.main" else x for x in arguments]


def free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def flags_for(devices):
  """Returns the flags of XLA for so many CPU devices."""
  flags = os.environ.get("XLA_FLAGS", "")
  if devices > 1:
    flags += f" --xla_force_host_platform_device_count={devices}"
  return flags


def run(workdir, images, fields=None, *, devices=1, network="resnet12"):
  """Runs one process with so many CPU devices, and asserts that it succeeds."""
  done = subprocess.run(
    command_of(network, workdir, images, fields),
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": flags_for(devices)},
  )
  assert done.returncode == 0, done.stderr[-3000:]


class Pair:
  """Two processes of one run; a context manager that ends both.

  Args:
    arguments: of both processes.
    folder: for the output of the processes.
    positional: whether (coordinator, count, index) follow as plain arguments,
      not as flags.
    more: further arguments of the second process.
    devices: the number of CPU devices of each process.
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
            # By default the coordinator listens on the network.
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
    """Waits for both processes, and returns their exit codes."""
    end = time.monotonic() + seconds
    return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]

  def errors(self, index):
    """Returns what a process has written to stderr so far."""
    return self.logs[index].read_text()

  def wait_for_progress(self, workdir, index, progress):
    """Waits until a process has reached so many collectives."""
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
  """Returns all arrays of the last checkpoint of a stage, by their paths."""
  steps = [p for p in (workdir / stage / "checkpoints").iterdir()]
  last = max((p for p in steps if p.name.isdigit()), key=lambda p: int(p.name))
  return {
    f"{part}/{place}": store.read().result()
    for part in ("model", "train")
    for place, store in integrity.open_arrays(last / part).items()
  }


def rows(workdir, stage):
  """Returns the metrics of a stage, without those of speed."""
  return [
    {k: v for k, v in json.loads(line).items() if "second" not in k}
    for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()
  ]


def scores(workdir):
  """Returns the results of an evaluation: of each head, and paired."""
  found = json.loads((workdir / "results.json").read_text())
  for encoder in found["encoders"].values():
    del encoder["sha256"]  # the weights may differ in the last digit
  return {name: found[name] for name in ("heads", "paired", "encoders")}


def assert_same_training(one, other, stage, *, parts=("model", "train")):
  """Asserts that the arrays of the last checkpoints are equal up to rounding.

  `model` has the parameters and the running statistics. `train` has the
  momentum, which comes from the gradients of the last steps.
  """
  first, second = arrays(one, stage), arrays(other, stage)
  assert first.keys() == second.keys() and len(first) > 30
  for name, expected in first.items():
    if not name.startswith(parts):
      continue
    # A single number of a gradient may differ by more: rounding decides which
    # of two nearly equal values a max pool takes.
    scale = max(1.0, np.abs(expected).max())
    scale *= 10 if name.startswith("train") else 1
    assert np.abs(second[name] - expected).max() <= 1e-5 * scale, name
