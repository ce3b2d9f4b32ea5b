"""Checkpoints are restored completely; the newest and the best are kept."""

import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils
from paths import ROOT
from small_checkpoints import assert_equal, largest_file, model, save, train

from deepemd_jax.checkpoints.manager import Checkpoints
from deepemd_jax.distributed import runtime
from deepemd_jax.errors import InputError


def test_round_trip_latest_and_best(four):
  with Checkpoints(four) as saved:
    assert saved.latest() == 4
    assert saved.best() == 2  # the earlier of two equal ones
    assert saved.score(2) == 9.0
    assert sorted(int(p.name) for p in four.iterdir()) == [2, 3, 4]
    found = saved.restore(4, model=model(), train=train(0))
    assert_equal(found.model, model(4))
    assert_equal(found.train, train(4))
    assert found.meta == {"step": 4}


def test_the_model_alone_from_abstract_shapes_read_only(four):
  with Checkpoints(four, read_only=True) as saved:
    found = saved.restore(saved.best(), model=jax.eval_shape(model))
  assert_equal(found.model, model(2))
  assert found.train is None


def test_orbax_alone_reads_the_same(four):
  with ocp.StandardCheckpointer() as reader:
    found = reader.restore(four / "4" / "model", jax.eval_shape(model))
  assert_equal(found, model(4))


@pytest.mark.parametrize("score", [float("nan"), None])
def test_a_step_without_a_score_is_never_the_best(tmp_path, score):
  with Checkpoints(tmp_path) as saved:
    save(saved, 1, 0.5)
    save(saved, 2, score)
    saved.wait()
    assert (saved.latest(), saved.best()) == (2, 1)


def test_nothing_there(tmp_path):
  with Checkpoints(tmp_path / "none", read_only=True) as saved:
    assert saved.latest() is None and saved.best() is None
  assert not (tmp_path / "none").exists()


def test_the_arrays_may_be_changed_or_donated_after_saving(tmp_path):
  grow = jax.jit(lambda x: x + 1, donate_argnums=0)
  with Checkpoints(tmp_path, keep_latest=9) as saved:
    device, host = jnp.zeros((64, 1024)), np.zeros((64, 1024), np.float32)
    for step in range(1, 5):
      device, host = grow(device), host.__iadd__(1)
      trees = {"model": {"x": device}, "train": {"x": host}}
      saved.save(step, **trees, meta={}, score=0.0)
    device = grow(device)
    host[:] = -1
    abstract = {"x": jax.ShapeDtypeStruct((64, 1024), jnp.float32)}
    for step in range(1, 5):
      found = saved.restore(step, model=abstract, train=abstract)
      assert_equal(found.model, {"x": np.full((64, 1024), step, np.float32)})
      assert_equal(found.train, {"x": np.full((64, 1024), step, np.float32)})


def test_a_step_that_is_not_there(four):
  with Checkpoints(four) as saved:
    with pytest.raises(
      InputError, match=r"step 1 in .*; its steps are \[2, 3, 4\]"
    ):
      saved.restore(1, model=model())


def test_a_file_where_the_directory_should_be(tmp_path):
  (tmp_path / "c").write_text("")
  with pytest.raises(InputError, match="cannot open the checkpoints in"):
    Checkpoints(tmp_path / "c")


def test_what_a_kill_left_behind_is_removed(four):
  (four / "7.orbax-checkpoint-tmp" / "model").mkdir(parents=True)
  with Checkpoints(four) as saved:
    assert saved.latest() == 4
    save(saved, 5, 1.0)
  assert sorted(int(p.name) for p in four.iterdir()) == [2, 4, 5]


def test_a_deletion_that_was_interrupted_does_no_harm(four):
  shutil.rmtree(four / "3" / "metrics")
  largest_file(four / "3" / "model").unlink()
  with Checkpoints(four) as saved:
    assert (saved.latest(), saved.best()) == (4, 2)
    save(saved, 5, 1.0)
  assert sorted(int(p.name) for p in four.iterdir()) == [2, 4, 5]


