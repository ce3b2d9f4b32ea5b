"""The transport problem: what goes into a solver, and what comes out.

    value = min_X <C, X>   s.t.  X 1 = a,  X^T 1 = b,  X >= 0
          = max_{f,g} <a, f> + <b, g>   s.t.  f_i + g_j <= C_ij

If the totals of a and b differ, the smaller total is moved and the heavier side
keeps the rest where it likes (its row or column sums are <=, and its potentials
<= 0). A dummy node without cost on the lighter side makes that balanced again.

Exact solvers share what comes before, `standardize`, and after, `finish`, both
with the batch LAST: each operation then runs over long contiguous rows. What
they are made of, `standard_within`, `rounded` and `certified`, also takes one
problem without a batch, and makes do with what a GPU kernel has: no slices and
no concatenation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deepemd_jax.emd import resistor_network

# Totals this close, relative to the larger, are taken as equal, and b is scaled
# to a's total: float32 sums of weights that were normalized differ that much.
BALANCED = 1e-5

# A plan has converged if its gap, relative to the moved mass times the largest
# absolute cost, is at most this.
CLOSE = {"float32": 2e-5, "float64": 1e-9}


class Plan(NamedTuple):
  """A solved problem, with the evidence; batch dimensions in front.

  Attributes:
    flow: [..., n, m], the mass moved from i to j.
    f: [..., n], row potentials: d value / d a. f_i + g_j <= C_ij up to
      rounding, for nodes without mass as well. If the totals are equal,
      potentials are known up to a constant moved from f to g; <a, f> = <b, g>
      is chosen. If not, the heavier side's are <= 0 and nothing is free.
    g: [..., m], column potentials: d value / d b.
    gap: [...], bounds how far <cost, flow> is from the optimal value: cost of
      the flow minus <a, f> + <b, g>, with an allowance for rounding.
    residual: [...], largest amount by which a row or column sum is wrong.
    steps: [...] int32, iterations; 0 where a solver does not tell.
    converged: [...] bool: gap <= 2e-5 (float64: 1e-9), relative to the moved
      mass times the largest absolute cost. False for a problem without meaning
      (NaN, infinity, negative mass, zero total), all else of which is NaN.
  """

  flow: jax.Array
  f: jax.Array
  g: jax.Array
  gap: jax.Array
  residual: jax.Array
  steps: jax.Array
  converged: jax.Array


class Standard(NamedTuple):
  """A balanced problem of a standard size; the last row and column are dummies.

  Attributes:
    cost: [n + 1, m + 1, B] = (original - middle) / span, within +-1/2; dummies
      cost 0. (What a dummy costs does not matter: all its mass must move.)
    a: [n + 1, B] = original / unit, 1 on average.
    b: [m + 1, B], the same total.
    moved: [B], the total without the dummies.
    middle: [B], original cost.
    span: [B], original cost.
    unit: [B], original mass.
    largest: [B], largest absolute original cost.
    good: [B] bool: the problem has a meaning. If not, another stands here.
  """

  cost: jax.Array
  a: jax.Array
  b: jax.Array
  moved: jax.Array
  middle: jax.Array
  span: jax.Array
  unit: jax.Array
  largest: jax.Array
  good: jax.Array


def prepare(cost, a, b) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Checks shapes, broadcasts batch dimensions, and settles the dtype.

  Half precision, integers and booleans become float32; float64 stays float64.

  Raises:
    ValueError: the shapes do not fit (all are in the message), or the dtype is
      not a real one.
  """
  cost, a, b = (jnp.asarray(x) for x in (cost, a, b))
  if cost.ndim < 2 or a.ndim < 1 or b.ndim < 1 or 0 in cost.shape[-2:]:
    raise ValueError(
      "cost must be [..., n, m], a [..., n] and b [..., m], n and m at least "
      f"1; got shapes {cost.shape}, {a.shape} and {b.shape}"
    )
  n, m = cost.shape[-2:]
  for name, masses, size, side in (("a", a, n, "rows"), ("b", b, m, "columns")):
    if masses.shape[-1] != size:
      raise ValueError(
        f"{name} has shape {masses.shape}, but cost has shape {cost.shape}: "
        f"its last dimension must be the {size} {side} of cost"
      )
  try:
    batch = jnp.broadcast_shapes(cost.shape[:-2], a.shape[:-1], b.shape[:-1])
  except ValueError as error:
    raise ValueError(
      f"batch dimensions of cost {cost.shape}, a {a.shape} and b {b.shape} do "
      "not broadcast"
    ) from error
  dtype = jnp.promote_types(jnp.result_type(cost, a, b), jnp.float32)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"cost, a and b must be real; together they are {dtype}")
  return (
    jnp.broadcast_to(cost, (*batch, n, m)).astype(dtype),
    jnp.broadcast_to(a, (*batch, n)).astype(dtype),
    jnp.broadcast_to(b, (*batch, m)).astype(dtype),
  )


