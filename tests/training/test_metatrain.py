"""The loss of meta-training is the mean over separate episodes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
import toy_backbone

from deepemd_jax.data.image_set import CachedImages
from deepemd_jax.training import metatrain


def normalized(init, apply):
  """Adds a running mean of the maps to the toy backbone."""

  def with_mean(key):
    return init(key) | {"batch_stats": {"mean": jnp.zeros(6)}}

  def and_mean(variables, images, *, train):
    maps, _ = apply(variables, images, train=train)
    kept = variables["batch_stats"]["mean"]
    mean = maps.mean((-4, -3, -2)) if train else kept
    maps = maps - jnp.expand_dims(mean, (-4, -3, -2))
    return maps, {"mean": mean}

  return {"init": with_mean, "apply": and_mean}


toy = toy_backbone.create()
BACKBONE = dataclasses.replace(toy, **normalized(toy.init, toy.apply))


def settings(count, kind="fcn", norm="batch"):
  made = recipes.settings(
    {"image.size": 16, "nodes.kind": kind, "nodes.grid": (2,)},
    episode={"way": 2, "query": 2},
    metatrain={"batch_size": count, "batch_norm": norm},
  )
  return dataclasses.replace(made, backbone=BACKBONE)


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return CachedImages(
    images=rng.integers(0, 256, (12, 16, 16, 3), np.uint8),
    labels=np.repeat(np.arange(3), 4).astype(np.int32),
    class_names=tuple("abc"),
    keys=tuple(map(str, range(12))),
    sizes=np.full((12, 2), 16, np.int32),
  )


@pytest.mark.parametrize(
  ("kind", "norm"),
  [
    *(("fcn", "batch"), ("fcn", "fixed")),
    pytest.param("grid", "batch", marks=pytest.mark.soak),
  ],
)
def test_a_step_of_several_episodes_is_their_mean(kind, norm, images):
  """This holds for the loss, its gradient and the running statistics."""
  variables = BACKBONE.init(jax.random.key(0))
  batch = metatrain.make_batches(settings(2, kind, norm), images)(0)

  def slope(count, batch):
    loss = metatrain.loss_function(settings(count, kind, norm))
    of = jax.jit(jax.value_and_grad(loss, has_aux=True))
    stats = variables["batch_stats"]
    return of(variables["params"], {}, stats, batch)

  whole = slope(2, batch)
  each = [
    slope(1, jax.tree.map(lambda x: x[i : i + 1], batch))  # noqa: B023
    for i in range(2)
  ]
  for ours, *parts in zip(*map(jax.tree.leaves, (whole, *each)), strict=True):
    np.testing.assert_allclose(ours, np.mean(parts, 0), rtol=1e-4, atol=1e-5)
  (_, (stats, measured)), _ = whole
  assert 0 <= measured["accuracy"] <= 100
  assert stats["mean"].shape == (6,)
  assert np.any(stats["mean"]) == (norm == "batch")
