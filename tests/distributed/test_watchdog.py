"""What processes conclude from signs of life, tested with a fake clock."""

import json
import os
import subprocess
import time

import pytest

from deepemd_jax.distributed import watchdog
from deepemd_jax.errors import LOST, MISTAKE, STOPPED


def sign(**changed):
  known = {"machine": "other/1", "pid": 7, "beats": 1, "progress": 3}
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
    # Both processes are in a long step, or this process is behind.
    assert peer.check(sign(beats=beat), 3) is None
    assert peer.check(sign(beats=beat, progress=4), 3) is None
  # The peer was ahead for a long time. Now this process is a step ahead.
  assert peer.check(sign(beats=1001), 4) is None
  clock[0] += 20
  assert peer.check(None, 4) is None  # the file is only half written


def test_what_is_wrong_with_a_peer(clock):
  peer = watchdog.Peer(1, 4)
  assert peer.name == "process 1 of 4"
  clock[0] += 31
  what, _ = peer.check(None, 3)
  assert "do all processes see the same --workdir?" in what
  peer.check(sign(), 3)
  assert peer.name == "process 1 of 4 (host other, pid 7)"
  clock[0] += 31
  what, code = peer.check(sign(), 3)
  assert "no sign of life for 31 s" in what and code == LOST
  peer.forgive()
  for beat in range(9):
    assert peer.check(sign(beats=beat + 2), 4) is None
    clock[0] += 4.5
  what, code = peer.check(sign(beats=99), 4)
  assert "is stuck" in what and code == LOST
  what, code = peer.check(sign(code=2, why=""), 4)
  assert what == "has ended (exit code 2)" and code == MISTAKE
  what, code = peer.check(sign(code=1, why="ValueError: x"), 4)
  assert what == "has ended (ValueError: x)" and code == LOST
  for code in (0, STOPPED):  # these are normal ends
    assert peer.check(sign(code=code, why=""), 9) is None


def test_a_peer_that_is_silent_is_not_waited_for(clock):
  peer = watchdog.Peer(1, 4)
  peer.check(sign(), 3)
  assert not peer.has_ended(sign())
  assert peer.has_ended(sign(code=75, why=""))
  peer = watchdog.Peer(1, 4)
  peer.check(sign(), 3)
  clock[0] += 31
  assert peer.has_ended(sign())


def test_a_process_that_is_gone_from_this_machine_is_missed_at_once():
  ended = subprocess.Popen(["true"])
  time.sleep(0.2)  # nobody has waited for it, so it is a zombie
  here = {"machine": watchdog.machine()}
  for _ in range(2):
    peer = watchdog.Peer(1, 2)
    what, code = peer.check(sign(**here, pid=ended.pid), 3)
    assert what == "has ended without a message" and code == LOST
    ended.wait()
  peer = watchdog.Peer(1, 2)
  assert peer.check(sign(**here, pid=os.getpid()), 3) is None


class Watched:
  """A watchdog of process 0 of 2, whose thread does not run.

  The test writes the signs of life of the other process.
  """

  def __init__(self, folder, monkeypatch):
    monkeypatch.setattr(watchdog.threading.Thread, "start", lambda self: None)
    self.ends = []
    self.folder = folder
    self.dog = watchdog.Watchdog(
      folder, 0, 2, lambda code, why: self.ends.append((code, why))
    )

  def hear(self, **changed):
    (self.folder / "1").write_text(json.dumps(sign(**changed)))
    self.dog.check_peers()


@pytest.fixture
def watched(clock, tmp_path, monkeypatch):
  return Watched(tmp_path, monkeypatch)


def test_the_process_ends_once_and_names_one_that_is_stuck(
  watched, clock, capfd
):
  """The other process does not have its share of a batch.

  This process waits inside a computation, which gives no message.
  """
  for beat in range(25):
    watched.dog.progress = 4
    watched.hear(beats=beat)
    assert watched.ends == [] or clock[0] > 140
    clock[0] += 2
  name = "process 1 of 2 (host other, pid 7)"
  what = f"{name} is stuck, 42 s behind the others"
  assert watched.ends == [(LOST, what)]
  assert capfd.readouterr().err == (
    f"deepemd_jax: {what}; process 0 ends too; "
    "the same command continues the run\n"
  )


def test_a_mistake_of_another_does_not_go_on(watched, capfd):
  watched.hear(code=MISTAKE, why="InputError: no room")
  ((code, why),) = watched.ends
  assert code == MISTAKE and why.endswith("has ended (InputError: no room)")
  assert capfd.readouterr().err.endswith("; process 0 ends too\n")


def test_its_own_last_sign_says_why_it_ends(watched):
  watched.dog.progress = 9
  watched.dog.stop(1, "ValueError: x")
  last = json.loads((watched.folder / "0").read_text())
  assert (last["code"], last["why"]) == (1, "ValueError: x")
  assert (last["pid"], last["progress"]) == (os.getpid(), 9)
  assert not watched.dog.say("too late\n")
