"""Tests, in one process, of how processes are connected, stopped, compared."""

import os
import signal
import threading

import numpy as np
import pytest
from jax.experimental import multihost_utils

from deepemd_jax.distributed import runtime
from deepemd_jax.errors import LOST, InputError, StopRequested


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
def test_launchers_are_recognized(environment, launched):
  assert runtime.is_launched(environment) == launched


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_to_stop_and_the_second_acts_as_usual(number):
  heard = []
  before = signal.signal(number, lambda *_: heard.append(number))
  try:
    with runtime.stop_on_signal():
      assert not runtime.should_stop()
      runtime.raise_if_stopping("evaluate")
      os.kill(os.getpid(), number)
      assert runtime.should_stop() and heard == []
      with pytest.raises(StopRequested, match="^evaluate stopped; the same"):
        runtime.raise_if_stopping("evaluate")
      os.kill(os.getpid(), number)
      assert heard == [number]
    assert not runtime.should_stop()
    os.kill(os.getpid(), number)
    assert heard == [number] * 2
  finally:
    signal.signal(number, before)


def test_outside_ctrl_c_is_an_interrupt():
  with runtime.stop_on_signal():
    pass
  with pytest.raises(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)


def test_several_processes_leave_signals_to_jax(monkeypatch):
  """JAX is asked with 1, 2, 3, ..., which are the same in all processes."""
  asked = []
  monkeypatch.setattr(runtime, "_count", 2)
  monkeypatch.setattr(runtime, "_stop_checks", 0)
  monkeypatch.setattr(
    multihost_utils,
    "reached_preemption_sync_point",
    lambda check: asked.append(check) or check == 3,
  )
  before = signal.getsignal(signal.SIGTERM)
  with runtime.stop_on_signal():
    assert signal.getsignal(signal.SIGTERM) is before
    assert [runtime.should_stop() for _ in range(3)] == [False, False, True]
  assert asked == [1, 2, 3]


def test_processes_with_another_config_are_named(monkeypatch):
  monkeypatch.setattr(runtime, "_count", 4)
  others = [0, 5, 0, 5]
  monkeypatch.setattr(
    multihost_utils,
    "process_allgather",
    lambda own: np.array([[own + other] for other in others]),
  )
  with pytest.raises(InputError, match="^process 1, 3 of 4 was started with"):
    runtime.check_same("text")
  others[:] = [0] * 4
  runtime.check_same("text")


@pytest.mark.parametrize("meeting", [0.2, 60.0])
def test_one_that_nobody_joins_ends(meeting, monkeypatch, capfd):
  """It first says that it is waiting; it continues if the others come then."""
  ends = []
  monkeypatch.setattr(runtime, "_PATIENCE_SECONDS", 0.01)
  monkeypatch.setattr(runtime, "_MEETING_SECONDS", meeting)
  monkeypatch.setattr(runtime, "end", ends.append)
  connected = threading.Event()
  if meeting > 1:
    threading.Timer(0.1, connected.set).start()
  runtime._end_unless_connected(connected)
  first, *last = capfd.readouterr().err.splitlines()
  assert "waiting for the other processes" in first
  if meeting > 1:
    assert ends == last == []
  else:
    assert ends == [LOST]
    assert "not all processes have connected" in last[0]
    assert "the same command continues the run" in last[0]
