"""The transport problem: the input and the output of a solver.

    value = min_X <C, X>   s.t.  X 1 = a,  X^T 1 = b,  X >= 0
          = max_{f,g} <a, f> + <b, g>   s.t.  f_i + g_j <= C_ij

The totals of a and b may differ. Then the smaller total is moved, and the
heavier side keeps the rest: its sums may be below its masses, and its
potentials are <= 0. A dummy node on the lighter side, whose costs are 0,
receives the rest, so that the problem becomes balanced.

All solvers but the native one scale problems with `scale_problem` and certify
plans with `certificate`. Both have the batch LAST, so that each operation runs
over long contiguous rows. The GPU kernel uses `scale_padded_problem`, for one
problem without a batch. That function avoids slices and concatenations, which a
kernel does not support.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Totals that differ by at most this share of the larger one count as equal, and
# b is scaled to the total of a. Float32 sums of normalized weights differ that
# much.
BALANCED = 1e-5
# The cost of a forbidden pair per row and column, in units of the range of the
# costs. The other arcs of a cycle cost less than 1 per row and column, so that
# a forbidden pair is used only if there is no other way.
FORBIDDEN = 2.0


@contextlib.contextmanager
def from_the_extra(solver: str):
  """Names the package to install if an import for a solver fails.

  Args:
    solver: the name of the solver.

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
  """A solution and its accuracy. Batch dimensions come first.

  Attributes:
    flow: [..., n, m], the mass moved from i to j.
    f: [..., n], row potentials, d value / d a. Up to rounding, f_i + g_j <=
      C_ij, also at nodes without mass. If the totals are equal, potentials are
      unique up to a constant, which is such that <a, f> = <b, g>. If they
      differ, the heavier side's potentials are <= 0, and there is no free
      constant.
    g: [..., m], column potentials, d value / d b.
    gap: [...], a bound on how far <cost, flow> is from the optimal value: the
      cost of the flow minus <a, f> + <b, g>, plus an allowance for rounding.
    residual: [...], the largest error of a row or column sum.
    steps: [...] int32, iterations; 0 if the solver does not count them.
    converged: [...] bool: the gap, without the allowance for rounding, is at
      most 2e-5 (float64: 1e-9) of the cost of the plan, <|cost|, flow>. Large
      costs of unused pairs do not loosen this bound. If a plan costs almost
      nothing, the gap may be 1e-6 (1e-11) of the moved mass times the lower
      quartile of the absolute costs, approximately.
      False for an invalid problem (NaN, -inf, negative mass, zero total, no
      plan without forbidden pairs), whose other fields but steps are NaN.
  """

  flow: jax.Array
  f: jax.Array
  g: jax.Array
  gap: jax.Array
  residual: jax.Array
  steps: jax.Array
  converged: jax.Array


def tree_like_plan(*leaves: Any, **named: Any) -> Any:
  """Returns a `Plan` of descriptions of its arrays, such as their shapes."""
  return Plan(*leaves, **named)


class ScaledProblem(NamedTuple):
  """A balanced problem in its own units. Its last row and column are dummies.

  Attributes:
    cost: [n + 1, m + 1, B] = (original - cost_middle) / cost_range, which is
      within +-1/2; 0 for the dummies. (The cost of a dummy does not matter,
      because all its mass must move.)
    a: [n + 1, B] = original / mass_unit, 1 on average.
    b: [m + 1, B] = original / mass_unit, with the total of a.
    moved_mass: [B], the total without the dummies.
    cost_middle: [B], in units of the original cost.
    cost_range: [B], in units of the original cost.
    mass_unit: [B], in units of the original mass.
    above: [n + 1, m + 1, B] = original cost - lowest; 0 for the dummies. It
      keeps the digits of small costs, however large others are. It is infinite
      where a pair is forbidden.
    lowest: [B], the lowest original cost.
    smallest_cost: [B], the smallest nonzero absolute original cost between
      nodes with mass; cost_range if all these costs are 0.
    valid: [B] bool, whether the problem is valid. If not, a harmless problem
      replaces it.
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
  """Checks shapes, broadcasts batch dimensions, and chooses the dtype.

  Half precision, integers and booleans become float32; float64 stays float64.

  Returns:
    cost [..., n, m], a [..., n] and b [..., m], of one dtype.

  Raises:
    ValueError: the shapes do not fit (the message names all of them), or the
      dtype is not a real one.
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
  """Returns a start flow [..., n, m] in the shape and dtype of prepared costs.

  Raises:
    ValueError: start does not fit the shape of cost.
  """
  if isinstance(start, Plan):
    raise ValueError("start is a Plan; pass its flow, plan.flow")
  start, shape = jnp.asarray(start), cost.shape
  with contextlib.suppress(ValueError):
    if start.shape[-2:] == shape[-2:]:
      return jnp.broadcast_to(start, shape).astype(cost.dtype)
  raise ValueError(
    f"start has shape {start.shape}, but cost has shape {shape}; start must be "
    "the flow of a problem of that shape"
  )


def scale_problem(cost, a, b, may_forbid: bool = False) -> ScaledProblem:
  """Balances and scales cost [n, m, B], a [n, B], b [m, B].

  With `may_forbid`, a cost of +inf forbids a pair; otherwise it is invalid.

  Which side needs a dummy depends on values that may be traced. So both sides
  always get one, and the unused one has no mass. For 25 x 25 nodes this takes
  8% more arithmetic. A decision at run time would compile two solvers, and run
  both under vmap.
  """
  n, m, _ = cost.shape
  cost = jnp.pad(cost, ((0, 1), (0, 1), (0, 0)))
  a, b = (jnp.pad(x, ((0, 1), (0, 0))) for x in (a, b))
  return scale_padded_problem(cost, a, b, n, m, may_forbid)


