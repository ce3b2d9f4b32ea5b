"""Several processes: the same numbers, and ends that they share."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from paths import ROOT
from test_end_to_end import (  # noqa: F401
  command,
  environment,
  images,
  results,
)

from deepemd_jax.distributed import runtime, watchdog
from deepemd_jax.errors import LOST, MISTAKE, STOPPED

# Checkpoints are close together, and there is time to send a signal.
LONG = [
  "--config.pretrain.epochs=10",
  "--config.pretrain.validate_every=1",
  "--config.metatrain.batch_size=3",
  "--config.metatrain.epochs=1",
  "--config.metatrain.steps=7",
  "--config.evaluate.pictures=0",
]
SHORT = [*LONG, "--config.pretrain.epochs=2"]


def free_port():
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


class Pair:
  """Two processes of one run; a context manager that leaves none behind."""

  def __init__(
    self,
    arguments,
    environment,  # noqa: F811
    folder,
    flags=None,
    more=(),
  ):
    address = f"127.0.0.1:{free_port()}"
    # Otherwise the coordinator listens to the network.
    environment = {**environment, "JAX_COORDINATOR_BIND_ADDRESS": address}
    self.logs = [folder / f"log{i}" for i in (0, 1)]
    flags = flags or (
      lambda i: [
        *(f"--coordinator={address}", "--num_processes=2"),
        f"--process_id={i}",
        *(more if i else ()),
      ]
    )
    if isinstance(flags, str):  # positional
      flags = lambda i: [address, "2", str(i)]  # noqa: E731
    self.processes = [
      subprocess.Popen(
        [*arguments, *flags(i)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=open(self.logs[i], "w"),
      )
      for i in (0, 1)
    ]

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
    return self.logs[index].read_text()

  def wait_for_turns(self, workdir, index, turns):
    """Until that process has been through so many steps of training and
    batches of validation; each counts twice."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
      assert [p.poll() for p in self.processes] == [None, None], self.errors(0)
      for path in (workdir / ".processes").glob(f"*/{index}"):
        try:
          row = json.loads(path.read_text())
        except ValueError:
          continue
        pid = self.processes[index].pid
        if row["pid"] == pid and row["turns"] >= turns:
          return
      time.sleep(0.1)
    raise AssertionError(self.errors(0))


def compare(one, other):
  names = set(one.files) & set(other.files) - {"devices"}
  assert len(names) > 12
  for name in names:
    worst = np.abs(one[name] - other[name]).max()
    if name.startswith(("pretrain", "metatrain")) or name == "fcn.nodes":
      assert worst <= 1e-5 * max(1.0, np.abs(one[name]).max()), name
    else:  # the accuracy of each episode
      assert worst == 0, name


@pytest.fixture(scope="module")
def one_device(images, environment, tmp_path_factory):  # noqa: F811
  out = tmp_path_factory.mktemp("one") / "found.npz"
  run_sharded(out, images, environment)
  return np.load(out)


def sharded(out, images):  # noqa: F811
  paths = out, images, f"{images}-kept"
  return [sys.executable, "tests/sharded.py", *map(str, paths)]


def run_sharded(out, images, environment):  # noqa: F811
  subprocess.run(
    sharded(out, images),
    check=True,
    cwd=ROOT,
    env={**environment, "PYTHONPATH": str(ROOT)},
  )


def test_eight_devices_find_what_one_finds(
  one_device,
  images,  # noqa: F811
  environment,  # noqa: F811
  tmp_path,
):
  more = "--xla_force_host_platform_device_count=8"
  flags = f"{environment.get('XLA_FLAGS', '')} {more}"
  run_sharded(
    tmp_path / "found.npz", images, {**environment, "XLA_FLAGS": flags}
  )
  found = np.load(tmp_path / "found.npz")
  assert (one_device["devices"], found["devices"]) == (1, 8)
  compare(one_device, found)