@pytest.fixture
def full_disk():
  """Limits files to 16 kB, to imitate a full disk.

  orbax gets the same error at the same place as with a full disk.
  """
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("distributed", [False, True])
def test_a_full_disk_is_one_line_and_loses_nothing(
  four, full_disk, distributed, monkeypatch, capfd
):
  """A process with a full disk must not wait for the others.

  They wait for the files that it was to write.
  """
  monkeypatch.setattr(runtime, "is_distributed", lambda: distributed)
  began = time.monotonic()
  with pytest.raises(InputError, match="could not be written") as error:
    with Checkpoints(four) as saved:
      save(saved, 5, 1.0)
      saved.wait()
  assert time.monotonic() - began < 20
  assert "make room; the same command then continues" in str(error.value)
  assert "\n" not in str(error.value)
  gc.collect()
  assert capfd.readouterr().err == ""
  with Checkpoints(four) as saved:
    assert (saved.latest(), saved.best()) == (4, 2)


def test_no_turn_is_counted_but_ours(tmp_path, monkeypatch):
  """orbax would count turns by the numbers of steps, which are lower."""
  asked = []
  monkeypatch.setattr(
    multihost_utils,
    "reached_preemption_sync_point",
    lambda turn: bool(asked.append(turn)),
  )
  with Checkpoints(tmp_path / "c") as saved:
    save(saved, 1, 5.0)
  assert asked == []


def test_only_what_orbax_logs_is_dropped(four, caplog):
  with Checkpoints(four, read_only=True):
    absl.logging.warning("ours")
  assert [record.getMessage() for record in caplog.records] == ["ours"]


_OTHER_DEVICES = """
import sys, jax
sys.path.insert(0, {tests!r})
from small_checkpoints import Checkpoints, assert_equal, model, train
mesh = jax.make_mesh(
  (2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
)
everywhere = jax.NamedSharding(mesh, jax.P())
abstract = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
  model(),
)
with Checkpoints({directory!r}) as saved:
  found = saved.restore(4, model=abstract, train=train(0))
  assert_equal(found.model, model(4))
  assert all(x.sharding == everywhere for x in jax.tree.leaves(found.model))
  saved.save(5, model=found.model, train=found.train, meta={{}}, score=8.0)
"""


def script(template: str, directory) -> list[str]:
  tests = str(ROOT / "tests")
  code = template.format(tests=tests, directory=str(directory))
  return [sys.executable, "-c", code]


@pytest.mark.soak
def test_one_device_to_two_and_back(four):
  flags = "--xla_force_host_platform_device_count=2"
  subprocess.run(
    script(_OTHER_DEVICES, four),
    env={**os.environ, "XLA_FLAGS": flags},
    check=True,
  )
  with Checkpoints(four) as saved:
    found = saved.restore(5, model=model(), train=train(0))
  assert_equal(found.model, model(4))
  assert_equal(found.train, train(4))


_KILLED = """
import sys
sys.path.insert(0, {tests!r})
from small_checkpoints import Checkpoints, save
with Checkpoints({directory!r}) as saved:
  start = saved.latest() or 0
  print(start, flush=True)
  for step in range(start + 1, start + 1000):
    save(saved, step, float(step % 7))
    print(step, flush=True)
"""


def kill_while_saving(directory, times: int, seed: int) -> None:
  rng = np.random.default_rng(seed)
  durable = 0
  for _ in range(times):
    process = subprocess.Popen(
      script(_KILLED, directory),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    assert int(process.stdout.readline()) >= durable
    for _ in range(rng.integers(2, 5)):
      # A save waits until the previous one is finished.
      durable = int(process.stdout.readline()) - 1
    time.sleep(rng.uniform(0.0, 0.15))
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert errors == ""  # saving prints nothing
    with Checkpoints(directory) as saved:
      assert saved.latest() >= durable
      for step in {saved.latest(), saved.best()}:
        found = saved.restore(step, model=model(), train=train(0))
        assert_equal(found.model, model(step))
        assert_equal(found.train, train(step))
  with Checkpoints(directory) as saved:
    save(saved, saved.latest() + 1, 0.0)
  assert all(path.name.isdigit() for path in directory.iterdir())


@pytest.mark.soak
def test_killed_while_saving(tmp_path):
  kill_while_saving(tmp_path / "c", 30, 1)
