"""The transport problem: what goes into a solver, and what comes out.

    value = min_X <C, X>   s.t.  X 1 = a,  X^T 1 = b,  X >= 0
          = max_{f,g} <a, f> + <b, g>   s.t.  f_i + g_j <= C_ij

The totals of a and b may differ. Then the smaller total is moved, and the
heavier side keeps the rest where it likes: its row or column sums are <=, and
its potentials <= 0. A dummy node on the lighter side, whose costs are 0, takes
the rest and makes the problem balanced again.

All solvers share the step before, `scale_problem`, and the step after,
`certificate.certify`. Both have the batch LAST, so that each operation runs
over long contiguous rows. `scale_padded_problem` is the part that the GPU
kernel uses as well, for one problem without a batch. It does without slices and
concatenations, which a kernel does not have.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Totals that differ by at most this share of the larger one count as equal, and
# b is scaled to a's total: float32 sums of normalized weights differ that much.
BALANCED = 1e-5
# What a forbidden pair costs for each row and column, in units of the costs'
# range. All arcs of a cycle cost less than 1 for each, so that such a pair is
# used only where there is no other way.
FORBIDDEN = 2.0


@contextlib.contextmanager
def from_the_extra(solver: str):
  """Says what to install if an import fails that a solver needs.

  Args:
    solver: its name.

  Raises:
    ModuleNotFoundError: a package is not installed.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"{solver} needs the package {error.name}; run pip install "
      "'deepemd_jax[train]'",
      name=error.name,
    ) from error


class Plan(NamedTuple):
  """A solution and how exact it is; batch dimensions in front.

  Attributes:
    flow: [..., n, m], the mass moved from i to j.
    f: [..., n], row potentials: d value / d a. f_i + g_j <= C_ij up to
      rounding, for nodes without mass as well. If the totals are equal, a
      constant may move from f to g; it is such that <a, f> = <b, g>. If they
      differ, the heavier side's potentials are <= 0, and there is no free
      constant.
    g: [..., m], column potentials: d value / d b.
    gap: [...], a bound on how far <cost, flow> is from the optimal value: the
      cost of the flow minus <a, f> + <b, g>, plus an allowance for rounding.
    residual: [...], the largest error of a row or column sum.
    steps: [...] int32, iterations; 0 if the solver does not count them.
    converged: [...] bool: the gap, without the allowance for rounding, is at
      most 2e-5 (float64: 1e-9) of what the plan pays, <|cost|, flow>. So a
      large cost that is not paid excuses no error. A plan that pays next to
      nothing may be off by 1e-6 (1e-11) of the moved mass times a cost that a
      quarter of the costs are below.
      False for a problem without meaning (NaN, -inf, negative mass, zero total,
      no plan without forbidden pairs); its other fields are NaN.
  """

  flow: jax.Array
  f: jax.Array
  g: jax.Array
  gap: jax.Array
  residual: jax.Array
  steps: jax.Array
  converged: jax.Array


def tree_like_plan(*leaves: Any, **named: Any) -> Any:
  """A `Plan` whose leaves say something of its arrays, such as their shapes."""
  return Plan(*leaves, **named)


class ScaledProblem(NamedTuple):
  """A balanced problem in its own units; the last row and column are dummies.

  Attributes:
    cost: [n + 1, m + 1, B] = (original - cost_middle) / cost_range, which is
      within +-1/2; 0 for the dummies. (What a dummy costs does not matter,
      because all its mass must move.)
    a: [n + 1, B] = original / mass_unit, 1 on average.
    b: [m + 1, B], the same total.
    moved_mass: [B], the total without the dummies.
    cost_middle: [B], in units of the original cost.
    cost_range: [B], in units of the original cost.
    mass_unit: [B], in units of the original mass.
    above: [n + 1, m + 1, B] = original cost - lowest; 0 for the dummies. Small
      costs keep their digits here, however large others are. Infinite where a
      pair is forbidden.
    lowest: [B], the lowest original cost.
    smallest_cost: [B], the smallest absolute original cost between nodes with
      mass that is not 0; if all are, cost_range.
    valid: [B] bool: the problem has a meaning. If not, a harmless one stands in
      its place.
  """

  cost: jax.Array
  a: jax.Array
  b: jax.Array
  moved_mass: jax.Array
  cost_middle: jax.Array
  cost_range: jax.Array
  mass_unit: jax.Array
  above: jax.Array
  lowest: jax.Array
  smallest_cost: jax.Array
  valid: jax.Array


