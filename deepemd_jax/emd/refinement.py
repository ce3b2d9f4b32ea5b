"""Solves a problem in rounds, each of which refines what the last one found.

An iterative solver is as exact as its numbers allow, relative to the largest
cost. That is not enough if the plan pays only costs that are far smaller. The
potentials say what is left: with the slacks in place of the costs, the problem
has the same solutions. Its interesting part is small, so that in a smaller unit
the next round sees it better. Slacks far above the unit cannot be worth paying
and count as `_FAR` units. So large costs, and forbidden pairs, do not blur the
others.

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

_MOST_ROUNDS = 30  # 60 orders of magnitude take about 20
_PATIENCE = 6  # rounds without progress until a problem is given up
_FACTOR = 100.0  # see `_Rounds.factor`; a hundredth of the mass pays more
_FAR = 20.0  # units; more would let the potentials stray and lose digits
# What one leak makes hard, another makes easy: a large one holds still what is
# hardly connected, and a small one lets through what must yet move.
_LESS = 0.01  # of the leak, in a round after the first, unless that failed
_MARGIN = 2.0  # a problem is done if it is so much better than it must be
_LACK = 1e-4  # of a node's mass: so much is no rounding


class _Rounds(NamedTuple):
  """What changes from round to round.

  Attributes:
    count: [], rounds.
    flow: [N, M, ...], the best flow so far; its gap decides.
    f: [N, ...], its potentials, of `ScaledProblem.above`;
      feasible.
    g: [M, ...].
    gap: [...], its evidence, and so are scale, rounding and residual.
    scale: [...].
    rounding: [...].
    residual: [...].
    unit: [...], of the next round.
    factor: [...], that unit relative to the mean slack that is paid.
    idle: [...], rounds in a row without progress.
    steps: [...], of all rounds.
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
  """The plan, in original units; nothing is cut off.

  Args:
    scaled: the problem; its `above` may forbid pairs.
    iterate: a function of cost [N, M, ...], a, b, the moved mass, which is
      negative where there is nothing to do, and the share of the leak that
      there should be (see `interior_point_step.Options`). It returns a flow and
      potentials that are nearly optimal, in the same unit, and steps.
    n: rows, without the dummy.
    m: columns, without the dummy.
    dtype: of the result.
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
  possible = _is_possible(scaled, state.flow)
  scaled = scaled._replace(valid=scaled.valid & possible)
  return certificate.make_plan(
    scaled, state.flow, evidence, state.steps, n, m, dtype
  )


def _start(scaled: ScaledProblem, n: int, m: int) -> _Rounds:
  """Potentials that make the slacks the costs above the lowest, and those of
  the dummies half of the range."""
  # Made from data, to vary over devices as the data does under shard_map.
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
  """Solves what is left, in a smaller unit."""
  a, b, above = scaled.a, scaled.b, scaled.above
  unit = jnp.where(state.unit > 0, state.unit, 1)
  # In the first round only what is forbidden is far.
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
  # If neither leak helped, the unit may have been too small. None need be
  # smaller than what a pair costs that is paid.
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
  """A flow without what forbidden pairs carry, nor what others that are far
  carry because the method leaves no pair empty."""
  a = a[:, None] + 0 * b
  little = flow < 0.01 * jnp.minimum(a, b)
  return jnp.where((far & little) | (above == jnp.inf), 0, flow)


def _is_possible(scaled: ScaledProblem, flow):
  """[...] bool: no pair is forbidden, or there is a plan without such pairs."""
  lack_a = scaled.a - flow.sum(1) > _LACK * scaled.a
  lack_b = scaled.b - flow.sum(0) > _LACK * scaled.b
  count = lambda x, *axes: jnp.where(x, 1.0, 0.0).sum(axes)  # noqa: E731
  forbids = count(scaled.above == jnp.inf, 0, 1) > 0
  return ~(forbids & (count(lack_a, 0) + count(lack_b, 0) > 0))
