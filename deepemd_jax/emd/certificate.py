"""Certificates of plans: feasibility, and a bound on the error of the value.

A solver returns a flow and potentials that are nearly right.
`round_to_marginals` corrects the sums of the flow, and `certify` completes the
potentials to feasible ones. By weak duality, the difference between the plan's
cost and the dual value then bounds the error of the value, whatever the solver
did.

This module computes with `ScaledProblem.above` and its potentials, because
there small costs keep their digits beside large ones.

The batch is LAST, as in `problem`. `round_to_marginals`, `examine`, `is_close`
and `make_plan` also take one problem without a batch, and use only operations
that a GPU kernel supports.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepemd_jax.emd import resistor_network
from deepemd_jax.emd.problem import (
  Plan,
  ScaledProblem,
  add_lowest,
  center,
  index_along,
  potentials_above,
)

# A plan has converged if its gap, without the allowance for rounding, is at
# most this share of its cost.
CLOSE = {"float32": 2e-5, "float64": 1e-9}
# It has also converged if its gap is at most this share of an ordinary cost.
# The value of two equal images, for example, is only rounding error.
NOTHING = {"float32": 1e-6, "float64": 1e-11}
# The error that a sum of a flow may have, in rounding errors of a node's mass.
_ROUNDINGS = 4


class Evidence(NamedTuple):
  """The accuracy of a flow and of potentials.

  Attributes:
    f: [N, ...], row potentials, completed to feasible ones.
    g: [M, ...], column potentials, completed to feasible ones.
    gap: [...], a bound on the error of the value, without `rounding`, in units
      of scaled mass times original cost.
    scale: [...], the value to compare `gap` with, in the same units.
    rounding: [...], the rounding error of the value in the dtype of the result,
      in the same units.
    residual: [...], the largest error of a sum, in units of scaled mass.
  """

  f: jax.Array
  g: jax.Array
  gap: jax.Array
  scale: jax.Array
  rounding: jax.Array
  residual: jax.Array


def round_to_marginals(flow, a, b, open_cells=None):
  """Returns a plan near `flow` whose marginals are exact, up to rounding.

  Args:
    flow: [n, m, ...], >= 0; its marginals are nearly right.
    a: [n, ...], the row sums to reach.
    b: [m, ...], the column sums to reach.
    open_cells: [n, m, ...] bool, the cells where flow may be added; None allows
      all. Flow for other cells is left out.

  Returns:
    [n, m, ...], the plan, >= 0.

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
  more = lack_a[:, None] * (lack_b / or_one(lack_b.sum(0)))
  return flow + (more if open_cells is None else jnp.where(open_cells, more, 0))


def certify(scaled: ScaledProblem, flow, f, g, steps, *, dtype) -> Plan:
  """Certifies the result of a solver and removes the dummies.

  Args:
    scaled: the problem.
    flow: [n + 1, m + 1, B]; its marginals are right up to rounding.
    f: [n + 1, B], row potentials of `scaled.cost`; ignored at nodes without
      mass.
    g: [m + 1, B], column potentials of `scaled.cost`; ignored at nodes without
      mass.
    steps: [B] int, the iterations.
    dtype: the dtype of the plan that the user gets, whose rounding counts.

  Returns:
    The plan in original units, batch last.
  """
  f, g = potentials_above(scaled, f, g, len(f) - 1, len(g) - 1)
  return certify_above(scaled, flow, f, g, steps, dtype)


def certify_above(scaled: ScaledProblem, flow, f, g, steps, dtype) -> Plan:
  """Does what `certify` does, for potentials of `scaled.above`."""
  n, m = len(f) - 1, len(g) - 1
  evidence = examine(scaled, flow, f, g, n, m, dtype)
  plan = make_plan(scaled, flow, evidence, steps, n, m, dtype)
  return plan._replace(flow=plan.flow[:n, :m], f=plan.f[:n], g=plan.g[:m])


