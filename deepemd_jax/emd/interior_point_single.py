"""The interior point method for one problem, without a batch.

The steps are those of `interior_point_step`, whose comments explain them. There
each operation runs over many small problems. Here a problem is small enough for
a GPU's registers (`interior_point_gpu`), or so large that each operation has
enough work (`interior_point_dense`). These modules pass the linear algebra.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deepemd_jax.emd.interior_point_step import Options

_FAR = 1e30  # slack of a cell that must not bound a step
_TINY = 1e-30  # the smallest divisor
# Settings of the correctors; see `_corrected`.
_FARTHER = 0.5  # how much farther a corrector tries to go
_NEIGHBORHOOD = 0.1, 10.0  # of the goal, as factors
_MOST_CENTERING = 0.3  # more would waste steps that correctors make long


def iterate(
  cost,
  a,
  b,
  moved_mass,
  leak,
  *,
  eliminate: Callable,
  potentials: Callable,
  options: Options,
  correctors: int = 0,
):
  """Takes steps until the problem is done.

  Args:
    cost: [N, M], scaled.
    a: [N], row sums.
    b: [M], column sums.
    moved_mass: []; a negative value skips the problem.
    leak: [], a factor of `options.leak`.
    eliminate: a function of conductances [N, M] and leaks [N] and [M] that
      returns a network.
    potentials: a function of the conductances, their network, and the currents
      into rows [N] and columns [M]; see `resistor_network.potentials`.
    options: tolerance, steps and the strengths of the proximal terms.
    correctors: number of further solves with the same network in each step,
      which make the step longer. They pay where the network takes most of the
      time.

  Returns:
    The best flow [N, M], its potentials [N] and [M], and the number of steps.
  """
  flow = a[:, None] * b / a.sum()
  f = cost.min(1) - 0.1
  g = (cost - f[:, None]).min(0) - 0.1
  # Nodes without mass move nothing. Their slacks are too large to bound a step.
  empty = (a[:, None] <= 0) | (b <= 0)
  slack = jnp.where(empty, _FAR, cost - f[:, None] - g)
  root_a, root_b = jnp.sqrt(a), jnp.sqrt(b)
  weights = root_a / root_a.sum(), root_b / root_b.sum()
  step = functools.partial(
    _step,
    constants=(a, b, moved_mass, leak * options.leak, *weights),
    eliminate=eliminate,
    potentials=potentials,
    options=options,
    correctors=correctors,
  )
  now = flow, slack, f, g
  return _repeat(step, now, _wrong(flow, slack, a, b), moved_mass, options)


def _repeat(step, now, wrong, moved_mass, options: Options):
  """Takes steps from `now` until the problem is done; see `iterate`."""

  def unfinished(state):
    *_, steps, done = state
    return (steps < options.max_steps) & (done == 0)

  def advance(state):
    *now, wrong, best, least, idle, steps, _ = state
    now, wrong, left, close = step(*now, *wrong)
    healthy = left < jnp.inf  # false for NaN
    better = left < least
    flow, _, f, g = now
    best = _pick(better, [flow, f, g], best)
    rests = (left > 0.9 * least) & (left < options.near * moved_mass)
    idle = jnp.where(rests, idle + 1, 0)
    done = ~healthy | close | (idle >= options.patience)
    return (
      *now,
      wrong,
      best,
      jnp.where(better, left, least),
      idle,
      jnp.where(healthy, steps + 1, steps),
      jnp.where(done, jnp.int32(1), jnp.int32(0)),
    )

  zero = jnp.int32(0)
  state = *now, wrong, [now[0], *now[2:]]
  done = jnp.where(moved_mass < 0, jnp.int32(1), zero)
  state = *state, moved_mass + jnp.inf, zero, zero, done
  *_, best, _, _, steps, _ = lax.while_loop(unfinished, advance, state)
  return *best, steps


def _wrong(flow, slack, a, b):
  """Returns the gap [] and the missing mass of rows [N] and columns [M]."""
  return _total(flow * slack), a - flow.sum(1), b - flow.sum(0)


def _step(
  flow, slack, f, g, gap, wrong_a, wrong_b, *, constants, eliminate, potentials,
  options, correctors
):  # fmt: skip
  """Takes one predictor-corrector step.

  Returns:
    The next flow, slack, f and g; their errors, as `_wrong` returns them; the
    remaining error []; and whether it is small enough to stop.
  """
  a, b, moved_mass, leak, weight_a, weight_b = constants
  # give * flow is the conductance, 1 / (slack / flow + proximal).
  give = 1 / (slack + options.proximal * flow)
  conductance = give * flow
  network = eliminate(conductance, leak * a, leak * b)
  point = _Point(
    flow=flow,
    slack=slack,
    over_flow=1 / jnp.maximum(flow, _TINY),
    over_slack=1 / jnp.maximum(slack, _TINY),
    conductance=conductance,
    give=give,
    lacks=(wrong_a, wrong_b),
    potentials=functools.partial(potentials, conductance, network),
  )
  move = point.towards(None)
  primal, dual = point.reach(move)
  centering = _total(point.products(move, primal, dual)) / gap
  centering = centering * centering * centering
  if correctors:
    centering = jnp.minimum(centering, _MOST_CENTERING)
  goal = (centering * gap) * weight_a[:, None] * weight_b
  aim = goal - (primal * dual) * move.change * move.fall
  move = point.towards(aim)
  if correctors:
    move = _corrected(point, aim, move, goal, correctors)
  move = point.refine(move)
  primal, dual = (options.backoff * x for x in point.reach(move))
  primal, dual = jnp.minimum(1, primal), jnp.minimum(1, dual)
  flow, slack = flow + primal * move.change, slack + dual * move.fall
  f, g = f + dual * move.u, g + dual * move.v

  gap, wrong_a, wrong_b = _wrong(flow, slack, a, b)
  wrong = abs(wrong_a).sum() + abs(wrong_b).sum()
  left = gap + wrong + 0 * (f.sum() + g.sum())  # NaN if one of the terms is
  little = options.tolerance * moved_mass
  rounding = 4 * float(jnp.finfo(flow.dtype).eps) * (moved_mass + b.sum())
  close = (gap <= little) & (wrong <= little + rounding)
  return (flow, slack, f, g), (gap, wrong_a, wrong_b), left, close


class _Move(NamedTuple):
  """A move of the variables.

  Attributes:
    change: [N, M], the change of the flow.
    u: [N], the change of the row potentials.
    v: [M], the change of the column potentials.
  """

  change: jax.Array
  u: jax.Array
  v: jax.Array

  @property
  def fall(self) -> jax.Array:
    """The change of the slacks, [N, M]."""
    return -(self.u[:, None] + self.v)


class _Point(NamedTuple):
  """The point before a step, and its equations.

  Attributes:
    flow: [N, M].
    slack: [N, M].
    over_flow: [N, M], 1 / flow.
    over_slack: [N, M], 1 / slack.
    conductance: [N, M].
    give: [N, M], conductance / flow.
    lacks: the missing mass of rows [N] and columns [M].
    potentials: a function of the currents into rows and columns.
  """

  flow: jax.Array
  slack: jax.Array
  over_flow: jax.Array
  over_slack: jax.Array
  conductance: jax.Array
  give: jax.Array
  lacks: tuple[jax.Array, jax.Array]
  potentials: Callable

  def towards(self, aim) -> _Move:
    """Returns the move that makes flow * slack equal to `aim`, to first order.

    Args:
      aim: [N, M], or None for 0.
    """
    change = -self.conductance * self.slack
    if aim is not None:
      change = self.give * aim + change
    return self.refine(_Move(change, *map(jnp.zeros_like, self.lacks)))

  def refine(self, move: _Move) -> _Move:
    """Corrects a move, as `resistor_network.refine` does."""
    change, u, v = move
    more_u, more_v = self.potentials(
      self.lacks[0] - change.sum(1), self.lacks[1] - change.sum(0)
    )
    change = change + self.conductance * (more_u[:, None] + more_v)
    return _Move(change, u + more_u, v + more_v)

  def reach(self, move: _Move):
    """Returns the largest steps of the flow and of the slack, [] and []."""
    return (
      _reach(move.change * self.over_flow),
      _reach(move.fall * self.over_slack),
    )

  def products(self, move: _Move, primal, dual):
    """Returns flow * slack after a move of these steps, [N, M]."""
    flow = self.flow + primal * move.change
    return flow * (self.slack + dual * move.fall)


def _corrected(point: _Point, aim, move: _Move, goal, correctors: int) -> _Move:
  """Returns a move that gets farther than a given one, if possible.

  If the given move went farther, some products flow * slack would be far from
  their goal. A corrector changes the aim so that they stay near the goal.

  Args:
    point: the point before the move.
    aim: [N, M], the aim of the move.
    move: the move towards the aim.
    goal: [N, M], the products on the central path.
    correctors: number of correctors, of which each costs one solve.

  References:
    Gondzio, "Multiple centrality corrections in a primal-dual method for linear
    programming", Computational Optimization and Applications 6, 1996.
  """
  least, most = (x * goal for x in _NEIGHBORHOOD)
  far = point.reach(move)
  for _ in range(correctors):
    farther = (jnp.minimum(1, x + _FARTHER) for x in far)
    ahead = point.products(move, *farther)
    too_much = jnp.where(ahead > 2 * most, -most, most - ahead)
    too_little = jnp.where(ahead < least, least - ahead, 0)
    new_aim = aim + jnp.where(ahead > most, too_much, too_little)
    new = point.towards(new_aim)
    new_far = point.reach(new)
    helps = new_far[0] + new_far[1] > far[0] + far[1]
    aim, move, far = _pick(helps, (new_aim, new, new_far), (aim, move, far))
  return move


def _pick(condition, new, old) -> Any:
  return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)


def _total(x):
  """Sums [N, M]. XLA for CPUs takes much longer for both axes at once."""
  return x.sum(0).sum()


def _reach(rise):
  """Returns the largest step, up to 1, that keeps 1 + step * rise >= 0."""
  return 1 / jnp.maximum(-rise.min(), 1)
