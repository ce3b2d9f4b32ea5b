"""Checkpoints come back whole, or say what is wrong."""

import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepemd_jax.checkpoint import Checkpoints
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


def test_what_does_not_fit_is_listed(four):
  other = model(width=5)
  other["params"]["c"] = other["params"].pop("b")
  with Checkpoints(four) as saved, pytest.raises(InputError) as error:
    saved.restore(4, model=other)
  message = str(error.value)
  assert "1 missing: params/c" in message
  assert "1 extra: params/b" in message
  assert "params/a is ((3, 8192)" in message
  assert "\n" not in message


def largest_file(directory: pathlib.Path) -> pathlib.Path:
  files = [p for p in directory.rglob("*") if p.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def damage(step: pathlib.Path, change) -> None:
  path = largest_file(step / "model")
  path.write_bytes(change(bytearray(path.read_bytes())))


def flip(content: bytearray) -> bytes:
  content[len(content) // 2] ^= 4
  return content


@pytest.mark.parametrize("change", [flip, lambda c: c[: len(c) // 2]])
def test_damage_is_found_and_named(four, change):
  damage(four / "4", change)
  with Checkpoints(four) as saved:
    with pytest.raises(InputError, match="damaged") as error:
      saved.restore(4, model=model())
    assert str(four / "4") in str(error.value)
    assert "\n" not in str(error.value)
    assert_equal(saved.restore(3, model=model()).model, model(3))


_KILLED = """
import sys, jax.numpy as jnp
sys.path.insert(0, {tests!r})
from test_checkpoint import Checkpoints, save
with Checkpoints({directory!r}) as saved:
  start = saved.latest() or 0
  print(start, flush=True)
  for step in range(start + 1, start + 1000):
    save(saved, step, float(step % 7))
    print(step, flush=True)
"""


def kill_while_saving(directory, times: int, seed: int) -> None:
  rng = np.random.default_rng(seed)
  script = _KILLED.format(
    tests=str(pathlib.Path(__file__).parent), directory=str(directory)
  )
  for _ in range(times):
    process = subprocess.Popen(
      [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    time.sleep(rng.uniform(0.0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Checkpoints(directory) as saved:
      for step in {saved.latest(), saved.best()} - {None}:
        found = saved.restore(step, model=model(), train=train(0))
        assert_equal(found.model, model(step))
        assert_equal(found.train, train(step))


def test_killed_while_saving(tmp_path):
  kill_while_saving(tmp_path / "c", 3, 0)


@pytest.mark.soak
def test_killed_while_saving_often(tmp_path):
  kill_while_saving(tmp_path / "c", 40, 1)