def examine(scaled: ScaledProblem, flow, f, g, n: int, m: int, dtype):
  """Computes `Evidence` of a flow [N, M, ...] and potentials of `scaled.above`.

  The completed potentials are feasible, whatever the given ones are, so that
  the gap bounds the error of the value.
  """
  a, b, above, epsilon = scaled.a, scaled.b, scaled.above, _epsilon(dtype)
  row, column = index_along(a), index_along(b)
  f, g = _complete(scaled, f, g, n)
  to_f = center(scaled, f, g, n, m)
  f, g = f + to_f, g - to_f
  slack = jnp.maximum(above - f[:, None] - g, 0)
  inside = (index_along(flow, 0) < n) & (index_along(flow, 1) < m)
  paid = _paid(flow, jnp.where(inside, abs(above + scaled.lowest), 0))
  scale = jnp.maximum(paid, scaled.smallest_cost * scaled.moved_mass)
  # The sum of a dummy does not matter: its potential is 0, so that it is no
  # part of the dual value.
  wrong_a = jnp.where(row < n, abs(flow.sum(1) - a), 0)
  wrong_b = jnp.where(column < m, abs(flow.sum(0) - b), 0)
  residual = jnp.maximum(wrong_a.max(0), wrong_b.max(0))
  # The error of a sum is weighted by the node's potential, plus the cost of a
  # correction, which is about the mean cost of the plan. The gap leaves out
  # errors that are rounding of the flow.
  price = scale / scaled.moved_mass
  price_a = jnp.where(row < n, abs(f) + price, 0)
  price_b = jnp.where(column < m, abs(g) + price, 0)
  spare = _ROUNDINGS * epsilon
  # Where there is flow, f and g cancel in the slack, so that a slack of 0 has
  # this rounding error.
  unseen = _epsilon(flow.dtype) * (b * abs(g)).sum(0)
  gap = _paid(flow, slack) + unseen
  gap = gap + (jnp.maximum(wrong_a - spare * a, 0) * price_a).sum(0)
  gap = gap + (jnp.maximum(wrong_b - spare * b, 0) * price_b).sum(0)
  rounding = spare * ((a * price_a).sum(0) + (b * price_b).sum(0) + paid)
  return Evidence(f, g, gap, scale, rounding, residual)


def is_close(gap, scale, dtype, margin: float = 1.0):
  """Tells whether the gap is small relative to the plan's cost, [...] bool."""
  return margin * gap <= CLOSE[jnp.dtype(dtype).name] * scale


def make_plan(
  scaled: ScaledProblem, flow, evidence: Evidence, steps, n: int, m: int, dtype
) -> Plan:
  """Returns the plan in original units, with the dummies."""
  valid, unit = scaled.valid, scaled.mass_unit
  f, g = add_lowest(scaled, evidence.f, evidence.g, n, m)
  or_nan = lambda x: jnp.where(valid, x, jnp.nan)  # noqa: E731
  close = is_close(evidence.gap, evidence.scale, dtype)
  nothing = NOTHING[jnp.dtype(dtype).name] * _ordinary_cost(scaled, n, m)
  nothing = nothing * scaled.moved_mass
  return Plan(
    flow=or_nan(flow * unit),
    f=or_nan(f),
    g=or_nan(g),
    gap=or_nan((evidence.gap + evidence.rounding) * unit),
    residual=or_nan(evidence.residual * unit),
    steps=steps,
    converged=valid & (close | (evidence.gap <= nothing)),
  )


def _ordinary_cost(scaled: ScaledProblem, n: int, m: int):
  """Returns the lower quartile of the absolute costs, up to a factor of 4.

  The result is [...]. The function halves the range of exponents, because a
  kernel cannot sort.
  """
  size, rows = abs(scaled.above + scaled.lowest), index_along(scaled.above, 0)
  counts = (rows < n) & (index_along(scaled.above, 1) < m)
  counts = counts & (scaled.a[:, None] > 0) & (scaled.b > 0)
  quarter = 0.25 * jnp.where(counts, 1.0, 0.0).sum((0, 1))
  range_ = jnp.finfo(size.dtype)
  low = 0 * scaled.moved_mass + (range_.minexp - 1)
  high = 0 * scaled.moved_mass + range_.maxexp
  for _ in range(range_.bits // 8 + 4):  # 2 ** 8 or 2 ** 11 exponents
    middle = jnp.floor((low + high) / 2)
    below = counts & (size <= jnp.exp2(middle))
    enough = jnp.where(below, 1.0, 0.0).sum((0, 1)) >= quarter
    low, high = jnp.where(enough, low, middle), jnp.where(enough, middle, high)
  return jnp.exp2(low)


def _epsilon(dtype) -> float:
  return float(jnp.finfo(dtype).eps)


def _paid(flow, cost):
  """Computes <cost, flow>, [...]. Forbidden pairs without flow cost nothing."""
  return jnp.where(flow > 0, flow * cost, 0).sum((0, 1))


def _complete(scaled: ScaledProblem, f, g, n: int):
  """Returns feasible potentials [N, ...] and [M, ...] close to f and g."""
  cost, a, b = scaled.above, scaled.a, scaled.b
  row = index_along(a)
  # A node whose pairs are all forbidden would have an infinite potential.
  finite = lambda x: jnp.where(abs(x) < jnp.inf, x, 0)  # noqa: E731
  # If the potentials of two nodes are too high together, that of the lighter
  # node is lowered: the less mass a node has, the less its potential matters,
  # and the less exactly a solver knows it.
  above = jnp.where(a[:, None] > b, cost - f[:, None], jnp.inf)
  g = jnp.minimum(g, above.min(0))
  # Columns without mass, among them an unused dummy, do not constrain the rows.
  # An unused dummy row does not constrain the columns.
  f = finite((cost - jnp.where(b > 0, g, -jnp.inf)).min(1))
  binding = jnp.where((row < n) | ((row == n) & (a > 0)), f, -jnp.inf)
  return f, finite((cost - binding[:, None]).min(0))
