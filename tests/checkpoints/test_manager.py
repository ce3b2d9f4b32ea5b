"""Checkpoints come back whole, or say what is wrong."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import absl.logging
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from paths import ROOT

from deepemd_jax.checkpoints.manager import Checkpoints
from deepemd_jax.errors import InputError


def model(seed=0, width=3):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
  return {
    "params": {"a": draw(width, 8192), "b": draw(width)},
    "stats": draw(2),
  }


def train(step):
  return {"step": jnp.int32(step), "momentum": jnp.ones((4, 2)) * step}


def save(saved, step, score, seed=None):
  saved.save(
    step,
    model=model(step if seed is None else seed),
    train=train(step),
    meta={"step": step},
    score=score,
  )


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)
    assert x.dtype == y.dtype


@pytest.fixture
def four(tmp_path):
  """Steps 1..4 with scores 5, 9, 9, 7."""
  with Checkpoints(tmp_path / "c") as saved:
    for step, score in enumerate((5.0, 9.0, 9.0, 7.0), 1):
      save(saved, step, score)
  return tmp_path / "c"


def test_round_trip_latest_and_best(four):
  with Checkpoints(four) as saved:
    assert saved.latest() == 4
    assert saved.best() == 2  # the earlier of equals
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


_OTHER_DEVICES = """
import sys, jax
sys.path.insert(0, {tests!r})
sys.path.insert(0, {tests!r} + "/checkpoints")
from test_manager import Checkpoints, assert_equal, model, train
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


def test_what_does_not_fit_is_listed(four):
  other = model(width=5)
  other["params"]["c"] = other["params"].pop("b")
  other["stats"] = {f"s{i}": jnp.zeros(1) for i in range(7)}
  with Checkpoints(four) as saved, pytest.raises(InputError) as error:
    saved.restore(4, model=other)
  message = str(error.value)
  assert "8 missing: params/c, stats/s0, " in message
  assert "stats/s3 and 3 more" in message
  assert "2 extra: params/b, stats" in message
  assert "params/a is float32[3, 8192], not float32[5, 8192]" in message
  assert "\n" not in message


def test_another_type_does_not_fit(four):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model())
  with Checkpoints(four) as saved, pytest.raises(InputError, match="bfloat16"):
    saved.restore(4, model=half)


def test_a_step_that_is_not_there(four):
  with Checkpoints(four) as saved:
    with pytest.raises(InputError, match=r"step 1 in .*; it has \[2, 3, 4\]"):
      saved.restore(1, model=model())


def test_a_file_where_the_directory_should_be(tmp_path):
  (tmp_path / "c").write_text("")
  with pytest.raises(InputError, match="cannot keep checkpoints in"):
    Checkpoints(tmp_path / "c")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
  """Steps 1 and 2, the first the best; not to be changed."""
  directory = tmp_path_factory.mktemp("kept") / "c"
  with Checkpoints(directory) as saved:
    save(saved, 1, 2.0)
    save(saved, 2, 1.0)
  return directory


def flip(content: bytes, place: int) -> bytes:
  at = place % len(content)
  return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def cut(content: bytes, place: int) -> bytes:
  return content[: place % len(content)]


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(st.data())
def test_whatever_is_damaged_nothing_wrong_comes_back(kept, data):
  with tempfile.TemporaryDirectory() as parent:
    copy = pathlib.Path(shutil.copytree(kept, f"{parent}/c"))
    files = sorted(p for p in (copy / "2").rglob("*") if p.is_file())
    # Most files are small and orbax reads but some: the rest is arrays.
    path = data.draw(st.sampled_from(files))
    change = data.draw(st.sampled_from([flip, cut]))
    place = data.draw(st.integers(0, 10**6))
    path.write_bytes(change(path.read_bytes(), place))
    try:
      with Checkpoints(copy, read_only=True) as saved:
        assert (saved.latest(), saved.best()) == (2, 1)
        assert (saved.score(1), saved.score(2)) == (2.0, 1.0)
        found = saved.restore(2, model=model(), train=train(0))
    except InputError as error:
      assert f"{copy / '2'} " in str(error)
      assert "\n" not in str(error)
    else:
      assert_equal(found.model, model(2))
      assert_equal(found.train, train(2))
      assert found.meta == {"step": 2}


