"""Exact transport on any device: a primal-dual interior point method.

Mehrotra's predictor-corrector on the transport polytope. With slacks
S = C - f - g and conductances D = X / S, the normal equations are the Laplacian
of a bipartite resistor network. Row nodes are eliminated in closed form, column
nodes one by one by star-mesh transforms, which only ever ADD: nothing is
subtracted, so nothing cancels, and float32 is enough where a Cholesky factor
breaks down.

References:
  Mehrotra, "On the Implementation of a Primal-Dual Interior Point Method",
  SIAM J. Optim. 2(4), 1992.
  Altschuler, Weed, Rigollet, "Near-linear time approximation algorithms for
  optimal transport via Sinkhorn iteration", NeurIPS 2017, algorithm 2 (rounding
  to exact marginals).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from deepemd_jax.emd import problem

_BACKOFF = 0.995  # of the step to the boundary


@dataclasses.dataclass(frozen=True)
class InteriorPoint:
  """Device solver, batched, in the dtype of its input.

  A problem stops when its duality gap is below `tolerance` (relative to the
  moved mass times the range of its costs), or when rounding stops its progress.
  The plan is then rounded to exact marginals and the duals completed to
  feasibility, so `gap` bounds the value's error whatever happened before;
  `converged` says that it is at most 2e-5 (float32) or 1e-9 (float64) of the
  moved mass times the largest absolute cost.

  Attributes:
    tolerance: relative duality gap; None is 1e-7 in float32, 1e-10 in float64.
    max_steps: upper bound on iterations; 15 to 20 are usual.
  """

  tolerance: float | None = None
  max_steps: int = 60

  def __call__(
    self, cost: jax.Array, a: jax.Array, b: jax.Array
  ) -> problem.Plan:
    """Solves [..., n, m] problems; see `emd.solve`."""
    batch, (n, m) = cost.shape[:-2], cost.shape[-2:]
    tolerance = self.tolerance
    if tolerance is None:
      tolerance = 1e-10 if cost.dtype == jnp.float64 else 1e-7
    # The batch goes last: every operation then works on long contiguous rows.
    plan = _solve(
      jnp.moveaxis(cost.reshape(-1, n, m), 0, -1),
      a.reshape(-1, n).T,
      b.reshape(-1, m).T,
      tolerance=tolerance,
      max_steps=self.max_steps,
    )
    return jax.tree.map(
      lambda x: jnp.moveaxis(x, -1, 0).reshape(*batch, *x.shape[:-1]), plan
    )


def _solve(cost, a, b, *, tolerance, max_steps) -> problem.Plan:
  """As `InteriorPoint.__call__`, with the batch last: cost [n, m, B]."""
  # What has no meaning is solved as something harmless, and marked at the end.
  good = problem.meaningful(jnp.moveaxis(cost, -1, 0), a.T, b.T)
  cost = jnp.where(good, cost, 0.0)
  a, b = jnp.where(good, a, 1.0), jnp.where(good, b, 1.0)
  total_a, total_b = a.sum(0), b.sum(0)
  moved = jnp.minimum(total_a, total_b)
  largest = jnp.maximum(total_a, total_b)
  balanced = jnp.abs(total_a - total_b) <= problem.BALANCED * largest
  b = jnp.where(balanced, b * (total_a / total_b), b)
  # A dummy row and column, free of charge, take what the lighter side lacks.
  # Which side that is depends on values, so both are always there; the idle one
  # gets a middling cost, out of everything's way. They stand first: the last
  # column is the elimination's ground, and an idle node would be a poor one.
  spare_a = jnp.where(balanced, 0.0, jnp.maximum(total_b - total_a, 0.0))
  spare_b = jnp.where(balanced, 0.0, jnp.maximum(total_a - total_b, 0.0))
  low, high = cost.min((0, 1)), cost.max((0, 1))
  idle = (low + high) / 2
  row = jnp.where(spare_a > 0, 0.0, idle) + 0 * cost[:1]
  column = jnp.where(spare_b > 0, 0.0, idle) + 0 * cost[:, :1]
  corner = idle[None, None]
  wide = jnp.concatenate(
    [
      jnp.concatenate([corner, row], 1),
      jnp.concatenate([column, cost], 1),
    ],
    0,
  )
  wide_a = jnp.concatenate([spare_a[None], a])
  wide_b = jnp.concatenate([spare_b[None], b])
  # Costs to [0, 1], masses to a mean of 1: one set of constants fits all.
  base, span = wide.min((0, 1)), wide.max((0, 1)) - wide.min((0, 1))
  span = jnp.where(span > 0, span, 1.0)
  mass = wide_a.sum(0) / wide_a.shape[0]
  active = (wide_a > 0)[:, None] & (wide_b > 0)[None]
  flow, g, steps = _iterate(
    (wide - base) / span,
    wide_a / mass,
    wide_b * (wide_a.sum(0) / (wide_b.sum(0) * mass)),
    active,
    tolerance,
    max_steps,
  )
  flow = _rounded(flow * mass, wide_a, wide_b)
  # Completed to feasibility in the original costs. A node without mass gets the
  # potential that it would have with a little, and constrains no other.
  g = jnp.where(wide_b > 0, g * span, -jnp.inf)
  f = (wide - g[None]).min(1)
  g = (wide - f[:, None]).min(0)
  # A dummy's potential is 0: that fixes the gauge of partial transport.
  shift = jnp.where(spare_b > 0, g[0], jnp.where(spare_a > 0, -f[0], 0.0))
  f, g = (f + shift)[1:], (g - shift)[1:]
  flow = flow[1:, 1:]
  gap = (cost * flow).sum((0, 1)) - (a * f).sum(0) - (b * g).sum(0)
  rows = jnp.abs(jnp.minimum(a - flow.sum(1), 0.0)).max(0)
  columns = jnp.abs(jnp.minimum(b - flow.sum(0), 0.0)).max(0)
  short = jnp.abs(moved - flow.sum((0, 1)))
  residual = jnp.maximum(jnp.maximum(rows, columns), short)
  scale = moved * jnp.maximum(jnp.abs(low), jnp.abs(high))
  enough = 1e-9 if cost.dtype == jnp.float64 else 2e-5
  converged = good & (jnp.abs(gap) <= enough * scale)
  fields = problem.Plan(flow, f, g, jnp.abs(gap), residual, steps, converged)
  marked = [
    jnp.where(good, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x
    for x in fields
  ]
  return problem.Plan(*marked)


def _factor(conductance):
  """Eliminates all nodes of the network but the last column.

  Returns:
    Row sums [n, B], row shares [n, m, B], and for each eliminated column its
    shares among those left [m, m, B] and its degree [m, B].
  """
  n, m, _ = conductance.shape
  degree = _or_one(conductance.sum(1))
  shares = conductance / degree[:, None]

  def add_row(i, mesh):
    return mesh + shares[i][:, None] * conductance[i][None]

  mesh = lax.fori_loop(0, n, add_row, _zeros(conductance))
  later = jnp.arange(m)

  def eliminate(k, state):
    mesh, parts, degrees = state
    neighbours = mesh[k] * (later > k)[:, None]
    total = neighbours.sum(0)
    part = neighbours / _or_one(total)
    mesh = mesh + part[:, None] * neighbours[None]
    return mesh, parts.at[k].set(part), degrees.at[k].set(total)

  state = (mesh, mesh * 0, mesh[0] * 0)
  _, parts, degrees = lax.fori_loop(0, m - 1, eliminate, state)
  return degree, shares, parts, degrees


def _or_one(degree):
  """Nodes without a connection keep a harmless divisor."""
  return jnp.where(degree > 0, degree, 1.0)


def _zeros(conductance):
  """[m, m, B] zeros that vary over devices as the data does."""
  m = conductance.shape[1]
  return jnp.zeros((m, 1, 1), conductance.dtype) * conductance[:1]


def _potentials(factors, row_excess, column_excess):
  """Node potentials whose currents D (u_i + v_j) have the given sums."""
  degree, shares, parts, degrees = factors
  m = parts.shape[0]
  load = (shares * row_excess[:, None]).sum(0) - column_excess

  def forward(k, load):
    return load + parts[k] * load[k]

  load = lax.fori_loop(0, m - 1, forward, load)
  # Whoever has no later neighbour is the ground: the last node with mass.
  voltage = jnp.where(degrees > 0, load / _or_one(degrees), 0.0)

  def backward(i, solution):
    k = m - 2 - i
    value = voltage[k] + (parts[k] * solution).sum(0)
    return solution.at[k].set(value)

  solution = lax.fori_loop(0, m - 1, backward, load * 0)
  u = row_excess / degree + (shares * solution[None]).sum(1)
  return u, -solution


def _iterate(cost, a, b, active, tolerance, max_steps):
  """The interior point iteration on normalised problems: (flow, g, steps).

  Cells that are not `active`, of nodes without mass, have no flow and hence no
  conductance: they drop out of everything.
  """
  proximal = 1e-12 if cost.dtype == jnp.float64 else 1e-6
  cells = active.sum((0, 1))
  total = a.sum(0)
  flow = a[:, None] * b[None] / total
  f = cost.min(1)
  g = (cost - f[:, None]).min(0)
  slack = cost - f[:, None] - g[None] + 0.1

  def unfinished(state):
    return (state[0] < max_steps) & ~state[-1].all()

  def step(state):
    count, flow, slack, g, best, steps, stalled, done = state
    gap = (flow * slack).sum((0, 1))
    mu = gap / cells
    # The proximal term bounds the conductances; the limit is still the LP.
    conductance = 1.0 / (slack / flow + proximal)
    factors = _factor(conductance)
    row_error, column_error = a - flow.sum(1), b - flow.sum(0)

    def direction(target):
      u, v = _potentials(
        factors, row_error - target.sum(1), column_error - target.sum(0)
      )
      change = target + conductance * (u[:, None] + v[None])
      # One refinement against the marginals: float32's lost digits.
      more_u, more_v = _potentials(
        factors, row_error - change.sum(1), column_error - change.sum(0)
      )
      change = change + conductance * (more_u[:, None] + more_v[None])
      u, v = u + more_u, v + more_v
      return change, jnp.where(active, -(u[:, None] + v[None]), 0.0), v

    change, fall, _ = direction(-conductance * slack)
    primal, dual = _reach(flow, change), _reach(slack, fall)
    ahead = ((flow + primal * change) * (slack + dual * fall)).sum((0, 1))
    centring = (ahead / gap) ** 3
    aim = (centring * mu - change * fall) / (slack + proximal * flow)
    target = jnp.where(active, aim - conductance * slack, 0.0)
    change, fall, v = direction(target)
    primal = jnp.minimum(1.0, _BACKOFF * _reach(flow, change))
    dual = jnp.minimum(1.0, _BACKOFF * _reach(slack, fall))
    new_flow, new_slack = flow + primal * change, slack + dual * fall
    new_gap = (new_flow * new_slack).sum((0, 1))
    broken = ~jnp.isfinite(new_gap + v.sum(0)) | (new_flow.min((0, 1)) < 0)
    broken |= new_slack.min((0, 1)) <= 0
    stop = done | broken
    flow = jnp.where(stop, flow, new_flow)
    slack = jnp.where(stop, slack, new_slack)
    g = jnp.where(stop, g, g + dual * v)
    steps = jnp.where(stop, steps, steps + 1)
    # What the marginals lack counts like the gap: it has to be moved too.
    lack = jnp.abs(a - flow.sum(1)).sum(0) + jnp.abs(b - flow.sum(0)).sum(0)
    left = new_gap + lack
    stalled = jnp.where(left > 0.9 * best[0], stalled + 1, 0)
    better, now = ~stop & (left < best[0]), (left, flow, g)
    best = [jnp.where(better, x, y) for x, y in zip(now, best, strict=True)]
    done = stop | (left <= tolerance * total) | (stalled >= 3)
    return count + 1, flow, slack, g, best, steps, stalled, done

  none = jnp.zeros_like(total, jnp.int32) + (total * 0).astype(jnp.int32)
  best = [total + jnp.inf, flow, g]
  state = (0, flow, slack, g, best, none, none, total < 0)
  _, _, _, _, (_, flow, g), steps, _, _ = lax.while_loop(
    unfinished, step, state
  )
  return flow, g, steps


def _reach(x, change):
  """The largest step that keeps x + step * change positive, at most 1."""
  fastest = (-change / jnp.maximum(x, 1e-30)).max((0, 1))
  return 1.0 / jnp.maximum(fastest, 1.0)


def _rounded(flow, a, b):
  """The nearest plan with exact marginals, up to rounding."""
  sums = flow.sum(1)
  flow = flow * jnp.where(sums > a, a / sums, 1.0)[:, None]
  sums = flow.sum(0)
  flow = flow * jnp.where(sums > b, b / sums, 1.0)[None]
  lack_a = jnp.maximum(a - flow.sum(1), 0.0)
  lack_b = jnp.maximum(b - flow.sum(0), 0.0)
  lack = jnp.maximum(jnp.maximum(lack_a.sum(0), lack_b.sum(0)), 1e-30)
  return flow + lack_a[:, None] * lack_b[None] / lack