def prepare(cost, a, b) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Checks shapes, broadcasts batch dimensions, and settles the dtype.

  Half precision, integers and booleans become float32; float64 stays float64.

  Returns:
    cost [..., n, m], a [..., n] and b [..., m], of one dtype.

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


def prepare_start(start, cost) -> jax.Array:
  """A flow to start from, [..., n, m] and of the dtype of the prepared cost.

  Raises:
    ValueError: it does not fit the shape of cost.
  """
  start = jnp.asarray(start)
  try:
    return jnp.broadcast_to(start, cost.shape).astype(cost.dtype)
  except ValueError as error:
    raise ValueError(
      f"start has shape {start.shape}, but cost has shape {cost.shape}; start "
      "must be the flow of a problem of that shape"
    ) from error


def scale_problem(cost, a, b, may_forbid: bool = False) -> ScaledProblem:
  """Balances and scales cost [n, m, B], a [n, B], b [m, B].

  With `may_forbid`, a cost of +inf forbids a pair; else it has no meaning.

  Which side needs a dummy depends on values that may be traced. So both sides
  always get one, and the idle one has no mass. For 25 x 25 nodes that costs 8%
  more arithmetic. Deciding at run time instead would compile two solvers, and
  run both under vmap.
  """
  n, m, _ = cost.shape
  cost = jnp.pad(cost, ((0, 1), (0, 1), (0, 0)))
  a, b = (jnp.pad(x, ((0, 1), (0, 0))) for x in (a, b))
  return scale_padded_problem(cost, a, b, n, m, may_forbid)


def scale_padded_problem(
  cost, a, b, n: int, m: int, may_forbid: bool
) -> ScaledProblem:
  """`scale_problem` of arrays that have room for the dummies already.

  Args:
    cost: [N, M, ...], of which the first n rows and m columns count. The next
      row and column are for the dummies; the rest become nodes without mass.
    a: [N, ...]; zero beyond the first n.
    b: [M, ...]; zero beyond the first m.
    n: number of rows.
    m: number of columns.
    may_forbid: whether a cost of +inf forbids a pair.
  """
  inside = (index_along(cost, 0) < n) & (index_along(cost, 1) < m)
  counts = inside & (cost < jnp.inf) if may_forbid else inside
  # Units are constants to a derivative: any would do.
  low, high = lax.stop_gradient(
    (
      jnp.where(inside, cost, jnp.inf).min((0, 1)),
      jnp.where(counts, cost, -jnp.inf).max((0, 1)),
    )
  )
  total_a, total_b = a.sum(0), b.sum(0)
  valid = (
    jnp.isfinite(high - low)
    & jnp.isfinite(total_a + total_b)
    & (jnp.minimum(a.min(0), b.min(0)) >= 0)
    & (jnp.minimum(total_a, total_b) > 0)
  )
  low, high = jnp.where(valid, low, 0), jnp.where(valid, high, 0)
  cost = jnp.where(valid & inside, cost, 0)
  a = jnp.where(valid, a, jnp.where(index_along(a) < n, 1, 0))
  b = jnp.where(valid, b, jnp.where(index_along(b) < m, 1, 0))
  a, b, moved_mass, surplus = _balance(a, b)
  cost_middle = low + (high - low) / 2
  cost_range = high - low
  mass_unit = lax.stop_gradient((moved_mass + abs(surplus)) / (n + 1))
  scaled = (cost - cost_middle) / jnp.where(cost_range > 0, cost_range, 1)
  counts = (cost != 0) & inside & (a[:, None] > 0) & (b > 0)
  smallest = jnp.where(counts, abs(cost), jnp.inf).min((0, 1))
  a = jnp.where(index_along(a) == n, jnp.maximum(-surplus, 0), a)
  b = jnp.where(index_along(b) == m, jnp.maximum(surplus, 0), b)
  return ScaledProblem(
    cost=jnp.where(inside, scaled, 0),
    a=a / mass_unit,
    b=b / mass_unit,
    moved_mass=moved_mass / mass_unit,
    cost_middle=cost_middle,
    cost_range=cost_range,
    mass_unit=mass_unit,
    above=jnp.where(inside, cost - low, 0),
    lowest=low,
    smallest_cost=jnp.where(smallest < jnp.inf, smallest, cost_range),
    valid=valid,
  )


