"""Makes small checkpoints, for the tests that save and damage them."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from deepemd_jax.checkpoints.manager import Checkpoints


def model(seed=0, width=3):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
  return {
    "params": {"a": draw(width, 8192), "b": draw(width)},
    "stats": draw(2),
  }


def train(step):
  rng = np.random.default_rng(step)
  # This is larger than the files that orbax writes beside the arrays.
  momentum = rng.standard_normal((4, 2048), np.float32)
  return {"step": jnp.int32(step), "momentum": jnp.asarray(momentum)}


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


def save_four(directory):
  """Saves steps 1 to 4 with scores 5, 9, 9, 7. Step 1 is not kept."""
  with Checkpoints(directory) as saved:
    for step, score in enumerate((5.0, 9.0, 9.0, 7.0), 1):
      save(saved, step, score)


def largest_file(directory: pathlib.Path) -> pathlib.Path:
  files = [p for p in directory.rglob("*") if p.is_file()]
  return max(files, key=lambda path: path.stat().st_size)
