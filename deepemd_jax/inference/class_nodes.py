"""Fits, scores and matches the nodes of classes, with NumPy arrays.

Each function is compiled once for each shape. Batches of queries have one
shape, and a single image has another.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from deepemd_jax import emd
from deepemd_jax.models import heads, matching, sfc
from deepemd_jax.utils.random_streams import Stream, random_key

# The limit of gradient steps on the class nodes. It allows the official 100
# epochs for up to 160 images, and fewer for more images, but at least one.
_MOST_STEPS = 4000
_QUERIES_A_CALL = 16


def fit(
  nodes: np.ndarray,
  index: np.ndarray,
  settings: heads.HeadSettings,
  seed: int,
) -> np.ndarray:
  """Computes the nodes of each class.

  Images of smaller classes are repeated, so that all classes weigh the same.

  Args:
    nodes: [N, n, c], the nodes of the examples.
    index: int [N], the number of each example's class.
    settings: the settings of the matching and of its solver.
    seed: seed of the order in which the examples are visited.

  Returns:
    float32 [way, n, c], the class nodes.
  """
  rows = [np.flatnonzero(index == k) for k in range(index.max() + 1)]
  shot = max(len(row) for row in rows)
  support = np.stack([nodes[np.resize(row, shot)] for row in rows])
  if shot == 1:
    return support[:, 0]
  count, own = len(rows) * shot, settings.sfc
  batches = -(-count // own.batch_size)
  epochs = max(1, min(own.epochs, _MOST_STEPS // batches))
  order = sfc.random_order(random_key(seed, Stream.SFC_ORDER), count, epochs)
  class_nodes = _fit(
    support,
    order,
    learning_rate=own.learning_rate,
    batch_size=own.batch_size,
    gradient=own.gradient,
    **settings.matching,
  )
  return np.asarray(class_nodes)


def score(
  nodes: np.ndarray, class_nodes: np.ndarray, settings: heads.HeadSettings
) -> np.ndarray:
  """Returns the logits [N, way] of the query nodes [N, n, c].

  Args:
    nodes: [N, n, c], the nodes of the queries.
    class_nodes: [way, m, c], the nodes of the classes.
    settings: the settings of the matching.
  """
  size = 1 if len(nodes) == 1 else _QUERIES_A_CALL
  parts = []
  for start in range(0, len(nodes), size):
    rows = np.minimum(np.arange(start, start + size), len(nodes) - 1)
    parts.append(_score(nodes[rows], class_nodes, **settings.matching))
  return np.concatenate(parts)[: len(nodes)]


def match(
  nodes: np.ndarray, class_nodes: np.ndarray, settings: heads.HeadSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Matches one image with one class.

  Args:
    nodes: [1, n, c], the nodes of the image.
    class_nodes: [1, m, c], the nodes of the class.
    settings: the settings of the matching.

  Returns:
    In float64: similarity [n, m], flow [n, m], weights of the image [n] and
    weights of the class [m].
  """
  arrays = _match(nodes, class_nodes, solver=settings.solver)
  similarity, flow, query, of_class = (
    np.asarray(array, np.float64)[0, 0] for array in arrays
  )
  return similarity, flow, query, of_class


def softmax(logits: np.ndarray) -> np.ndarray:
  """Turns logits [..., way] into probabilities, float64 [..., way]."""
  powers = np.exp(logits - logits.max(-1, keepdims=True), dtype=np.float64)
  return powers / powers.sum(-1, keepdims=True)


_STATIC = (
  *("solver", "temperature", "learning_rate", "batch_size", "gradient"),
)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _fit(support, order, **options):
  return sfc.fit(support, order=order, **options)


@functools.partial(jax.jit, static_argnames=("solver", "temperature"))
def _score(query_nodes, class_nodes, *, solver, temperature):
  return matching.logits(query_nodes, class_nodes, solver, temperature)


@functools.partial(jax.jit, static_argnames="solver")
def _match(query_nodes, class_nodes, *, solver):
  problem = matching.match(query_nodes, class_nodes)
  plan = emd.solve(
    1.0 - problem.similarity,
    problem.query_weights,
    problem.class_weights,
    solver=solver,
  )
  flow = jnp.asarray(plan.flow)
  weights = problem.query_weights, problem.class_weights
  return problem.similarity, flow, *weights