def test_the_simplex_refuses_several_devices_of_a_process(environment):  # noqa: F811
  """Instead of waiting for ever."""
  code = """
import jax, numpy as np
from deepemd_jax import emd, mesh
from deepemd_jax.emd.distance import default_solver
assert default_solver() == emd.InteriorPoint()
one = np.ones((2, 3, 3), np.float32)
alone = lambda c: emd.distance(c, c[0], c[0], solver=emd.NetworkSimplex())
print(alone(one[0]))
jax.jit(mesh.each(jax.vmap(alone)))(*mesh.put((one,)))
"""
  flags = "--xla_force_host_platform_device_count=2"
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**environment, "XLA_FLAGS": flags},
  )
  assert done.stdout == "3.0\n"
  assert "use InteriorPoint, or one device a process" in done.stderr


def test_two_processes_find_what_one_finds(
  one_device,
  images,  # noqa: F811
  environment,  # noqa: F811
  tmp_path,
):
  out = tmp_path / "found.npz"
  environment = {**environment, "PYTHONPATH": str(ROOT)}
  with Pair(sharded(out, images), environment, tmp_path, "positional") as pair:
    assert pair.wait() == [0, 0], pair.errors(0)
  found = np.load(out)
  assert found["devices"] == 2
  compare(one_device, found)


def test_ends_are_shared_and_nothing_is_lost(
  images,  # noqa: F811
  environment,  # noqa: F811
  tmp_path,
):
  """The same command, again and again, each time with another end, and then
  whole, against a run that nothing happened to. All stages that train have one
  loop."""
  workdir, untouched = tmp_path / "run", tmp_path / "untouched"
  flags = [*LONG, '--config.stages=("pretrain","evaluate")']
  arguments = command(workdir, images, *flags)
  for victim, number in (
    *((1, signal.SIGKILL), (0, signal.SIGKILL)),
    # Ctrl-C, which becomes TERM.
    *((1, signal.SIGINT), (1, signal.SIGSTOP)),
  ):
    with Pair(arguments, environment, tmp_path) as pair:
      pair.wait_for_turns(workdir, victim, 20)
      pair.processes[victim].send_signal(number)
      began = time.monotonic()
      survivor = pair.processes[1 - victim]
      code = survivor.wait(60)
      errors = pair.errors(1 - victim)
      if number == signal.SIGINT:
        assert pair.wait(10) == [143, 143], errors
        last = pair.errors(0).splitlines()[-1]
        assert "and saved; the same command goes on" in last
        continue
      if number == signal.SIGKILL:
        assert time.monotonic() - began < 20
      if victim == 0 and code == -signal.SIGABRT:
        # JAX's own watch over process 0 was quicker; it has no names.
        assert "another task died" in errors
        continue
      named = f"process {victim} of 2 (host {socket.gethostname()}, pid"
      assert code == LOST and named in errors, errors
      assert "the same command goes on" in errors.splitlines()[-1]
  with Pair(arguments, environment, tmp_path) as pair:
    assert pair.wait() == [0, 0], pair.errors(0)
  with Pair(command(untouched, images, *flags), environment, tmp_path) as pair:
    assert pair.wait() == [0, 0], pair.errors(0)
  assert results(workdir) == results(untouched)
  logs = [w / "pretrain" / "metrics.jsonl" for w in (workdir, untouched)]
  rows = [log.read_text().splitlines() for log in logs]
  last = [json.loads(row[-1]) for row in rows]
  # Not the training loss: a row after a stop is the mean since the restart.
  for name in ("step", "val_accuracy", "val_prototype"):
    assert last[0][name] == last[1][name]


@pytest.mark.soak
@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_in_one_of_them_ends_both(
  victim,
  images,  # noqa: F811
  environment,  # noqa: F811
  tmp_path,
):
  workdir, other = tmp_path / "run", 1 - victim
  with failing("fail", workdir, images, environment, victim) as pair:
    codes = pair.wait()
    assert codes[victim] == 1, pair.errors(victim)
    assert codes[other] == LOST, pair.errors(other)
    assert "ValueError: a mistake of ours" in pair.errors(victim)
    named = f"process {victim} of 2 (host {socket.gethostname()}, pid"
    last = pair.errors(other).splitlines()[-1]
    assert named in last and "has ended (ValueError: a mistake of ours)" in last