def scale_padded_problem(
  cost, a, b, n: int, m: int, may_forbid: bool
) -> ScaledProblem:
  """Does what `scale_problem` does, for arrays with room for the dummies.

  Args:
    cost: [N, M, ...], of which the first n rows and m columns count. The next
      row and column are the dummies; the rest become nodes without mass.
    a: [N, ...]; zero beyond the first n.
    b: [M, ...]; zero beyond the first m.
    n: number of rows.
    m: number of columns.
    may_forbid: whether a cost of +inf forbids a pair.
  """
  inside = (index_along(cost, 0) < n) & (index_along(cost, 1) < m)
  counts = inside & (cost < jnp.inf) if may_forbid else inside
  # Units have no derivative, because the result does not depend on them.
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
  """Returns masses [N, ...], [M, ...], the moved mass, and the excess of a."""
  total_a, total_b = a.sum(0), b.sum(0)
  gap = abs(total_a - total_b)
  balanced = gap <= BALANCED * jnp.maximum(total_a, total_b)
  b = b * jnp.where(balanced, total_a / total_b, 1)
  moved_mass = jnp.where(balanced, total_a, jnp.minimum(total_a, total_b))
  # A mass above the moved mass may be cut to twice the moved mass. (A cut to
  # the moved mass itself would bind the node and change its potential.) Without
  # the cut, the rounding errors of a side that is a million times heavier would
  # exceed the masses of the lighter side.
  a, b = jnp.minimum(a, 2 * moved_mass), jnp.minimum(b, 2 * moved_mass)
  surplus = jnp.where(balanced, 0, a.sum(0) - b.sum(0))
  return a, b, moved_mass, surplus


def unscale_potentials(scaled: ScaledProblem, f, g):
  """Converts potentials [n + 1, B], [m + 1, B] to original units, cut to n, m.

  Potentials are unique up to a constant. If a dummy has mass, its potential is
  0. Otherwise both sides contribute equally to the dual value.
  """
  n, m = len(f) - 1, len(g) - 1
  f, g = potentials_above(scaled, f, g, n, m)
  to_f = center(scaled, f, g, n, m)
  f, g = add_lowest(scaled, f + to_f, g - to_f, n, m)
  return f[:-1], g[:-1]


def potentials_above(scaled: ScaledProblem, f, g, n: int, m: int):
  """Converts potentials [N, ...], [M, ...] of `cost` to those of `above`."""
  offset = scaled.cost_middle - scaled.lowest
  f, g = f * scaled.cost_range, g * scaled.cost_range
  f = jnp.where(index_along(f) == n, f - offset, f)
  return f, jnp.where(index_along(g) == m, g, g + offset)


def center(scaled: ScaledProblem, f, g, n: int, m: int):
  """Returns the constant [...] to move from g to f, potentials of `above`, for
  the normalization that `unscale_potentials` describes."""
  a, b = scaled.a, scaled.b
  even = ((b * g).sum(0) - (a * f).sum(0)) / (2 * scaled.moved_mass)
  to_f = jnp.where(entry(b, m) > 0, entry(g, m), even)
  return jnp.where(entry(a, n) > 0, -entry(f, n), to_f)


def add_lowest(scaled: ScaledProblem, f, g, n: int, m: int):
  """Converts centered potentials of `above` to those of the original cost."""
  low = scaled.lowest
  to_f = jnp.where(entry(scaled.b, m) > 0, 0, low / 2)
  to_f = jnp.where(entry(scaled.a, n) > 0, low, to_f)
  return f + to_f, g + (low - to_f)


def scale_potentials(scaled: ScaledProblem, f, g):
  """Inverts `unscale_potentials`, up to the constant."""
  _, a, b, _, middle, cost_range, *_ = scaled
  cost_range = jnp.where(cost_range > 0, cost_range, 1)
  to_f = jnp.where(a[-1] > 0, middle, 0)
  pad = lambda x: jnp.pad(x, ((0, 1), (0, 0)))  # noqa: E731
  return pad((f - to_f) / cost_range), pad((g - (middle - to_f)) / cost_range)


def index_along(x, axis: int = 0):
  """Returns the index of each entry along an axis, [*x.shape] int32."""
  return lax.broadcasted_iota(jnp.int32, x.shape, axis)


def entry(x, k: int):
  """Returns x[k], written as a sum, because a kernel cannot index."""
  return jnp.where(index_along(x) == k, x, 0).sum(0)


def batch_last(cost, a, b):
  """Reshapes [..., n, m], [..., n], [..., m] to [n, m, B], [n, B], [m, B]."""
  n, m = cost.shape[-2:]
  return (
    cost.reshape(-1, n, m).transpose(1, 2, 0),
    a.reshape(-1, n).T,
    b.reshape(-1, m).T,
  )


def batch_first(plan: Plan, batch: tuple[int, ...]) -> Plan:
  """Moves the batch of a plan from the last axis to the leading dimensions."""
  in_front = [x.transpose(x.ndim - 1, *range(x.ndim - 1)) for x in plan]
  return Plan(*(x.reshape(*batch, *x.shape[1:]) for x in in_front))
