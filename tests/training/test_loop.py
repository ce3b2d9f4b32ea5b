"""Tests of the training loop alone, such as a signal during a validation."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.distributed import runtime
from deepemd_jax.errors import InputError, StopRequested
from deepemd_jax.models.backbone import Backbone
from deepemd_jax.training import loop
from deepemd_jax.training.state import TrainState, make_step, new_state

TOTAL, EVERY = 6, 2


def fit(directory, during=lambda: None):
  """Trains a parameter that follows the numbers of its batches.

  `during` is called in the middle of each validation.
  """

  def validate(variables):
    runtime.raise_if_stopping("test")
    during()
    runtime.raise_if_stopping("test")
    return {"accuracy": float(variables["params"]["w"])}

  plan = loop.Plan(
    directory=directory,
    step=STEP,
    batch=lambda number: np.full(1, number, np.float32),
    total_steps=TOTAL,
    validate_every=EVERY,
    validate=validate,
  )
  loop.fit(plan, new_state(VARIABLES, OPTIMIZER))


def loss(params, extra, batch_stats, batch):
  return jnp.square(params["w"] - batch).sum(), (batch_stats, {})


OPTIMIZER = optax.adam(0.1)
STEP = make_step(loss, OPTIMIZER)
VARIABLES = {
  "params": {"w": np.zeros((), np.float32)},
  "batch_stats": {"unused": np.zeros((), np.float32)},
}


def rows(directory):
  lines = (directory / "metrics.jsonl").read_text().splitlines()
  return [
    {name: row[name] for name in ("step", "val_accuracy")}
    for row in map(json.loads, lines)
  ]


def best(directory):
  made = Backbone(
    init=lambda key: jax.tree.map(jnp.asarray, VARIABLES),
    apply=None,
    stride=1,
    channels=1,
    image_size=1,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
  )
  found = pretrained.best_encoder(directory.parent, directory.name, made)
  return float(found.variables["params"]["w"]), found.step, found.score


def test_a_signal_while_validating_stops_at_once_and_loses_nothing(tmp_path):
  """The signal comes at each validation.

  The first validation is before any step, and the last is after all steps.
  """
  fit(tmp_path / "untouched")
  directory = tmp_path / "stopped"
  for step in range(0, TOTAL + 1, EVERY):
    calls = []
    # The first call is the validation that is missing, and the second is new.
    wanted = 2 if step else 1

    def stop(calls=calls, wanted=wanted):
      calls.append(1)
      if len(calls) == wanted:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StopRequested, match=f"at step {step} of {TOTAL} and"):
      fit(directory, stop)
    assert not loop.is_finished(directory, TOTAL)
  fit(directory)
  assert loop.is_finished(directory, TOTAL)
  assert rows(directory) == rows(tmp_path / "untouched")
  assert best(directory) == best(tmp_path / "untouched")


def test_a_checkpoint_is_the_whole_state():
  state = new_state(VARIABLES, OPTIMIZER, {"classifier": {"bias": np.ones(2)}})
  items = state.to_items()
  assert set(items) == {"model", "train"}
  assert items["model"] == state.variables
  again = TrainState.from_items(**items)
  assert jax.tree.structure(again) == jax.tree.structure(state)
  for ours, theirs in zip(
    jax.tree.leaves(again), jax.tree.leaves(state), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_a_loss_that_is_not_finite_ends_it_in_one_line(tmp_path):
  def step(state, batch):
    return state._replace(step=state.step + 1), {"loss": np.float32("nan")}

  plan = loop.Plan(
    directory=tmp_path / "test",
    step=step,
    batch=lambda number: np.zeros(1, np.float32),
    total_steps=TOTAL,
    validate_every=EVERY,
    validate=lambda variables: {"accuracy": 0.0},
  )
  with pytest.raises(InputError, match="the loss is nan at step .*rate"):
    loop.fit(plan, new_state(VARIABLES, OPTIMIZER))
