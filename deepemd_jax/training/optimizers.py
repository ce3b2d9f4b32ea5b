"""Optimizers and learning rates, from frozen specifications."""

import optax

from deepemd_jax.config.settings import OptimizerSpec


def learning_rate(spec: OptimizerSpec, steps_per_epoch: int) -> optax.Schedule:
  """Returns the learning rate as a function of the step.

  "step" is learning_rate * decay_rate ** (epoch // decay_every); "cosine" falls
  to 0 at the end. With a warm-up, both first rise linearly from 0.
  """
  total = spec.epochs * steps_per_epoch
  warmup = spec.warmup_epochs * steps_per_epoch
  if spec.schedule == "cosine":
    after = optax.cosine_decay_schedule(
      spec.learning_rate, max(total - warmup, 1)
    )
  else:
    after = optax.exponential_decay(
      spec.learning_rate,
      spec.decay_every * steps_per_epoch,
      spec.decay_rate,
      staircase=True,
    )
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, spec.learning_rate, warmup)
  return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
  spec: OptimizerSpec, steps_per_epoch: int
) -> optax.GradientTransformation:
  """Makes the optimizer of a stage.

  "sgd" has Nesterov momentum 0.9 and L2 decay of all parameters, including
  those of batch norm, as in the official code. "adamw" is optax's.
  """
  rate = learning_rate(spec, steps_per_epoch)
  if spec.name == "adamw":
    return optax.adamw(rate, weight_decay=spec.weight_decay)
  return optax.chain(
    optax.add_decayed_weights(spec.weight_decay),
    optax.sgd(rate, momentum=0.9, nesterov=True),
  )
