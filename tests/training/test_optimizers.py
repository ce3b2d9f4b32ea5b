"""Learning rates and optimizers do what their specification says."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipes

from deepemd_jax.training.optimizers import learning_rate, make_optimizer

SPEC = dataclasses.replace(
  recipes.settings().pretrain.optimizer,
  learning_rate=0.8,
  decay_every=2,
  decay_rate=0.5,
  weight_decay=0.1,
  epochs=10,
)
STEPS = 5  # in an epoch


@pytest.mark.parametrize(
  ("changes", "rates"),
  [
    # step -> rate
    ({}, {0: 0.8, 9: 0.8, 10: 0.4, 19: 0.4, 20: 0.2, 49: 0.05}),
    ({"schedule": "cosine"}, {0: 0.8, 25: 0.4, 50: 0.0}),
    ({"warmup_epochs": 2}, {0: 0.0, 5: 0.4, 10: 0.8, 19: 0.8, 20: 0.4}),
    (
      {"schedule": "cosine", "warmup_epochs": 2},
      {0: 0.0, 5: 0.4, 10: 0.8, 30: 0.4, 50: 0.0},
    ),
  ],
)
def test_learning_rates(changes, rates):
  rate = learning_rate(dataclasses.replace(SPEC, **changes), STEPS)
  for step, value in rates.items():
    assert rate(step) == pytest.approx(value, abs=1e-6), step


def test_sgd_is_nesterovs_with_decay_of_everything():
  """The formulas are computed for three steps with the same gradient."""
  optimizer = make_optimizer(SPEC, STEPS)
  weight, velocity, gradient = 2.0, 0.0, 1.0
  ours = {"scale": jnp.float32(weight)}
  state = optimizer.init(ours)
  for _ in range(3):
    updates, state = optimizer.update({"scale": jnp.float32(1)}, state, ours)
    ours = optax.apply_updates(ours, updates)
    slope = gradient + 0.1 * weight
    velocity = 0.9 * velocity + slope
    weight -= 0.8 * (slope + 0.9 * velocity)
    assert ours["scale"] == pytest.approx(weight, rel=1e-5)


def test_adamw_goes_by_the_sign_and_decays_apart():
  spec = dataclasses.replace(SPEC, name="adamw")
  optimizer = make_optimizer(spec, STEPS)
  weights = {"scale": jnp.array([2.0, -1.0])}
  state = optimizer.init(weights)
  gradient = {"scale": jnp.array([1e-3, 5.0])}
  updates, _ = optimizer.update(gradient, state, weights)
  expected = -0.8 * (1 + 0.1 * np.array([2.0, -1.0]))
  np.testing.assert_allclose(updates["scale"], expected, rtol=1e-3)
