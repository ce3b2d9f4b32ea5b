"""Logistic regression on the pooled descriptors of the support images."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deepemd_jax.models.matching import pooled

_STEPS = 300
_HIGHEST = jax.lax.Precision.HIGHEST


def logits(
  query_nodes: Float[Array, "q n c"],
  support_nodes: Float[Array, "way shot m c"],
  strength: float = 1.0,
) -> Float[Array, "q way"]:
  """Computes the baseline of a linear classifier, trained on the support.

  The classifier minimizes the sum of the cross-entropies plus the squared
  length of its weights divided by 2 `strength`. It has no intercept, because
  the classes are balanced.

  Args:
    query_nodes: [q, n, c].
    support_nodes: [way, shot, m, c].
    strength: factor of the cross-entropies, a positive number; scikit-learn's
      `C`.

  Returns:
    [q, way], logits.

  References:
    Tian et al., "Rethinking Few-Shot Image Classification: A Good Embedding Is
    All You Need?", ECCV 2020, section 3.2.
  """
  way, shot = support_nodes.shape[:2]
  support = pooled(support_nodes).reshape(way * shot, -1)
  wanted = jnp.repeat(jnp.eye(way), shot, axis=0)
  # The best weights are linear combinations of the support's descriptors. So
  # only the products of these are needed, far fewer numbers than the channels.
  products = jnp.matmul(support, support.T, precision=_HIGHEST)
  # Descriptors have length 1, so no curvature is larger than this; the
  # smallest is 1. The steps are accelerated: Nesterov, "Introductory Lectures
  # on Convex Optimization", 2004, scheme 2.2.22.
  curvature = 1 + strength * way * shot / 2
  momentum = (curvature**0.5 - 1) / (curvature**0.5 + 1)

  def step(state, _):
    before, ahead = state
    found = jnp.matmul(products, ahead, precision=_HIGHEST)
    error = jax.nn.softmax(found) - wanted
    after = ahead - (strength * error + ahead) / curvature
    return (after, after + momentum * (after - before)), None

  zero = jnp.zeros_like(wanted)
  (weights, _), _ = jax.lax.scan(step, (zero, zero), length=_STEPS)
  seen = jnp.matmul(pooled(query_nodes), support.T, precision=_HIGHEST)
  return jnp.matmul(seen, weights, precision=_HIGHEST)
