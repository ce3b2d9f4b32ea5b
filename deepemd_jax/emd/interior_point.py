"""Exact transport on any device: a primal-dual interior point method.

Mehrotra's predictor-corrector on the transport polytope. With slacks
S = C - f - g and conductances D = X / S, the normal equations are the Laplacian
of a bipartite resistor network, solved by eliminating its nodes: rows in closed
form, columns in turn. A node is eliminated by a star-mesh transform, which ADDS
a conductance between any two of its neighbours. Degrees are summed up from
conductances, never updated: nothing is subtracted, so nothing cancels, and
float32 suffices where a Cholesky factorisation breaks down.

Each step costs about n m^2 + m^3 multiply-adds; 8 to 20 steps are usual.

References:
  Mehrotra, "On the Implementation of a Primal-Dual Interior Point Method",
  SIAM J. Optim. 2(4), 1992.
  Grassmann, Taksar, Heyman, "Regenerative Analysis and Steady State
  Distributions for Markov Chains", Operations Research 33(5), 1985 (elimination
  without subtraction).
  Altschuler, Weed, Rigollet, "Near-linear time approximation algorithms for
  optimal transport via Sinkhorn iteration", NeurIPS 2017, algorithm 2 (rounding
  to exact marginals).
"""

import dataclasses
import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deepemd_jax.emd import problem

_BACKOFF = 0.995  # of the step to the boundary
_LANES = 64  # problems side by side: their arrays fit a CPU core's cache
_PIVOTS = 4  # columns eliminated per pass over the network
_PATIENCE = 5  # steps without progress before a problem is given up
_UNROLLED = 64  # longest sum that is written out; see `_fold`


@dataclasses.dataclass(frozen=True)
class InteriorPoint:
  """Device solver, batched, in the dtype of its input.

  The choice on GPUs and TPUs. A problem stops when its duality gap, relative to
  the moved mass times the range of its costs, is below `tolerance`, or when
  rounding stops its progress; its neighbours in the batch go on. The best flow
  met is rounded to exact marginals and the potentials are completed to feasible
  ones, so that `Plan.gap` bounds the value's error however it ended, and
  `Plan.converged` says if that is small (not: if `tolerance` was reached).

  Attributes:
    tolerance: relative duality gap; None is 1e-7 in float32, 1e-10 in float64.
    max_steps: bound on the iterations.

  Raises:
    ValueError: tolerance is not positive, or max_steps is below 1.
  """

  tolerance: float | None = None
  max_steps: int = 60

  def __post_init__(self):
    if self.tolerance is not None and not self.tolerance > 0:
      raise ValueError(f"tolerance is {self.tolerance}; it must be above 0")
    if self.max_steps < 1:
      raise ValueError(f"max_steps is {self.max_steps}; it must be 1 or more")

  def __call__(
    self,
    cost: Float[Array, "*batch n m"],
    a: Float[Array, "*batch n"],
    b: Float[Array, "*batch m"],
  ) -> problem.Plan:
    """Solves problems that `problem.prepare` has checked; see `emd.solve`."""
    batch, dtype = cost.shape[:-2], cost.dtype
    tolerance = self.tolerance
    if tolerance is None:
      tolerance = 1e-10 if dtype == jnp.float64 else 1e-7
    standard = problem.standardise(*problem.batch_last(cost, a, b))
    flow, f, g, steps = _solve(*standard[:4], tolerance, self.max_steps)
    flow = _rounded(flow, standard.a, standard.b)
    plan = problem.finish(standard, flow, f, g, steps, dtype=dtype)
    return problem.batch_first(plan, batch)


