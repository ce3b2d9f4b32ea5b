"""Iterative refinement: each round improves the solution of the last round.

The accuracy of an iterative solver is relative to the largest cost. That is not
enough if the plan uses only pairs whose costs are far smaller. With the slacks
of its potentials in place of the costs, a problem has the same solutions. The
slacks of the pairs that matter are small, so that the next round resolves them
better in a smaller unit. A pair with a slack far above the unit cannot be worth
using, and its slack counts as `_FAR` units. So large costs and forbidden pairs
do not make the other costs less exact.

Most problems need one round, in which the unit is the range of their costs.

All arrays have the batch last, or no batch. A GPU kernel uses this module, too.

References:
  Gleixner, Steffy, Wolter, "Iterative Refinement for Linear Programming",
  INFORMS Journal on Computing 28(3), 2016.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deepemd_jax.emd import certificate, problem
from deepemd_jax.emd.problem import Plan, ScaledProblem, index_along

_MOST_ROUNDS = 30  # costs over 60 orders of magnitude take about 20
_PATIENCE = 6  # rounds without progress until a problem is given up
_FACTOR = 100.0  # see `_Rounds.factor`; at most 1% of the mass pays more
_FAR = 20.0  # units; with more, the potentials would drift and lose digits
# Each leak helps where the other fails: a large one fixes the potentials of
# parts that are weakly connected, and a small one lets the remaining mass move.
_LESS = 0.01  # factor of the leak after the first round, unless that failed
_MARGIN = 2.0  # a problem is done if its gap is below the limit by this factor
_LACK = 1e-4  # a missing share of a node's mass that is more than rounding
_ROUNDINGS = 16  # a node may lack this many rounding errors of the moved mass


class _Rounds(NamedTuple):
  """The values that change from round to round.

  Attributes:
    count: [], the number of rounds.
    flow: [N, M, ...], the best flow so far: the one with the smallest gap.
    f: [N, ...], its row potentials, of `ScaledProblem.above`; feasible.
    g: [M, ...], its column potentials; feasible.
    gap: [...]; see `certificate.Evidence`.
    scale: [...]; see `certificate.Evidence`.
    rounding: [...]; see `certificate.Evidence`.
    residual: [...]; see `certificate.Evidence`.
    unit: [...], the unit of the next round.
    factor: [...], that unit relative to the mean slack of the flow.
    idle: [...], the number of rounds in a row without progress.
    steps: [...], the steps of all rounds.
    active: [...] int32, 1 where the next round has something to do.
  """

  count: jax.Array
  flow: jax.Array
  f: jax.Array
  g: jax.Array
  gap: jax.Array
  scale: jax.Array
  rounding: jax.Array
  residual: jax.Array
  unit: jax.Array
  factor: jax.Array
  idle: jax.Array
  steps: jax.Array
  active: jax.Array


def solve(
  scaled: ScaledProblem, iterate: Callable, n: int, m: int, dtype
) -> Plan:
  """Solves a problem in rounds. The plan has original units and the dummies.

  Args:
    scaled: the problem; its `above` may forbid pairs.
    iterate: a function of cost [N, M, ...], a [N, ...], b [M, ...], the moved
      mass [...], where a negative value skips the problem, and a factor [...]
      of the leak (see `interior_point_step.Options`). It returns a flow and
      potentials that are nearly optimal, in the same unit, and steps.
    n: number of rows, without the dummy.
    m: number of columns, without the dummy.
    dtype: the dtype of the result.
  """
  state = _start(scaled, n, m)

  def unfinished(state):
    return (state.count < _MOST_ROUNDS) & (state.active.sum() > 0)

  def advance(state):
    return _round(state, scaled, iterate, n, m, dtype)

  state = lax.while_loop(unfinished, advance, state)
  evidence = certificate.Evidence(
    f=state.f,
    g=state.g,
    gap=state.gap,
    scale=state.scale,
    rounding=state.rounding,
    residual=state.residual,
  )
  close = certificate.is_close(state.gap, state.scale, dtype)
  possible = _is_possible(scaled, state.flow, close)
  scaled = scaled._replace(valid=scaled.valid & possible)
  return certificate.make_plan(
    scaled, state.flow, evidence, state.steps, n, m, dtype
  )


def _start(scaled: ScaledProblem, n: int, m: int) -> _Rounds:
  """Returns the state before the first round.

  Its potentials are such that the slacks are the costs minus the lowest cost,
  and those of the dummies are half of the range.
  """
  # It is computed from data, so that it varies over devices as the data does
  # under shard_map.
  zero = 0 * scaled.moved_mass
  none = jnp.where(scaled.valid, jnp.int32(0), jnp.int32(0))
  half = scaled.cost_range / 2
  a, b = scaled.a, scaled.b
  return _Rounds(
    count=jnp.int32(0),
    flow=0 * (a[:, None] * b),
    f=jnp.where(index_along(a) == n, -half, 0 * a),
    g=jnp.where(index_along(b) == m, -half, 0 * b),
    gap=zero + jnp.inf,
    scale=zero,
    rounding=zero,
    residual=zero,
    unit=scaled.cost_range,
    factor=zero + _FACTOR,
    idle=none,
    steps=none,
    active=jnp.where(scaled.valid, jnp.int32(1), none),
  )


def _round(state: _Rounds, scaled, iterate, n, m, dtype) -> _Rounds:
  """Solves the problem with its slacks as costs, in a smaller unit."""
  a, b, above = scaled.a, scaled.b, scaled.above
  unit = jnp.where(state.unit > 0, state.unit, 1)
  # In the first round only forbidden pairs are far.
  far = jnp.where(
    state.count == 0, problem.FORBIDDEN * (n + m), 0 * unit + _FAR
  )
  left = above - state.f[:, None] - state.g
  left = jnp.minimum(jnp.maximum(left, 0) / unit, far)
  moved_mass = jnp.where(state.active > 0, scaled.moved_mass, -1)
  again = (state.count > 0) & (state.idle % 2 == 0)
  leak = jnp.where(again, 0 * unit + _LESS, 1)
  flow, f, g, steps = iterate(left, a, b, moved_mass, leak)
  flow = _without_far(flow, left >= far, above, a, b)
  flow = certificate.round_to_marginals(flow, a, b, left <= 1)
  f, g = state.f + state.unit * f, state.g + state.unit * g
  evidence = certificate.examine(scaled, flow, f, g, n, m, dtype)
  active = state.active > 0
  better = active & (evidence.gap < state.gap)
  progress = active & (evidence.gap < 0.5 * state.gap)
  idle = jnp.where(progress, jnp.int32(0), state.idle + 1)
  old = state.flow, state.f, state.g, state.gap, state.scale, state.rounding
  old = *old, state.residual
  new = flow, evidence.f, evidence.g, evidence.gap, evidence.scale
  new = *new, evidence.rounding, evidence.residual
  kept = [jnp.where(better, x, y) for x, y in zip(new, old, strict=True)]
  # If neither leak helped, the unit may have been too small. A unit need not be
  # smaller than the mean cost of the plan.
  stuck = ~progress & (idle % 2 == 0)
  factor = jnp.where(stuck, 30 * state.factor, state.factor)
  unit = jnp.maximum(factor * kept[3], kept[4]) / scaled.moved_mass
  good = certificate.is_close(kept[3], kept[4], dtype, _MARGIN)
  goes_on = active & ~good & (idle < _PATIENCE)
  return _Rounds(
    state.count + 1,
    *kept,
    unit=jnp.minimum(unit, scaled.cost_range),
    factor=factor,
    idle=idle,
    steps=state.steps + jnp.where(active, steps, jnp.int32(0)),
    active=jnp.where(goes_on, jnp.int32(1), jnp.int32(0)),
  )


def _without_far(flow, far, above, a, b):
  """Removes flow on forbidden pairs, and small flow on other far pairs, which
  exists because the method leaves no pair empty."""
  a = a[:, None] + 0 * b
  little = flow < 0.01 * jnp.minimum(a, b)
  return jnp.where((far & little) | (above == jnp.inf), 0, flow)


def _is_possible(scaled: ScaledProblem, flow, close):
  """Tells whether there is a plan without forbidden pairs, [...] bool.

  There is none if a node lacks mass. If the node has very little mass, though,
  a lack may be rounding of the whole flow. So a small lack does not count if
  the flow is `close` [...] to the optimum, and the node has a pair that is not
  forbidden.
  """
  a, b, above = scaled.a, scaled.b, scaled.above
  rounding = _ROUNDINGS * float(jnp.finfo(flow.dtype).eps) * scaled.moved_mass
  least = jnp.where(close, rounding, 0)
  lack_a = a - flow.sum(1) > jnp.maximum(_LACK * a, least)
  lack_b = b - flow.sum(0) > jnp.maximum(_LACK * b, least)
  alone_a = (a > 0) & (jnp.where(b > 0, above, jnp.inf).min(1) == jnp.inf)
  alone_b = (b > 0) & (
    jnp.where(a[:, None] > 0, above, jnp.inf).min(0) == jnp.inf
  )
  count = lambda x, *axes: jnp.where(x, 1.0, 0.0).sum(axes)  # noqa: E731
  lacking = count(lack_a | alone_a, 0) + count(lack_b | alone_b, 0)
  return ~((count(above == jnp.inf, 0, 1) > 0) & (lacking > 0))