def test_a_full_disk_ends_both(
  one_device,  # for the copies of the images, which are there then
  images,  # noqa: F811
  environment,  # noqa: F811
  tmp_path,
):
  """Process 0 cannot write; the other waits for it inside orbax."""
  limited = ["bash", "-c", 'ulimit -f 64; exec "$@"', "-"]
  arguments = [*limited, *command(tmp_path / "run", images, *SHORT)]
  with Pair(arguments, environment, tmp_path) as pair:
    assert pair.wait(120) == [2, 2], pair.errors(0)
    last = pair.errors(0).splitlines()[-1]
    assert last.startswith("deepemd_jax: error: a checkpoint in"), last
    assert "make room, and the same command goes on" in last
    named = f"process 0 of 2 (host {socket.gethostname()}, pid"
    assert named in pair.errors(1).splitlines()[-1]


def test_one_that_has_not_its_share_of_a_batch_ends_both(
  environment,  # noqa: F811
  tmp_path,
):
  """While the other waits inside a computation, which says nothing."""
  code = f"""
import pathlib, sys, time
import jax, numpy as np
from deepemd_jax import mesh, processes, watch
watch.BEHIND = 5
processes.begin(sys.argv[1], 2, int(sys.argv[3]))
processes.watch(pathlib.Path({str(tmp_path)!r}))
total = jax.jit(lambda x: x.sum(), out_shardings=mesh.everywhere())
try:
  for step in range(3):
    if step == 2 and not processes.first():
      time.sleep(3600)
    print(total(mesh.put(np.ones(1))), file=sys.stderr)
except Exception as error:
  processes.leave(error)
"""
  arguments = [sys.executable, "-c", code]
  with Pair(arguments, environment, tmp_path, "positional") as pair:
    assert pair.wait(90) == [LOST, LOST], pair.errors(0)
    *done, last = pair.errors(0).splitlines()
    assert done[-2:] == ["2.0", "2.0"]
    assert "process 1 of 2" in last and "is stuck" in last