def _balance(a, b):
  """Masses [N, ...] and [M, ...], what moves, and what a has above b."""
  total_a, total_b = a.sum(0), b.sum(0)
  gap = abs(total_a - total_b)
  balanced = gap <= BALANCED * jnp.maximum(total_a, total_b)
  b = b * jnp.where(balanced, total_a / total_b, 1)
  moved_mass = jnp.where(balanced, total_a, jnp.minimum(total_a, total_b))
  # A node that has more than all that moves may as well have twice that. (Just
  # as much as moves would bind it, and give it a price.) Without this cut a
  # side that is a million times heavier would drown the lighter one in its
  # rounding errors.
  a, b = jnp.minimum(a, 2 * moved_mass), jnp.minimum(b, 2 * moved_mass)
  surplus = jnp.where(balanced, 0, a.sum(0) - b.sum(0))
  return a, b, moved_mass, surplus


def unscale_potentials(scaled: ScaledProblem, f, g):
  """Potentials [n + 1, B] and [m + 1, B] in original units: [n, B], [m, B].

  Potentials are known up to a constant. If one of the dummies has mass, its
  potential is 0; else both sides contribute equally to the dual value.
  """
  n, m = len(f) - 1, len(g) - 1
  f, g = potentials_above(scaled, f, g, n, m)
  to_f = center(scaled, f, g, n, m)
  f, g = add_lowest(scaled, f + to_f, g - to_f, n, m)
  return f[:-1], g[:-1]


def potentials_above(scaled: ScaledProblem, f, g, n: int, m: int):
  """Potentials of `scaled.cost`, [N, ...] and [M, ...], as those of `above`."""
  offset = scaled.cost_middle - scaled.lowest
  f, g = f * scaled.cost_range, g * scaled.cost_range
  f = jnp.where(index_along(f) == n, f - offset, f)
  return f, jnp.where(index_along(g) == m, g, g + offset)


def center(scaled: ScaledProblem, f, g, n: int, m: int):
  """[...], the free constant that potentials of `above` should move from g to
  f, to be what `unscale_potentials` says."""
  a, b = scaled.a, scaled.b
  even = ((b * g).sum(0) - (a * f).sum(0)) / (2 * scaled.moved_mass)
  to_f = jnp.where(entry(b, m) > 0, entry(g, m), even)
  return jnp.where(entry(a, n) > 0, -entry(f, n), to_f)


def add_lowest(scaled: ScaledProblem, f, g, n: int, m: int):
  """From centered potentials of `above` to those of the original cost."""
  low = scaled.lowest
  to_f = jnp.where(entry(scaled.b, m) > 0, 0, low / 2)
  to_f = jnp.where(entry(scaled.a, n) > 0, low, to_f)
  return f + to_f, g + (low - to_f)


def scale_potentials(scaled: ScaledProblem, f, g):
  """The inverse of `unscale_potentials`, up to the constant."""
  _, a, b, _, middle, cost_range, *_ = scaled
  cost_range = jnp.where(cost_range > 0, cost_range, 1)
  to_f = jnp.where(a[-1] > 0, middle, 0)
  pad = lambda x: jnp.pad(x, ((0, 1), (0, 0)))  # noqa: E731
  return pad((f - to_f) / cost_range), pad((g - (middle - to_f)) / cost_range)


def index_along(x, axis: int = 0):
  """[*x.shape] int32, the index of each entry along an axis."""
  return lax.broadcasted_iota(jnp.int32, x.shape, axis)


def entry(x, k: int):
  """x[k], written as a sum, because a kernel cannot index."""
  return jnp.where(index_along(x) == k, x, 0).sum(0)


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
  in_front = [x.transpose(x.ndim - 1, *range(x.ndim - 1)) for x in plan]
  return Plan(*(x.reshape(*batch, *x.shape[1:]) for x in in_front))