def standardize(cost, a, b) -> Standard:
  """Balances and scales cost [n, m, B], a [n, B], b [m, B].

  Which side needs a dummy depends on values that may be traced, so both always
  get one and the idle one has no mass. For 25 x 25 nodes that costs 8% more
  arithmetic; deciding at run time instead would compile two solvers, and run
  both under vmap.
  """
  n, m, _ = cost.shape
  cost = jnp.pad(cost, ((0, 1), (0, 1), (0, 0)))
  a, b = (jnp.pad(x, ((0, 1), (0, 0))) for x in (a, b))
  return standard_within(cost, a, b, n, m)


def standard_within(cost, a, b, n: int, m: int) -> Standard:
  """`standardize` of arrays that have the room already.

  Args:
    cost: [N, M, ...], of which the first n rows and m columns count; the next
      are for the dummies, the rest become nodes without mass.
    a: [N, ...]; zero beyond the first n.
    b: [M, ...]; zero beyond the first m.
    n: rows.
    m: columns.
  """
  inside = (_place(cost, 0) < n) & (_place(cost, 1) < m)
  # Units are constants to a derivative: any would do.
  low, high = lax.stop_gradient(
    (
      jnp.where(inside, cost, jnp.inf).min((0, 1)),
      jnp.where(inside, cost, -jnp.inf).max((0, 1)),
    )
  )
  total_a, total_b = a.sum(0), b.sum(0)
  good = (
    jnp.isfinite(high - low)
    & jnp.isfinite(total_a + total_b)
    & (jnp.minimum(a.min(0), b.min(0)) >= 0)
    & (jnp.minimum(total_a, total_b) > 0)
  )
  low, high = jnp.where(good, low, 0), jnp.where(good, high, 0)
  cost = jnp.where(good, cost, 0)
  a = jnp.where(good, a, jnp.where(_place(a) < n, 1, 0))
  b = jnp.where(good, b, jnp.where(_place(b) < m, 1, 0))
  total_a, total_b = a.sum(0), b.sum(0)
  gap = abs(total_a - total_b)
  balanced = gap <= BALANCED * jnp.maximum(total_a, total_b)
  b = b * jnp.where(balanced, total_a / total_b, 1)
  moved = jnp.where(balanced, total_a, jnp.minimum(total_a, total_b))
  # A node that has more than all that moves may as well have twice that (just
  # that would bind it, and give it a price). Without this a side that is a
  # million times heavier would drown the lighter one in its rounding errors.
  a, b = jnp.minimum(a, 2 * moved), jnp.minimum(b, 2 * moved)
  surplus = jnp.where(balanced, 0, a.sum(0) - b.sum(0))
  middle = low + (high - low) / 2
  span = high - low
  unit = lax.stop_gradient((moved + abs(surplus)) / (n + 1))
  scaled = (cost - middle) / jnp.where(span > 0, span, 1)
  return Standard(
    cost=jnp.where(inside, scaled, 0),
    a=jnp.where(_place(a) == n, jnp.maximum(-surplus, 0), a) / unit,
    b=jnp.where(_place(b) == m, jnp.maximum(surplus, 0), b) / unit,
    moved=moved / unit,
    middle=middle,
    span=span,
    unit=unit,
    largest=jnp.maximum(abs(low), abs(high)),
    good=good,
  )


