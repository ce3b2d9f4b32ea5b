"""The state of training, and the training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from deepemd_jax.distributed import sharding
from deepemd_jax.models.backbone import Variables


class TrainState(NamedTuple):
  """The state of training; all of it is saved.

  Attributes:
    step: int32 scalar, the number of finished steps.
    params: the backbone's parameters.
    extra: other trained parameters: pre-training's classifier, or {}.
    batch_stats: the backbone's running statistics.
    opt_state: optax state for (params, extra).
  """

  step: jax.Array
  params: Any
  extra: Any
  batch_stats: Any
  opt_state: Any

  @property
  def variables(self) -> Variables:
    """The backbone's variables."""
    return {"params": self.params, "batch_stats": self.batch_stats}

  def to_items(self) -> dict[str, dict]:
    """Returns the parts of a checkpoint; `from_items` is the inverse."""
    return {
      "model": self.variables,
      "train": {
        "step": self.step,
        "extra": self.extra,
        "opt_state": self.opt_state,
      },
    }

  @classmethod
  def from_items(cls, model: dict, train: dict) -> "TrainState":
    """Makes a state from the parts of a checkpoint."""
    return cls(
      params=model["params"], batch_stats=model["batch_stats"], **train
    )


def new_state(variables: Variables, optimizer, extra=None) -> TrainState:
  """Makes the state before the first step."""
  extra = extra or {}
  trained = (variables["params"], extra)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    extra=extra,
    batch_stats=variables["batch_stats"],
    # With jit, this compiles one program, not one for each array's shape.
    opt_state=jax.jit(optimizer.init)(trained),
  )


def make_step(loss_function: Callable, optimizer) -> Callable:
  """Makes a jitted function `(state, batch) -> (state, metrics)`.

  Args:
    loss_function: `(params, extra, batch_stats, batch) -> (loss, (batch_stats,
      metrics))`.
    optimizer: an optax transformation of (params, extra).
  """

  def step(state: TrainState, batch):
    def loss(trained):
      return loss_function(*trained, state.batch_stats, batch)

    trained = (state.params, state.extra)
    (value, (stats, measured)), gradients = jax.value_and_grad(
      loss, has_aux=True
    )(trained)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    # pyrefly: ignore[not-iterable]: it is a tree like `trained`
    params, extra = optax.apply_updates(trained, updates)
    state = TrainState(state.step + 1, params, extra, stats, opt_state)
    return state, {"loss": value, **measured}

  return jax.jit(step, donate_argnums=0, out_shardings=sharding.replicated())
