"""The DeepEMD head: weights, cost and logits, as pure functions of nodes.

Two images are compared by the cheapest way to move the node weights of one onto
the nodes of the other. With nodes u_i of the query and v_j of the class,

    weight    s_i = relu(u_i . mean_j v_j) + 1e-3, scaled to sum to n
    cost      c_ij = 1 - cos(u_i, v_j), each node first centered over channels
    logit     T / n sum_ij (1 - c_ij) x_ij, x the optimal flow, n query nodes

The scaling fixes the moved mass M = min(n, m), so that the logit is
T / n (M - EMD). It is an affine function of the optimal value, and the EMD
layer gets the exact gradient of that from the flow and the dual potentials.

References:
  Zhang, Cai, Lin, Shen, "DeepEMD", CVPR 2020: equations 3 to 9.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deepemd_jax import emd

TEMPERATURE = 12.5
WEIGHTS = ("cross_reference", "equal")
METRICS = ("cosine", "l2")
_HIGHEST = jax.lax.Precision.HIGHEST  # TF32 would cost three digits of the EMD
_FLOOR = 1e-3


class Match(NamedTuple):
  """The transport problems between every query and every class.

  Attributes:
    similarity: [q, way, n, m], cosine of the centered nodes, or 1 - their
      squared distance. The cost is 1 - similarity.
    query_weights: [q, way, n]; the weights of a pair sum to n.
    class_weights: [q, way, m]; the weights of a pair sum to m.
  """

  similarity: jax.Array
  query_weights: jax.Array
  class_weights: jax.Array


def cross_reference_weights(
  nodes: Float[Array, "n c"], other: Float[Array, "m c"]
) -> Float[Array, " n"]:
  """Weights each node by its similarity to the other image's mean node.

  The weight is relu(u_i . mean_j v_j) + 1e-3, with uncentered nodes. A node
  that resembles the mean of the other image gets mass, and background clutter
  gets nearly none.

  Returns:
    [n], not yet scaled to sum to n.

  References:
    DeepEMD, CVPR 2020, equation 8.
  """
  mean = other.mean(0)
  return jax.nn.relu(jnp.matmul(nodes, mean, precision=_HIGHEST)) + _FLOOR


def centered(nodes: Float[Array, "*b n c"]) -> Float[Array, "*b n c"]:
  """Subtracts from each node its mean over channels, and scales it to length 1.

  A node that is constant over channels stays zero.
  """
  nodes = nodes - nodes.mean(-1, keepdims=True)
  square = jnp.sum(nodes * nodes, -1, keepdims=True)
  # The floor is inside the root so that a zero node has a finite gradient.
  return nodes * jax.lax.rsqrt(jnp.maximum(square, 1e-16))


def _scaled(weights: jax.Array) -> jax.Array:
  """Scales weights to sum to the number of nodes."""
  return weights * (weights.shape[-1] / weights.sum(-1, keepdims=True))


def _similarity(query_nodes, class_nodes, metric: str) -> jax.Array:
  """Computes the similarities of all pairs of nodes, [q, way, n, m]."""
  if metric == "cosine":
    pair = centered(query_nodes), centered(class_nodes)
  elif metric == "l2":
    pair = tuple(
      x - x.mean(-1, keepdims=True) for x in (query_nodes, class_nodes)
    )
  else:
    raise ValueError(f"metric is {metric!r}; use one of {METRICS}")
  product = jnp.einsum("qnc,wmc->qwnm", *pair, precision=_HIGHEST)
  if metric == "cosine":
    return product
  query, of_class = (jnp.sum(x * x, -1) for x in pair)
  squares = query[:, None, :, None] + of_class[None, :, None, :]
  # Rounding must not make a squared distance negative.
  return 1.0 - jnp.maximum(squares - 2.0 * product, 0.0)


def match(
  query_nodes: Float[Array, "q n c"],
  class_nodes: Float[Array, "way m c"],
  *,
  weights: str = "cross_reference",
  metric: str = "cosine",
) -> Match:
  """Sets up the q x way transport problems of an episode.

  One matrix product gives all similarities. No array of shape
  [q, way, n, m, c] is ever made.

  Args:
    query_nodes: [q, n, c].
    class_nodes: [way, m, c].
    weights: "cross_reference", or "equal" (each node has weight 1, as in the
      paper's ablation).
    metric: "cosine", or "l2", whose cost is the squared distance of the
      centered nodes, not scaled to length 1 (the official `-metric l2`).
  """
  similarity = _similarity(query_nodes, class_nodes, metric)
  if weights == "equal":
    ones = jnp.ones_like(similarity)
    return Match(similarity, ones[..., 0], ones[..., 0, :])
  if weights != "cross_reference":
    raise ValueError(f"weights is {weights!r}; use one of {WEIGHTS}")
  per_class = jax.vmap(cross_reference_weights, (None, 0))
  per_query = jax.vmap(cross_reference_weights, (0, None))
  query = jax.vmap(per_class, (0, None))(query_nodes, class_nodes)
  of_class = jax.vmap(per_query, (None, 0))(class_nodes, query_nodes)
  return Match(similarity, _scaled(query), _scaled(of_class))


def logits(
  query_nodes: Float[Array, "q n c"],
  class_nodes: Float[Array, "way m c"],
  solver=None,
  temperature: float = TEMPERATURE,
  *,
  weights: str = "cross_reference",
  gradient: str = "exact",
  metric: str = "cosine",
) -> Float[Array, "q way"]:
  """Computes DeepEMD's class scores.

  Args:
    query_nodes: [q, n, c], the nodes of the query images.
    class_nodes: [way, m, c], the nodes of each class, from its support image or
      from the structured FC layer.
    solver: an EMD solver; None is the best for this platform.
    temperature: factor of the logits, a positive number; 12.5 in the paper.
    weights: see `match`.
    gradient: "exact", or "flow" as in the official OpenCV path (see
      `emd.distance`).
    metric: see `match`.

  Returns:
    [q, way], the logits. A larger logit means that images are more alike. It is
    at most temperature * min(n, m) / n.

  References:
    DeepEMD, CVPR 2020, equations 6 and 9.
  """
  return logits_and_flows(
    query_nodes,
    class_nodes,
    solver,
    temperature,
    weights=weights,
    gradient=gradient,
    metric=metric,
  )[0]


def logits_and_flows(
  query_nodes: Float[Array, "q n c"],
  class_nodes: Float[Array, "way m c"],
  solver=None,
  temperature: float = TEMPERATURE,
  *,
  weights: str = "cross_reference",
  gradient: str = "exact",
  metric: str = "cosine",
  start: Float[Array, "q way n m"] | None = None,
) -> tuple[Float[Array, "q way"], Float[Array, "q way n m"]]:
  """Returns the logits of DeepEMD, and the flows that they are made of.

  Args:
    query_nodes: [q, n, c], the nodes of the query images.
    class_nodes: [way, m, c], the nodes of each class.
    solver: see `logits`.
    temperature: see `logits`.
    weights: see `match`.
    gradient: see `logits`.
    metric: see `match`.
    start: [q, way, n, m], the flows of a similar problem. They save time, and
      change the logits by rounding at most; see `emd.solve`.

  Returns:
    The logits, [q, way], and the optimal flows, [q, way, n, m]. Derivatives
    treat the flows as constants.
  """
  problem = match(query_nodes, class_nodes, weights=weights, metric=metric)
  n, m = problem.similarity.shape[-2:]
  value, flows = emd.distance_and_flow(
    1.0 - problem.similarity,
    problem.query_weights,
    problem.class_weights,
    solver=solver,
    gradient=gradient,
    start=start,
  )
  return (temperature / n) * (min(n, m) - value), flows


def pooled(nodes: Float[Array, "*b n c"]) -> Float[Array, "*b c"]:
  """Computes an image's descriptor: the mean of its nodes, of unit length."""
  mean = nodes.mean(-2)
  norm = jnp.linalg.norm(mean, axis=-1, keepdims=True)
  return mean / jnp.maximum(norm, 1e-8)


def prototype_logits(
  query_nodes: Float[Array, "q n c"],
  class_nodes: Float[Array, "way m c"],
  temperature: float = TEMPERATURE,
) -> Float[Array, "q way"]:
  """Computes the prototype baseline.

  A logit is the temperature times the cosine between pooled descriptors.

  References:
    Snell, Swersky, Zemel, "Prototypical Networks", NeurIPS 2017; with cosine
    similarity as in Chen et al., "Meta-Baseline", ICCV 2021.
  """

  return temperature * jnp.matmul(
    pooled(query_nodes), pooled(class_nodes).T, precision=_HIGHEST
  )


def chamfer_logits(
  query_nodes: Float[Array, "q n c"],
  class_nodes: Float[Array, "way m c"],
  temperature: float = TEMPERATURE,
) -> Float[Array, "q way"]:
  """Computes the Chamfer baseline, which matches nodes without a plan.

  Each node is matched with the most similar node of the other image, even if
  other nodes are matched with it, too. A logit is the temperature times the
  mean of these similarities over the nodes of both images.

  References:
    Fan, Su, Guibas, "A Point Set Generation Network", CVPR 2017 (the Chamfer
    distance); one direction of it is Li et al., "DN4", CVPR 2019, with k = 1.
  """
  similarity = _similarity(query_nodes, class_nodes, "cosine")
  both = similarity.max(-1).mean(-1) + similarity.max(-2).mean(-1)
  return temperature / 2 * both