def rounded(flow, a, b):
  """A plan with exact marginals, up to rounding, near one with nearly those.

  Args:
    flow: [n, m, ...], >= 0.
    a: [n, ...], row sums wanted.
    b: [m, ...], column sums wanted.

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


def finish(standard: Standard, flow, f, g, steps, *, dtype) -> Plan:
  """Cuts the dummies off what a solver found, and certifies it.

  Args:
    standard: the problem.
    flow: [n + 1, m + 1, B], marginals right up to rounding.
    f: [n + 1, B], row potentials; ignored where there is no mass.
    g: [m + 1, B], column potentials; ignored where there is no mass.
    steps: [B] int.
    dtype: of the plan that will be given out: its rounding counts.

  Returns:
    The plan in original units, batch last.
  """
  n, m = len(f) - 1, len(g) - 1
  plan = certified(standard, flow, f, g, steps, n, m, dtype)
  return plan._replace(flow=plan.flow[:n, :m], f=plan.f[:n], g=plan.g[:m])


def certified(standard: Standard, flow, f, g, steps, n, m, dtype) -> Plan:
  """`finish` of arrays with room, see `standard_within`; cuts nothing off.

  Whatever the potentials are, the pair that is completed from them is feasible,
  so that the gap bounds the error of the value.
  """
  cost, a, b, moved, middle, span, unit, largest, good = standard
  row, column = _place(a), _place(b)
  # Of two nodes whose potentials are too high together the lighter gives way:
  # the less mass, the less a potential matters, and the less a solver knows it.
  above = jnp.where(a[:, None] > b, cost - f[:, None], jnp.inf)
  g = jnp.minimum(g, above.min(0))
  # Columns without mass bind no row, nor does an idle dummy: its column must
  # not, and its row must not bind the columns that have no mass either.
  f = (cost - jnp.where(b > 0, g, -jnp.inf)).min(1)
  binding = jnp.where((row < n) | ((row == n) & (a > 0)), f, -jnp.inf)
  g = (cost - binding[:, None]).min(0)
  slack = cost - f[:, None] - g
  gap = (flow * slack).sum((0, 1))
  # A dummy's own sum is nobody's concern: where its potential is 0, it has no
  # part in the dual value.
  wrong_a = jnp.where(row < n, abs(flow.sum(1) - a), 0)
  wrong_b = jnp.where(column < m, abs(flow.sum(0) - b), 0)
  to_f = jnp.where(_at(b, m) > 0, _at(g, m), 0)
  to_f = jnp.where(_at(a, n) > 0, -_at(f, n), to_f)
  # What is wrong has a price in the potentials, and at most 1 to put right.
  gap = gap + (wrong_a * (1 + abs(f + to_f))).sum(0)
  gap = gap + (wrong_b * (1 + abs(g - to_f))).sum(0)
  residual = jnp.maximum(wrong_a.max(0), wrong_b.max(0))
  scale = moved * unit * largest
  gap = gap * unit * span + 4 * float(jnp.finfo(dtype).eps) * scale
  converged = good & (gap <= CLOSE[jnp.dtype(dtype).name] * scale)
  f, g = _in_units(standard, f, g, n, m)
  known = lambda x: jnp.where(good, x, jnp.nan)  # noqa: E731
  return Plan(
    flow=known(flow * unit),
    f=known(f),
    g=known(g),
    gap=known(gap),
    residual=known(residual * unit),
    steps=steps,
    converged=converged,
  )


def in_units(standard: Standard, f, g):
  """Potentials [n + 1, B] and [m + 1, B] in original units: [n, B], [m, B].

  The gauge: a dummy's potential is 0; without one, both sides count the same.
  """
  f, g = _in_units(standard, f, g, len(f) - 1, len(g) - 1)
  return f[:-1], g[:-1]


def _in_units(standard: Standard, f, g, n, m):
  _, a, b, moved, middle, span, *_ = standard
  f, g = f * span, g * span
  even = ((b * g).sum(0) - (a * f).sum(0)) / (2 * moved) + middle / 2
  to_f = jnp.where(_at(b, m) > 0, _at(g, m), even)
  to_f = jnp.where(_at(a, n) > 0, middle - _at(f, n), to_f)
  return f + to_f, g + (middle - to_f)


def _place(x, axis: int = 0):
  """[*x.shape] int32, the index along an axis."""
  return lax.broadcasted_iota(jnp.int32, x.shape, axis)


def _at(x, k: int):
  """x[k], of which a kernel has no other way."""
  return jnp.where(_place(x) == k, x, 0).sum(0)


def without_units(standard: Standard, f, g):
  """The inverse of `in_units`, up to the gauge."""
  _, a, b, _, middle, span, *_ = standard
  span = jnp.where(span > 0, span, 1)
  to_f = jnp.where(a[-1] > 0, middle, 0)
  pad = lambda x: jnp.pad(x, ((0, 1), (0, 0)))  # noqa: E731
  return pad((f - to_f) / span), pad((g - (middle - to_f)) / span)


def batch_last(cost, a, b):
  """[..., n, m], [..., n], [..., m] -> [n, m, B], [n, B], [m, B]."""
  n, m = cost.shape[-2:]
  return (
    cost.reshape(-1, n, m).transpose(1, 2, 0),
    a.reshape(-1, n).T,
    b.reshape(-1, m).T,
  )


def batch_first(plan: Plan, batch: tuple[int, ...]) -> Plan:
  """A plan whose batch is last, with its batch dimensions back in front."""
  moved = [x.transpose(x.ndim - 1, *range(x.ndim - 1)) for x in plan]
  return Plan(*(x.reshape(*batch, *x.shape[1:]) for x in moved))
