"""What every exact solver ends with: a feasible plan, and a bound on its error.

A solver hands over a flow and potentials that are nearly right.
`round_to_marginals` makes the flow's sums right, and `certify` completes the
potentials to feasible ones. By weak duality the difference between the plan's
cost and the dual value then bounds the error of the value, whatever the solver
did.

The batch is LAST, as in `problem`. `round_to_marginals` and `certify_padded`
also take one problem without a batch, and use only what a GPU kernel has.
"""

import jax.numpy as jnp

from deepemd_jax.emd import resistor_network
from deepemd_jax.emd.problem import (
  Plan,
  ScaledProblem,
  entry,
  index_along,
  unscale_padded_potentials,
)

# A plan has converged if its gap, relative to the moved mass times the largest
# absolute cost, is at most this.
CLOSE = {"float32": 2e-5, "float64": 1e-9}


def round_to_marginals(flow, a, b):
  """A plan near `flow` whose marginals are exact, up to rounding.

  Args:
    flow: [n, m, ...], >= 0; its marginals are nearly right.
    a: [n, ...], the row sums to reach.
    b: [m, ...], the column sums to reach.

  Returns:
    [n, m, ...], >= 0.

  References:
    Altschuler, Weed, Rigollet, "Near-linear time approximation algorithms for
    optimal transport via Sinkhorn iteration", NeurIPS 2017, algorithm 2.
  """
  or_one = resistor_network.or_one
  sums = flow.sum(1)
  flow = flow * jnp.where(sums > a, a / or_one(sums), 1)[:, None]
  sums = flow.sum(0)
  flow = flow * jnp.where(sums > b, b / or_one(sums), 1)
  lack_a = jnp.maximum(a - flow.sum(1), 0)
  lack_b = jnp.maximum(b - flow.sum(0), 0)
  return flow + lack_a[:, None] * (lack_b / or_one(lack_b.sum(0)))


def certify(scaled: ScaledProblem, flow, f, g, steps, *, dtype) -> Plan:
  """Certifies what a solver returned, and cuts the dummies off.

  Args:
    scaled: the problem.
    flow: [n + 1, m + 1, B]; its marginals are right up to rounding.
    f: [n + 1, B], row potentials; ignored where there is no mass.
    g: [m + 1, B], column potentials; ignored where there is no mass.
    steps: [B] int.
    dtype: of the plan that the user gets: its rounding counts.

  Returns:
    The plan in original units, batch last.
  """
  n, m = len(f) - 1, len(g) - 1
  plan = certify_padded(scaled, flow, f, g, steps, n, m, dtype)
  return plan._replace(flow=plan.flow[:n, :m], f=plan.f[:n], g=plan.g[:m])


def certify_padded(
  scaled: ScaledProblem, flow, f, g, steps, n: int, m: int, dtype
) -> Plan:
  """`certify` of what `scale_padded_problem` returns; cuts nothing off.

  Whatever the given potentials are, the completed pair is feasible, so that the
  gap bounds the error of the value.
  """
  cost, a, b, moved_mass, _, cost_range, mass_unit, largest_cost, valid = scaled
  row, column = index_along(a), index_along(b)
  f, g = _complete(cost, a, b, f, g, n)
  slack = cost - f[:, None] - g
  gap = (flow * slack).sum((0, 1))
  # A dummy's own sum is nobody's concern: where its potential is 0, it has no
  # part in the dual value.
  wrong_a = jnp.where(row < n, abs(flow.sum(1) - a), 0)
  wrong_b = jnp.where(column < m, abs(flow.sum(0) - b), 0)
  to_f = jnp.where(entry(b, m) > 0, entry(g, m), 0)
  to_f = jnp.where(entry(a, n) > 0, -entry(f, n), to_f)
  # A wrong sum counts with its price in the potentials, and with the cost of
  # putting it right, which is at most 1.
  gap = gap + (wrong_a * (1 + abs(f + to_f))).sum(0)
  gap = gap + (wrong_b * (1 + abs(g - to_f))).sum(0)
  residual = jnp.maximum(wrong_a.max(0), wrong_b.max(0))
  scale = moved_mass * mass_unit * largest_cost
  rounding = 4 * float(jnp.finfo(dtype).eps) * scale
  gap = gap * mass_unit * cost_range + rounding
  converged = valid & (gap <= CLOSE[jnp.dtype(dtype).name] * scale)
  f, g = unscale_padded_potentials(scaled, f, g, n, m)
  or_nan = lambda x: jnp.where(valid, x, jnp.nan)  # noqa: E731
  return Plan(
    flow=or_nan(flow * mass_unit),
    f=or_nan(f),
    g=or_nan(g),
    gap=or_nan(gap),
    residual=or_nan(residual * mass_unit),
    steps=steps,
    converged=converged,
  )


def _complete(cost, a, b, f, g, n: int):
  """The feasible potentials [N, ...] and [M, ...] next to f and g."""
  row = index_along(a)
  # Of two nodes whose potentials are too high together the lighter gives way:
  # the less mass, the less a potential matters, and the less a solver knows it.
  above = jnp.where(a[:, None] > b, cost - f[:, None], jnp.inf)
  g = jnp.minimum(g, above.min(0))
  # Columns without mass bind no row. Nor does an idle dummy: its column must
  # not, and its row must not bind the columns that have no mass either.
  f = (cost - jnp.where(b > 0, g, -jnp.inf)).min(1)
  binding = jnp.where((row < n) | ((row == n) & (a > 0)), f, -jnp.inf)
  return f, (cost - binding[:, None]).min(0)