def _solve(cost, a, b, moved, tolerance, max_steps):
  """Flow [n, m, B], potentials [n, B] and [m, B], and steps [B]."""
  n, m, count = cost.shape
  if m > n:  # columns are what costs: let them be the shorter side
    swapped = cost.swapaxes(0, 1), b, a
    flow, g, f, steps = _solve(*swapped, moved, tolerance, max_steps)
    return flow.swapaxes(0, 1), f, g, steps
  # The last column is the network's ground. A heavy node is a good one: with
  # one that is hardly connected a common offset would drown all voltages.
  heaviest = jnp.arange(m)[:, None] == jnp.argmax(b, 0)

  def swap(x):  # the heaviest and the last column; its own inverse
    chosen = jnp.where(heaviest, x, 0).sum(-2)
    return jnp.where(heaviest, x[..., -1:, :], x).at[..., -1, :].set(chosen)

  blocks = max(1, -(-count // _LANES))
  lanes = -(-count // (8 * blocks)) * 8

  def split(x):  # [..., B] -> [blocks, ..., lanes], the last problem repeated
    if blocks * lanes > count:
      spare = [(0, 0)] * (x.ndim - 1) + [(0, blocks * lanes - count)]
      x = jnp.pad(x, spare, mode="edge")
    return jnp.moveaxis(x.reshape(*x.shape[:-1], blocks, lanes), -2, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], blocks * lanes)[..., :count]

  arguments = [split(x) for x in (swap(cost), a, swap(b), moved)]
  flow, f, g, steps = map(join, _iterate(*arguments, tolerance, max_steps))
  return swap(flow), f, swap(g), steps


class _Given(NamedTuple):
  """What stays the same over the steps.

  Attributes:
    a: [n, B], row sums.
    b: [m, B], column sums.
    moved: [B], the mass without dummies.
    weight: [n, m, B], the cells' shares of the gap on the central path.
    ones: [n, B]; see `_stored`.
  """

  a: jax.Array
  b: jax.Array
  moved: jax.Array
  weight: jax.Array
  ones: jax.Array


class _State(NamedTuple):
  """What changes; frozen where `done`.

  Attributes:
    flow: [n, m, B], X.
    slack: [n, m, B], S = C - f - g, updated on its own: near the end it is
      smaller than what C - f - g loses to rounding.
    f: [n, B].
    g: [m, B].
    left: [B], what was left to do at `best`.
    best: flow, f and g of the best point met.
    idle: [B], steps in a row without progress.
    steps: [B].
    done: [B].
  """

  flow: jax.Array
  slack: jax.Array
  f: jax.Array
  g: jax.Array
  left: jax.Array
  best: tuple[jax.Array, jax.Array, jax.Array]
  idle: jax.Array
  steps: jax.Array
  done: jax.Array


def _iterate(cost, a, b, moved, tolerance, max_steps):
  """Steps until all problems are done; blocks of problems in front.

  Nodes without mass have no flow, hence no conductance, and drop out.
  """
  given, state = jax.vmap(_start)(cost, a, b, moved)
  step = jax.vmap(functools.partial(_step, tolerance=tolerance))

  def unfinished(carry):
    count, state = carry
    return (count < max_steps) & ~state.done.all()

  def advance(carry):
    count, state = carry
    return count + 1, step(state, given)

  _, state = lax.while_loop(unfinished, advance, (0, state))
  return *state.best, state.steps


def _start(cost, a, b, moved) -> tuple[_Given, _State]:
  """A strictly feasible point."""
  flow = a[:, None] * b / a.sum(0)
  f = cost.min(1) - 0.1
  g = (cost - f[:, None]).min(0) - 0.1
  # The central path X S = mu has slacks of mu / X, so huge where X must be
  # small that float32 loses the others; with weights X0, where the iteration
  # starts on the path, steps are soon blocked. In between, both go well.
  weight = jnp.sqrt(flow)
  # Made from data, to vary over devices as data does under shard_map.
  none = jnp.where(moved > 0, 0, 0)
  return _Given(
    a=a,
    b=b,
    moved=moved,
    weight=weight / weight.sum((0, 1)),
    ones=jnp.where(a >= 0, 1, a),
  ), _State(
    flow=flow,
    slack=cost - f[:, None] - g,
    f=f,
    g=g,
    left=moved + jnp.inf,
    best=(flow, f, g),
    idle=none,
    steps=none,
    done=moved < 0,
  )


def _step(state: _State, given: _Given, *, tolerance) -> _State:
  """One predictor-corrector step."""
  a, b, moved, weight, ones = given
  flow, slack = state.flow, state.slack
  epsilon = float(jnp.finfo(flow.dtype).eps)
  # Proximal terms, in the flow and in the potentials; the limit is still the
  # LP's. The first bounds the conductances. The second lets each node leak, in
  # proportion to its mass: where an optimal plan falls into parts, only tiny
  # conductances connect these, and through them alone the rounding of a part's
  # currents would set its voltage.
  proximal, leak = (1e-12, 1e-9) if flow.dtype == jnp.float64 else (1e-6, 1e-3)
  conductance = 1 / (slack / flow + proximal)
  network = _eliminate(conductance, leak * a, leak * b, ones)
  wrong_a, wrong_b = a - _sum(flow, 1), b - _sum(flow, 0)

  def direction(target, solves):
    """Changes of flow, slack, f and g that make good what is wrong."""
    change, u, v = target, 0 * a, 0 * b
    for _ in range(solves):
      more_u, more_v = _potentials(
        network,
        _stored(wrong_a - _sum(change, 1), ones),
        _stored(wrong_b - _sum(change, 0), ones),
        ones,
      )
      change = change + conductance * (more_u[:, None] + more_v)
      u, v = u + more_u, v + more_v
    fall = jnp.where(flow > 0, -(u[:, None] + v), 0)
    return change, fall, u, v

  gap = _stored(_sum(_sum(flow * slack, 0), 0), ones)
  change, fall, _, _ = direction(-conductance * slack, 1)
  primal, dual = _reach(flow, change), _reach(slack, fall)
  ahead = (flow + primal * change) * (slack + dual * fall)
  centring = (_sum(_sum(ahead, 0), 0) / gap) ** 3
  aim = (
    _stored(centring * gap, ones) * weight
    - _stored(primal * dual, ones) * change * fall
  )
  target = jnp.where(flow > 0, conductance * (aim / flow - slack), 0)
  # The second solve refines: it brings back the digits that float32 lost.
  change, fall, u, v = direction(target, 2)
  primal = jnp.minimum(1, _BACKOFF * _reach(flow, change))
  dual = jnp.minimum(1, _BACKOFF * _reach(slack, fall))
  now = flow + primal * change, state.f + dual * u, state.g + dual * v
  flow, slack = now[0], slack + dual * fall

  gap = _stored(_sum(_sum(flow * slack, 0), 0), ones)
  wrong = abs(a - _sum(flow, 1)).sum(0) + abs(b - _sum(flow, 0)).sum(0)
  left = gap + wrong  # what the marginals lack has to be moved, too
  healthy = jnp.isfinite(left + now[1].sum(0) + now[2].sum(0))
  moves = healthy & ~state.done
  better = moves & (left < state.left)
  idle = jnp.where(left > 0.9 * state.left, state.idle + 1, 0)
  rounding = 4 * epsilon * (moved + b.sum(0))
  close = (gap <= tolerance * moved) & (wrong <= tolerance * moved + rounding)
  moves, better = (
    _stored(jnp.where(x, 1.0, 0.0).astype(flow.dtype), ones) > 0
    for x in (moves, better)
  )
  old = state.flow, state.slack, state.f, state.g
  return _State(
    *_pick(moves, (flow, slack, *now[1:]), old),
    left=jnp.where(better, left, state.left),
    best=_pick(better, now, state.best),
    idle=idle,
    steps=state.steps + moves,
    done=state.done | ~healthy | close | (idle >= _PATIENCE),
  )


class _Network(NamedTuple):
  """The bipartite network with all nodes but the last column eliminated.

  Attributes:
    degree: [n, B], row sums of the conductances.
    share: [n, m, B], conductances / degree.
    spread: [m, m, B], below the diagonal: how much of a current into column c
      arrives at column j > c when c is eliminated.
    total: [m, B], degree of a column when its turn came; infinite for the
      ground, and for who else has no neighbour left.
  """

  degree: jax.Array
  share: jax.Array
  spread: jax.Array
  total: jax.Array


def _eliminate(conductance, leak_a, leak_b, ones) -> _Network:
  """Eliminates the rows, then the columns; leaks go into the ground."""
  n, m, _ = conductance.shape
  conductance = conductance.at[:, -1].add(leak_a)
  degree = _stored(_or_one(_sum(conductance, 1)), ones)
  share = conductance / degree[:, None]
  mesh = functools.reduce(
    operator.add, (share[i][:, None] * conductance[i] for i in range(n))
  )

  mesh = mesh.at[:, -1].add(leak_b)

  def eliminate(i, state):
    return _eliminate_columns(*state, i * _PIVOTS, _PIVOTS, ones)

  passes, rest = divmod(m - 1, _PIVOTS)
  state = mesh, mesh[0] * 0
  if passes:
    state = lax.fori_loop(0, passes, eliminate, state)
  mesh, total = _eliminate_columns(*state, passes * _PIVOTS, rest, ones)
  row, column = jnp.arange(m)[:, None, None], jnp.arange(m)[:, None]
  return _Network(
    degree=degree,
    share=share,
    spread=jnp.where((column < row) & (row < m - 1), mesh, 0),
    total=jnp.where(total > 0, total, jnp.inf),
  )


def _eliminate_columns(mesh, totals, start, count, ones):
  """Star-mesh transforms of columns start, ..., start + count - 1.

  Above its diagonal the mesh holds conductances between columns; below it, in
  place of those of columns that are gone, what `_Network.spread` says.
  """
  if not count:
    return mesh, totals
  column = jnp.arange(len(mesh))[:, None]
  block = (column >= start) & (column < start + count)
  rows = [
    _stored(lax.dynamic_index_in_dim(mesh, start + t, 0, False), ones)
    for t in range(count)
  ]
  mesh = jnp.where(block, 0, mesh)
  for t in range(count):
    k = start + t
    to_later = jnp.where(column > k, rows[t], 0)
    total = _stored(_sum(to_later, 0), ones)
    part = to_later / _or_one(total)
    row = jnp.where(column == k, 1, rows[t])
    for s in range(t + 1, count):
      arriving = lax.dynamic_index_in_dim(part, start + s, 0)
      rows[s] = jnp.where(column == k, 0, rows[s]) + arriving * row
      rows[s] = _stored(rows[s], ones)
    row = _stored(jnp.where(block & (column > k), 0, row), ones)
    mesh = mesh + part[:, None] * row
    totals = lax.dynamic_update_index_in_dim(totals, total, k, 0)
  mesh = lax.dynamic_update_slice_in_dim(mesh, jnp.stack(rows), start, 0)
  return mesh, totals


def _potentials(network, into_rows, into_columns, ones):
  """Potentials u, v whose currents D_ij (u_i + v_j) have the given sums."""
  degree, share, spread, total = network
  load = _stored(_sum(share * into_rows[:, None], 0) - into_columns, ones)
  voltage = (load + _sum(spread * load, 1)) / total
  voltage = _stored(voltage + _sum(spread * voltage[:, None], 0), ones)
  u = _stored(into_rows / degree + _sum(share * voltage, 1), ones)
  return u, -voltage


def _stored(x, ones):
  """x, [k, B] or [B], computed once.

  A vector that meets a matrix is wanted once per row. Rather than store it, XLA
  for CPUs computes it each time, and what it is made of, unless it ends in a
  division, which passes for expensive. Without this, steps take ten times as
  long; optimization_barrier is gone before it could help.
  """
  return x / (ones[: len(x)] if x.ndim == 2 else ones[0])


def _sum(x, axis):
  return _fold(operator.add, x, axis)


def _fold(operation, x, axis):
  """Reduces an axis that is not the last.

  Written out, XLA for CPUs makes one vectorised pass of it, several times
  faster than of its own reductions. It grows the program, hence the limit.
  """
  if x.shape[axis] > _UNROLLED:
    whole = {operator.add: jnp.sum, jnp.maximum: jnp.max}
    return whole[operation](x, axis)
  parts = (lax.index_in_dim(x, i, axis, False) for i in range(x.shape[axis]))
  return functools.reduce(operation, parts)


def _reach(x, change):
  """[B], the largest step, up to 1, that keeps x + step * change >= 0."""
  fall = -change / jnp.maximum(x, 1e-30)
  return 1 / jnp.maximum(_fold(jnp.maximum, _fold(jnp.maximum, fall, 0), 0), 1)


def _pick(condition, new, old):
  return tuple(jnp.where(condition, *xy) for xy in zip(new, old, strict=True))


def _or_one(degree):
  """Nodes without a connection keep a harmless divisor."""
  return jnp.where(degree > 0, degree, 1)


def _rounded(flow, a, b):
  """A plan with exact marginals, up to rounding, near one with nearly those."""
  sums = flow.sum(1)
  flow = flow * jnp.where(sums > a, a / _or_one(sums), 1)[:, None]
  sums = flow.sum(0)
  flow = flow * jnp.where(sums > b, b / _or_one(sums), 1)
  lack_a = jnp.maximum(a - flow.sum(1), 0)
  lack_b = jnp.maximum(b - flow.sum(0), 0)
  return flow + lack_a[:, None] * lack_b / _or_one(lack_b.sum(0))
