"""What every exact solver ends with: a feasible plan, and a bound on its error.

A solver hands over a flow and potentials that are nearly right.
`round_to_marginals` makes the flow's sums right, and `certify` completes the
potentials to feasible ones. By weak duality the difference between the plan's
cost and the dual value then bounds the error of the value, whatever the solver
did.

Costs and potentials are those of `ScaledProblem.above` here, in which small
costs keep their digits beside large ones.

The batch is LAST, as in `problem`. `round_to_marginals`, `examine`, `is_close`
and `make_plan` also take one problem without a batch, and use only what a GPU
kernel has.
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
# most this, relative to what it pays.
CLOSE = {"float32": 2e-5, "float64": 1e-9}
# Or this share of an ordinary cost: two images that are the same have a value
# that is nothing but rounding.
NOTHING = {"float32": 1e-6, "float64": 1e-11}
# Sums of a flow are as exact as so many roundings of a node's mass.
_ROUNDINGS = 4


class Evidence(NamedTuple):
  """How good a flow and potentials are.

  Attributes:
    f: [N, ...], row potentials, completed to feasible ones.
    g: [M, ...], column potentials.
    gap: [...], what separates the value from the optimum, in units of scaled
      mass times original cost.
    scale: [...], what `gap` is compared with, in the same units.
    rounding: [...], how exactly the type of the result can tell its value.
    residual: [...], the largest error of a sum, in units of scaled mass.
  """

  f: jax.Array
  g: jax.Array
  gap: jax.Array
  scale: jax.Array
  rounding: jax.Array
  residual: jax.Array


def round_to_marginals(flow, a, b, open_cells=None):
  """A plan near `flow` whose marginals are exact, up to rounding.

  Args:
    flow: [n, m, ...], >= 0; its marginals are nearly right.
    a: [n, ...], the row sums to reach.
    b: [m, ...], the column sums to reach.
    open_cells: [n, m, ...] bool, where flow may be added; None is everywhere.
      What finds no place is left out.

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
  more = lack_a[:, None] * (lack_b / or_one(lack_b.sum(0)))
  return flow + (more if open_cells is None else jnp.where(open_cells, more, 0))


def certify(scaled: ScaledProblem, flow, f, g, steps, *, dtype) -> Plan:
  """Certifies what a solver returned, and cuts the dummies off.

  Args:
    scaled: the problem.
    flow: [n + 1, m + 1, B]; its marginals are right up to rounding.
    f: [n + 1, B], row potentials of `scaled.cost`; ignored where there is no
      mass.
    g: [m + 1, B], column potentials of it; ignored where there is no mass.
    steps: [B] int.
    dtype: of the plan that the user gets: its rounding counts.

  Returns:
    The plan in original units, batch last.
  """
  f, g = potentials_above(scaled, f, g, len(f) - 1, len(g) - 1)
  return certify_above(scaled, flow, f, g, steps, dtype)


def certify_above(scaled: ScaledProblem, flow, f, g, steps, dtype) -> Plan:
  """`certify` of potentials of `scaled.above`."""
  n, m = len(f) - 1, len(g) - 1
  evidence = examine(scaled, flow, f, g, n, m, dtype)
  plan = make_plan(scaled, flow, evidence, steps, n, m, dtype)
  return plan._replace(flow=plan.flow[:n, :m], f=plan.f[:n], g=plan.g[:m])


def examine(scaled: ScaledProblem, flow, f, g, n: int, m: int, dtype):
  """`Evidence` of a flow [N, M, ...] and of potentials of `scaled.above`.

  Whatever the given potentials are, the completed pair is feasible, so that the
  gap bounds the error of the value.
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
  # A dummy's own sum is nobody's concern: its potential is 0, so that it has no
  # part in the dual value.
  wrong_a = jnp.where(row < n, abs(flow.sum(1) - a), 0)
  wrong_b = jnp.where(column < m, abs(flow.sum(0) - b), 0)
  residual = jnp.maximum(wrong_a.max(0), wrong_b.max(0))
  # A wrong sum counts with its price in the potentials, and with what it costs
  # to put it right, which is about what others pay. A rounding of the flow is
  # nobody's fault.
  price = scale / scaled.moved_mass
  price_a = jnp.where(row < n, abs(f) + price, 0)
  price_b = jnp.where(column < m, abs(g) + price, 0)
  spare = _ROUNDINGS * epsilon
  # Where a flow is, f and g cancel in the slack. So exact is a slack of 0.
  unseen = _epsilon(flow.dtype) * (b * abs(g)).sum(0)
  gap = _paid(flow, slack) + unseen
  gap = gap + (jnp.maximum(wrong_a - spare * a, 0) * price_a).sum(0)
  gap = gap + (jnp.maximum(wrong_b - spare * b, 0) * price_b).sum(0)
  rounding = spare * ((a * price_a).sum(0) + (b * price_b).sum(0) + paid)
  return Evidence(f, g, gap, scale, rounding, residual)


def is_close(gap, scale, dtype, margin: float = 1.0):
  """[...] bool: the gap is small, relative to what the plan pays."""
  return margin * gap <= CLOSE[jnp.dtype(dtype).name] * scale


def make_plan(
  scaled: ScaledProblem, flow, evidence: Evidence, steps, n: int, m: int, dtype
) -> Plan:
  """The plan in original units; cuts nothing off."""
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
  """[...], what a quarter of the absolute costs are below, up to a factor of 4.

  It is found by halving the range of exponents: a kernel cannot sort.
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
  """[...], <cost, flow>; what is forbidden and not used costs nothing."""
  return jnp.where(flow > 0, flow * cost, 0).sum((0, 1))


def _complete(scaled: ScaledProblem, f, g, n: int):
  """The feasible potentials [N, ...] and [M, ...] next to f and g."""
  cost, a, b = scaled.above, scaled.a, scaled.b
  row = index_along(a)
  # A node all of whose pairs are forbidden has no potential of its own.
  finite = lambda x: jnp.where(abs(x) < jnp.inf, x, 0)  # noqa: E731
  # Of two nodes whose potentials are too high together the lighter gives way:
  # the less mass, the less a potential matters, and the less a solver knows it.
  above = jnp.where(a[:, None] > b, cost - f[:, None], jnp.inf)
  g = jnp.minimum(g, above.min(0))
  # Columns without mass bind no row. Nor does an idle dummy: its column must
  # not, and its row must not bind the columns that have no mass either.
  f = finite((cost - jnp.where(b > 0, g, -jnp.inf)).min(1))
  binding = jnp.where((row < n) | ((row == n) & (a > 0)), f, -jnp.inf)
  return f, finite((cost - binding[:, None]).min(0))
