"""The training loop alone: a signal while it validates."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepemd_jax.errors import StopRequested
from deepemd_jax.training import loop

TOTAL, EVERY = 6, 2


def fit(directory, during=lambda: None):
  """A parameter that follows the numbers of its batches; `during` is called in
  the middle of each validation."""

  def loss(params, extra, batch_stats, batch):
    return jnp.square(params["w"] - batch).sum(), (batch_stats, {})

  def validate(variables, heed):
    heed()
    during()
    heed()
    return {"accuracy": float(variables["params"]["w"])}

  optimizer = optax.adam(0.1)
  variables = {
    "params": {"w": jnp.zeros(())},
    "batch_stats": {"unused": jnp.zeros(())},
  }
  loop.fit(
    directory,
    loop.new_state(variables, optimizer),
    step=loop.make_step(loss, optimizer),
    batch=lambda number: np.full(1, number, np.float32),
    total_steps=TOTAL,
    validate_every=EVERY,
    validate=validate,
    name="test",
  )


def rows(directory):
  lines = (directory / "metrics.jsonl").read_text().splitlines()
  return [
    {name: row[name] for name in ("step", "val_accuracy")}
    for row in map(json.loads, lines)
  ]


def best(directory):
  like = jax.eval_shape(
    lambda: {
      "params": {"w": jnp.zeros(())},
      "batch_stats": {"unused": jnp.zeros(())},
    }
  )
  variables, step, score = loop.best_variables(directory, like)
  return float(variables["params"]["w"]), step, score


def test_a_signal_while_validating_stops_at_once_and_loses_nothing(tmp_path):
  """At each of the validations, of which the first is before any step and the
  last after all."""
  fit(tmp_path / "untouched")
  directory = tmp_path / "stopped"
  for step in range(0, TOTAL + 1, EVERY):
    calls = []
    # The one that is owed from before, and then the next.
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
