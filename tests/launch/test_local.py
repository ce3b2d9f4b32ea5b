"""launch/local.sh runs several processes, and leaves none of them behind."""

import pathlib
import re
import signal
import subprocess
import time

import pytest
from launchers import ARGUMENTS, LAUNCH, call, calls

# Process i runs the code in the variable Pi.
OBEY = """
for a; do case $a in --process_id=*) eval "eval \\"\\$P${a#*=}\\"";; esac; done
"""


def local(place, count, *, grace="1", **variables):
  environment, make = place
  make("python", OBEY)
  environment = {**environment, "DEEPEMD_GRACE": grace, **variables}
  return call(environment, "local.sh", str(count), *ARGUMENTS)


def alive(marker):
  """Returns processes, except zombies, with `marker` in their command line."""
  found = []
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      if marker.encode() in (folder / "cmdline").read_bytes():
        found.append(folder.name)
    except OSError:
      pass  # the process has just ended
  return found


def gone(marker, within=10.0):
  end = time.monotonic() + within
  while alive(marker) and time.monotonic() < end:
    time.sleep(0.05)
  return not alive(marker)


@pytest.fixture
def marker():
  """An argument of `sleep` that no other process on this machine has."""
  return f"61.{time.time_ns()}"


def test_each_process_gets_its_number_and_the_same_coordinator(place, tmp_path):
  done = local(place, 3)
  assert done.returncode == 0 and done.stderr == ""
  found = sorted(calls(tmp_path, "python"), key=lambda call: call[5])
  for i, arguments in enumerate(found):
    assert arguments[:3] == ["-u", "-m", "deepemd_jax.main"]
    assert arguments[4:6] == ["--num_processes=3", f"--process_id={i}"]
    assert arguments[6:] == ARGUMENTS
  assert len({call[3] for call in found}) == 1
  assert re.fullmatch(r"--coordinator=127\.0\.0\.1:\d{5}", found[0][3])


def test_lines_of_others_than_the_first_have_their_number(place):
  done = local(place, 2, P0="echo a; echo b >&2", P1="echo c; echo d >&2")
  assert sorted(done.stdout.split("\n")) == ["", "[1] c", "[1] d", "a"]
  assert done.stderr == "b\n"


def test_one_gpu_each_if_there_are_enough(place):
  environment, make = place
  make("nvidia-smi", "printf '0\\n1\\n2\\n'")
  show = "echo $CUDA_VISIBLE_DEVICES"
  two = local(place, 2, P0=show, P1=show)
  assert sorted(two.stdout.split("\n")) == ["", "0", "[1] 1"]
  chosen = local(place, 2, P0=show, P1=show, CUDA_VISIBLE_DEVICES="5,GPU-a")
  assert sorted(chosen.stdout.split("\n")) == ["", "5", "[1] GPU-a"]
  four = local(place, 4)
  assert four.returncode == 2 and "3 GPU(s)" in four.stderr
  assert local(place, 4, JAX_PLATFORMS="cpu").returncode == 0


def test_the_first_bad_code_counts(place):
  slow = "sleep 0.7; exit 75"
  assert local(place, 3, P0=slow, P1="exit 2", P2=slow).returncode == 2
  assert local(place, 3, P0="exit 75", P1="exit 2", P2=slow).returncode == 2
  assert local(place, 2, P0="sleep 0.7; exit 2", P1="exit 75").returncode == 75
  assert local(place, 2, P1="kill -KILL $$").returncode == 137


@pytest.mark.parametrize("stuck", ["exec sleep {}", "kill -STOP $$ # {}"])
def test_a_process_that_is_stuck_or_stopped_is_killed(place, stuck, marker):
  """It ignores SIGTERM. Processes that it has started are killed, too."""
  stuck = f"trap '' TERM; sleep {marker} & {stuck.format(marker)}"
  start = time.monotonic()
  done = local(place, 3, P0=stuck, P1="exit 7", P2=stuck)
  assert done.returncode == 7
  assert done.stderr == "local.sh: killed after 1 s: process 0 2\n"
  assert time.monotonic() - start < 20
  assert gone(marker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_all_and_they_may_save(place, number, marker):
  environment, make = place
  make("python", OBEY)
  name = number.name.removeprefix("SIG")
  body = f"trap 'echo saved; exit 143' {name}; echo ready; "
  body += f"while :; do sleep 0.05; done # {marker}"
  process = subprocess.Popen(
    ["bash", LAUNCH / "local.sh", "2"],
    env={**environment, "P0": body, "P1": body},
    stdout=subprocess.PIPE,
    text=True,
  )
  lines = [process.stdout.readline() for _ in range(2)]
  assert sorted(lines) == ["[1] ready\n", "ready\n"]
  process.send_signal(number)
  rest, _ = process.communicate(timeout=20)
  assert sorted(rest.split("\n")) == ["", "[1] saved", "saved"]
  assert process.returncode == 143


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_is_killed_itself(place, number, marker):
  environment, make = place
  make("python", OBEY)
  deaf = f"trap '' TERM; sleep {marker} & echo ready; exec sleep {marker}"
  process = subprocess.Popen(
    ["bash", LAUNCH / "local.sh", "2"],
    env={**environment, "DEEPEMD_GRACE": "0", "P0": deaf, "P1": deaf},
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )
  for _ in range(2):
    process.stdout.readline()
  while len(alive(marker)) < 4:
    time.sleep(0.05)
  process.send_signal(number)
  process.communicate(timeout=20)
  assert process.returncode in (137, -9)
  assert gone(marker)
