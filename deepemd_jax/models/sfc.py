"""The structured fully connected layer, which fits a set of nodes per class.

If a class has several support images, the paper learns a set of nodes for it
within the episode. The nodes start at the mean of the support nodes, and
gradient descent through the EMD layer trains them to classify the support
images. They are then the nodes of the class in `matching.logits`.

References:
  Zhang, Cai, Lin, Shen, "DeepEMD", CVPR 2020, section 3.5, equation 10;
  official `Models/models/Network.py`, `get_sfc`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from deepemd_jax.emd.api import default_solver
from deepemd_jax.models import matching

EPOCHS = 100
_MOMENTUM = 0.9


def random_order(key: jax.Array, count: int, epochs: int = EPOCHS) -> jax.Array:
  """Draws a permutation of the support images per epoch, [epochs, count]."""
  keys = jax.random.split(key, epochs)
  return jax.vmap(jax.random.permutation, (0, None))(keys, count)


def fit(
  support_nodes: Float[Array, "way shot n c"],
  *,
  order: Int[Array, "epochs images"],
  learning_rate: float = 100.0,
  batch_size: int = 4,
  solver=None,
  temperature: float = matching.TEMPERATURE,
  weights: str = "cross_reference",
  gradient: str = "flow",
  metric: str = "cosine",
) -> Float[Array, "way n c"]:
  """Fits class nodes that classify the support images.

  The method is stochastic gradient descent on the cross-entropy. Its momentum
  is dampened as in the official code: the first step uses the gradient itself,
  and later steps use a running average. So a step is never longer than
  learning_rate times the largest gradient.

  Args:
    support_nodes: [way, shot, n, c].
    order: [epochs, way * shot], permutations of the support images, such as
      `random_order` draws. Image s * way + w is support_nodes[w, s].
    learning_rate: 100 in the official evaluation (0.1 in meta-training).
    batch_size: images per step; the last step of an epoch takes the rest.
    solver: solver of the EMD; None is the best one for this platform.
    temperature: factor of the logits, a positive number.
    weights: weights of the nodes, "cross_reference" or "equal".
    gradient: gradient through the EMD, "exact" or "flow"; the official
      evaluation uses "flow".
    metric: "cosine" or "l2"; see `matching.match`.

  Returns:
    [way, n, c], the nodes of each class.

  Raises:
    ValueError: order does not have one column per support image.
  """
  way, shot, n, c = support_nodes.shape
  count = way * shot
  if order.shape[-1] != count:
    raise ValueError(
      f"order has shape {order.shape}, but there are {way} x {shot} support "
      f"images: its rows must be permutations of {count}"
    )
  images = support_nodes.swapaxes(0, 1).reshape(count, n, c)
  solver = default_solver() if solver is None else solver
  options = {"temperature": temperature, "weights": weights}
  options |= {"gradient": gradient, "metric": metric}
  score = functools.partial(matching.logits_and_flows, solver=solver, **options)
  slope = jax.grad(functools.partial(_loss, score, images), has_aux=True)
  flows = None
  if getattr(solver, "takes_start", False):
    flows = jnp.zeros((count, way, n, n), images.dtype)
  batches = _batches(order, batch_size)
  return _descend(slope, support_nodes.mean(1), flows, batches, learning_rate)


def _loss(score: Callable, images, class_nodes, flows, chosen):
  """Returns the mean cross-entropy of the images `chosen`, and their flows."""
  logits, flows = score(images[chosen], class_nodes, start=flows)
  errors = optax.softmax_cross_entropy_with_integer_labels(
    logits, chosen % len(class_nodes)
  )
  return errors.mean(), flows


def _descend(slope: Callable, start, flows, batches, learning_rate: float):
  """Runs gradient descent with dampened momentum.

  Args:
    slope: (class_nodes, flows, chosen) -> the gradient, and new flows.
    start: class nodes [way, n, c].
    flows: [images, way, n, n], or None. The solver starts from the last flows
      of an image, because costs change little from one epoch to the next.
    batches: arrays [epochs, steps, images], used one after another in an epoch.
    learning_rate: factor of the gradient.
  """

  def step(state, chosen):
    class_nodes, velocity, keep, flows = state
    before = None if flows is None else flows[chosen]
    gradient, after = slope(class_nodes, before, chosen)
    if flows is not None:
      flows = flows.at[chosen].set(after)
    velocity = keep * velocity + (1 - keep) * gradient
    class_nodes -= learning_rate * velocity
    return (class_nodes, velocity, jnp.full_like(keep, _MOMENTUM), flows), None

  def epoch(state, batches):
    for several in batches:
      state, _ = lax.scan(step, state, several)
    return state, None

  keep = jnp.zeros((), start.dtype)  # the first step has nothing to average
  state = start, jnp.zeros_like(start), keep, flows
  (class_nodes, *_), _ = lax.scan(epoch, state, batches)
  return class_nodes


def _batches(order, size: int) -> list[jax.Array]:
  """Splits the order into [epochs, steps, size] and the rest [epochs, 1, r]."""
  epochs, count = order.shape
  steps = count // size
  full = order[:, : steps * size].reshape(epochs, steps, size)
  parts = [full, order[:, None, steps * size :]]
  return [part for part in parts if 0 not in part.shape[1:]]
