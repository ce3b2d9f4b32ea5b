"""The transport problem: what goes into a solver, and what comes out.

value = min_X <C, X>   s.t.  X 1 = a,  X^T 1 = b,  X >= 0
      = max_{f,g} <a, f> + <b, g>   s.t.  f_i + g_j <= C_ij
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Totals this close, relative to the larger, are taken as equal.
BALANCED = 1e-5


class Plan(NamedTuple):
  """A solved problem, with the evidence; batch dimensions in front.

  Attributes:
    flow: [..., n, m], the mass moved from i to j.
    f: [..., n], row potentials: d value / d a, up to a constant if balanced.
    g: [..., m], column potentials: d value / d b.
    gap: [...], <cost, flow> - (<a, f> + <b, g>): bounds the value's error.
    residual: [...], largest error of a marginal.
    steps: [...] int32, iterations; 0 where a solver does not tell.
    converged: [...] bool. False for a problem without meaning (NaN, infinity,
      negative mass, zero total), whose other fields are NaN.
  """

  flow: jax.Array
  f: jax.Array
  g: jax.Array
  gap: jax.Array
  residual: jax.Array
  steps: jax.Array
  converged: jax.Array


def prepare(cost, a, b) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Checks shapes, broadcasts batch dimensions, and settles the dtype.

  Half precision and integers become float32; float64 stays float64 under x64.

  Raises:
    ValueError: the shapes do not fit; both are in the message.
  """
  cost, a, b = (jnp.asarray(x) for x in (cost, a, b))
  if cost.ndim < 2 or a.ndim < 1 or b.ndim < 1:
    raise ValueError(
      "cost must be [..., n, m], a [..., n] and b [..., m]; got shapes "
      f"{cost.shape}, {a.shape} and {b.shape}"
    )
  n, m = cost.shape[-2:]
  for name, masses, size, side in (("a", a, n, "rows"), ("b", b, m, "columns")):
    if masses.shape[-1] != size:
      raise ValueError(
        f"{name} has shape {masses.shape}, but cost has shape {cost.shape}: "
        f"{size} {side}"
      )
  try:
    batch = jnp.broadcast_shapes(cost.shape[:-2], a.shape[:-1], b.shape[:-1])
  except ValueError as error:
    raise ValueError(
      f"batch dimensions of cost {cost.shape}, a {a.shape} and b {b.shape} do "
      "not broadcast"
    ) from error
  dtype = jnp.promote_types(jnp.result_type(cost, a, b), jnp.float32)
  return (
    jnp.broadcast_to(cost, (*batch, n, m)).astype(dtype),
    jnp.broadcast_to(a, (*batch, n)).astype(dtype),
    jnp.broadcast_to(b, (*batch, m)).astype(dtype),
  )


def meaningful(cost, a, b):
  """[...] bool: finite costs, finite masses >= 0, positive totals."""
  total_a, total_b = a.sum(-1), b.sum(-1)
  return (
    jnp.isfinite(cost).all((-2, -1))
    & jnp.isfinite(total_a)
    & jnp.isfinite(total_b)
    & (a >= 0).all(-1)
    & (b >= 0).all(-1)
    & (total_a > 0)
    & (total_b > 0)
  )