def test_one_that_nobody_joins_ends(
  images,  # noqa: F811
  environment,  # noqa: F811
  tmp_path,
):
  """The test is impatient; a run waits for minutes."""
  code = """
from deepemd_jax import main, processes
processes._WAITING, processes._MEETING = 1, 3
main.entry()
"""
  arguments = command(tmp_path / "run", images)
  assert arguments[1:3] == ["-m", "deepemd_jax.main"]
  done = subprocess.run(
    [
      *(sys.executable, "-c", code, *arguments[3:], "--num_processes=2"),
      *(f"--coordinator=127.0.0.1:{free_port()}", "--process_id=1"),
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=environment,
    timeout=60,
  )
  assert done.returncode == LOST, done.stderr
  first, last = done.stderr.splitlines()
  assert "waiting for the other processes" in first
  assert "not all processes have come" in last
  assert "the same command goes on" in last


@pytest.mark.soak
def test_one_that_ends_before_the_first_step_ends_both(environment, tmp_path):  # noqa: F811
  code = """
import os, signal, sys
from deepemd_jax import processes
processes.begin(sys.argv[1], 2, int(sys.argv[3]))
if not processes.first():
  os.kill(os.getpid(), signal.SIGKILL)
try:
  processes.check_same("")
except Exception as error:
  processes.leave(error)
"""
  arguments = [sys.executable, "-c", code]
  with Pair(arguments, environment, tmp_path, "positional") as pair:
    assert pair.wait(60) == [LOST, -signal.SIGKILL], pair.errors(0)
    last = pair.errors(0).splitlines()[-1]
    assert "another process has ended before the first step" in last


@pytest.mark.soak
def test_one_that_hangs_though_alive_ends_both(
  images,  # noqa: F811
  environment,  # noqa: F811
  tmp_path,
):
  with failing("hang", tmp_path / "run", images, environment) as pair:
    assert pair.wait() == [LOST, LOST], pair.errors(0)
    last = pair.errors(0).splitlines()[-1]
    assert "process 1 of 2" in last and "is stuck" in last
  with Pair(
    command(tmp_path / "run", images, *SHORT), environment, tmp_path
  ) as pair:
    assert pair.wait() == [0, 0], pair.errors(0)


@pytest.mark.soak
def test_a_storm_of_signals_loses_nothing(
  images,  # noqa: F811
  environment,  # noqa: F811
  tmp_path,
):
  """At any time after they have met, to any of them."""
  workdir, untouched = tmp_path / "run", tmp_path / "untouched"
  rng = np.random.default_rng(0)
  arguments = command(workdir, images, *SHORT)
  for _ in range(12):
    with Pair(arguments, environment, tmp_path) as pair:
      victim = int(rng.integers(2))
      number = signal.SIGKILL if rng.random() < 0.4 else signal.SIGTERM
      time.sleep(rng.uniform(8, 30))
      pair.processes[victim].send_signal(number)
      codes, errors = pair.wait(100), pair.errors(0) + pair.errors(1)
      if codes == [0, 0]:  # it came too late
        break
      if number == signal.SIGTERM:
        assert codes == [143, 143], errors
      else:
        # The second is JAX's own watch over process 0, which may be quicker.
        assert codes[1 - victim] in (LOST, -signal.SIGABRT), errors
  for folder in (workdir, untouched):
    with Pair(command(folder, images, *SHORT), environment, tmp_path) as pair:
      assert pair.wait() == [0, 0], pair.errors(0)
  assert results(workdir) == results(untouched)


@pytest.mark.soak
def test_a_signal_while_they_save_is_heeded(
  images,  # noqa: F811
  environment,  # noqa: F811
  tmp_path,
):
  with failing("saved", tmp_path / "run", images, environment) as pair:
    assert pair.wait() == [143, 143], pair.errors(0)
    last = pair.errors(0).splitlines()[-1]
    assert "and saved; the same command goes on" in last


@pytest.mark.soak
def test_a_signal_while_they_validate_loses_nothing(
  images,  # noqa: F811
  environment,  # noqa: F811
  tmp_path,
):
  """The step is saved before its score is known, and then once more."""
  workdir, untouched = tmp_path / "run", tmp_path / "untouched"
  with failing("signal", workdir, images, environment) as pair:
    assert pair.wait() == [143, 143], pair.errors(0)
    assert "and saved; the same command goes on" in pair.errors(0)
  for folder in (workdir, untouched):
    with Pair(command(folder, images, *SHORT), environment, tmp_path) as pair:
      assert pair.wait() == [0, 0], pair.errors(0)
  assert results(workdir) == results(untouched)
  logs = [x / "pretrain" / "metrics.jsonl" for x in (workdir, untouched)]
  rows = [log.read_text().splitlines() for log in logs]
  scores = [[json.loads(x).get("val_accuracy") for x in row] for row in rows]
  assert scores[0] == scores[1]


def failing(kind, workdir, images, environment, victim=1):  # noqa: F811
  """A pair of `tests/failing.py`."""
  arguments = command(workdir, images, *SHORT)
  assert arguments[1:3] == ["-m", "deepemd_jax.main"]
  arguments[1:3] = ["tests/failing.py", kind, str(victim)]
  environment = {**environment, "PYTHONPATH": str(ROOT)}
  return Pair(arguments, environment, workdir.parent)


def test_a_mistake_ends_both(images, environment, tmp_path):  # noqa: F811
  """Found by both alike, before they connect."""
  arguments = command(tmp_path / "run", images, "--config.episode.query=30")
  with Pair(arguments, environment, tmp_path) as pair:
    assert pair.wait(60) == [2, 2]
    assert "lower config.episode.shot" in pair.errors(1)
  assert not (tmp_path / "run").exists()


def test_another_config_in_one_of_them_ends_both(
  images,  # noqa: F811
  environment,  # noqa: F811
  tmp_path,
):
  arguments = command(tmp_path / "run", images)
  other = ["--config.metatrain.lr=0.1"]
  with Pair(arguments, environment, tmp_path, more=other) as pair:
    assert pair.wait(60) == [2, 2], pair.errors(0)
    for index in (0, 1):
      last = pair.errors(index).splitlines()[-1]
      assert "process 1 of 2 was started with another config" in last


@pytest.mark.parametrize(
  "environment, launched",
  [
    ({}, False),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, False),  # inside salloc
    ({"SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"SLURM_STEP_NUM_TASKS": "8"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"TPU_WORKER_HOSTNAMES": "a-0.b,a-1.b"}, True),
  ],
)
def test_launchers_are_recognized(environment, launched):  # noqa: F811
  assert runtime.is_launched(environment) == launched


def sign(**changed):
  known = {"machine": "other/1", "pid": 7, "beats": 1, "turns": 3}
  return known | changed


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
  return now


def test_a_peer_that_is_alive_is_left_alone(clock):
  peer = watchdog.Peer(1, 4)
  for beat in range(100):
    clock[0] += 2
    # Both are in a long step, or this one is behind.
    assert peer.look(sign(beats=beat), 3) is None
    assert peer.look(sign(beats=beat, turns=4), 3) is None
  # It was here first, for long; now this one is a step further.
  assert peer.look(sign(beats=1001), 4) is None
  clock[0] += 20
  assert peer.look(None, 4) is None  # half written


def test_what_is_wrong_with_a_peer(clock):
  peer = watchdog.Peer(1, 4)
  assert peer.name == "process 1 of 4"
  clock[0] += 31
  what, _ = peer.look(None, 3)
  assert "do all processes see the same --workdir?" in what
  peer.look(sign(), 3)
  assert peer.name == "process 1 of 4 (host other, pid 7)"
  clock[0] += 31
  what, code = peer.look(sign(), 3)
  assert "no sign of life for 31 s" in what and code == LOST
  peer.forgive()
  for beat in range(9):
    assert peer.look(sign(beats=beat + 2), 4) is None
    clock[0] += 4.5
  what, code = peer.look(sign(beats=99), 4)
  assert "is stuck" in what and code == LOST
  what, code = peer.look(sign(code=2, why=""), 4)
  assert what == "has ended (exit code 2)" and code == MISTAKE
  what, code = peer.look(sign(code=1, why="ValueError: x"), 4)
  assert what == "has ended (ValueError: x)" and code == LOST
  for code in (0, STOPPED):  # as all do
    assert peer.look(sign(code=code, why=""), 9) is None


def test_a_peer_that_is_silent_is_not_waited_for(clock):
  peer = watchdog.Peer(1, 4)
  peer.look(sign(), 3)
  assert not peer.has_ended(sign())
  assert peer.has_ended(sign(code=75, why=""))
  peer = watchdog.Peer(1, 4)
  peer.look(sign(), 3)
  clock[0] += 31
  assert peer.has_ended(sign())


def test_a_process_that_is_gone_from_this_machine_is_missed_at_once():
  ended = subprocess.Popen(["true"])
  time.sleep(0.2)  # not waited for: a zombie
  here = {"machine": watchdog.machine()}
  for _ in range(2):
    peer = watchdog.Peer(1, 2)
    what, code = peer.look(sign(**here, pid=ended.pid), 3)
    assert what == "has ended without a word" and code == LOST
    ended.wait()
  peer = watchdog.Peer(1, 2)
  assert peer.look(sign(**here, pid=os.getpid()), 3) is None