def largest_file(directory: pathlib.Path) -> pathlib.Path:
  files = [p for p in directory.rglob("*") if p.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda f: f.write_bytes(flip(f.read_bytes(), 40_000)), "model/params/a"),
    (lambda f: f.write_bytes(cut(f.read_bytes(), 40_000)), "cannot be read"),
    (lambda f: f.unlink(), "cannot be read"),
  ],
  ids=["flipped", "cut", "gone"],
)
def test_damaged_arrays_are_named_and_the_step_before_is_whole(
  four, damage, message
):
  damage(largest_file(four / "4" / "model"))
  with Checkpoints(four) as saved:
    with pytest.raises(InputError, match=message) as error:
      saved.restore(4, model=model())
    assert f"checkpoint {four / '4'} is damaged" in str(error.value)
    assert "delete it" in str(error.value)
    assert_equal(saved.restore(3, model=model()).model, model(3))
    # Another part of the same step is whole.
    assert_equal(saved.restore(4, train=train(0)).train, train(4))


@pytest.mark.parametrize(
  "file, old, new",
  [
    ("meta/metadata", b'{"step": 4}', b'{"step": 5}'),
    ("metrics/metrics", b'"score": 7', b'"score": 9'),
    ("metrics/metrics", b'"score": 7', b'"score": '),
  ],
)
def test_a_changed_meta_or_score_is_found(four, file, old, new):
  path = four / "4" / file
  content = path.read_bytes()
  assert content.count(old) == 1
  path.write_bytes(content.replace(old, new))
  with pytest.raises(InputError, match="4 is damaged: (meta|its score) is not"):
    with Checkpoints(four, read_only=True) as saved:
      saved.restore(4)


def damage_arrays(step):
  path = largest_file(step / "train")
  path.write_bytes(flip(path.read_bytes(), 40_000))


def damage_score(step):
  path = step / "metrics" / "metrics"
  path.write_bytes(path.read_bytes().replace(b"score", b"scare"))


@pytest.mark.parametrize("damage", [damage_arrays, damage_score])
def test_training_goes_on_from_the_step_before(four, damage, capfd):
  damage(four / "4")
  with Checkpoints(four) as saved:
    found = saved.restore_latest(model=model(), train=train(0))
    assert_equal(found.train, train(3))
    assert saved.latest() == 3
    save(saved, 4, 7.0)  # made again
  said = capfd.readouterr().err
  assert f"{four / '4'} is damaged" in said
  assert f"going on from the one before; kept as {four / 'damaged.4'}" in said
  assert said.count("\n") == 2
  with Checkpoints(four) as saved:
    assert_equal(
      saved.restore_latest(model=model(), train=train(0)).train, train(4)
    )
  assert (four / "damaged.4" / "model").is_dir()


def test_nothing_whole_is_not_a_beginning(four):
  for step in (2, 3, 4):
    damage_arrays(four / str(step))
  with Checkpoints(four) as saved:
    with pytest.raises(InputError, match=r"all .* damaged \(\[4, 3, 2\]\)"):
      saved.restore_latest(model=model(), train=train(0))
  assert sorted(int(p.name) for p in four.iterdir()) == [2, 3, 4]


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


_KILLED = """
import sys
sys.path.insert(0, {tests!r})
sys.path.insert(0, {tests!r} + "/checkpoints")
from test_manager import Checkpoints, save
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
      # A save waits for the one before it.
      durable = int(process.stdout.readline()) - 1
    time.sleep(rng.uniform(0.0, 0.15))
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert errors == ""  # nor does saving print anything
    with Checkpoints(directory) as saved:
      assert saved.latest() >= durable
      for step in {saved.latest(), saved.best()}:
        found = saved.restore(step, model=model(), train=train(0))
        assert_equal(found.model, model(step))
        assert_equal(found.train, train(step))
  with Checkpoints(directory) as saved:
    save(saved, saved.latest() + 1, 0.0)
  assert all(path.name.isdigit() for path in directory.iterdir())


def test_killed_while_saving(tmp_path):
  kill_while_saving(tmp_path / "c", 3, 0)


@pytest.mark.soak
def test_killed_while_saving_often(tmp_path):
  kill_while_saving(tmp_path / "c", 30, 1)


def test_no_turn_is_counted_but_ours(tmp_path, monkeypatch):
  """Orbax would ask with the steps' numbers, which are lower."""
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
