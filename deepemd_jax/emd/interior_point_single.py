"""The interior point method for one problem, without a batch.

The steps are those of `interior_point_step`, whose comments explain them. There
each operation runs over many small problems. Here a problem is small enough for
a GPU's registers (`interior_point_gpu`), or so large that each operation has
enough work (`interior_point_dense`). These modules pass the linear algebra.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from deepemd_jax.emd.interior_point_step import Options

_FAR = 1e30  # slack of a cell that must not bound a step
_TINY = 1e-30  # the smallest divisor


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
    best = [
      jnp.where(better, x, y) for x, y in zip((flow, f, g), best, strict=True)
    ]
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
  return (flow * slack).sum(), a - flow.sum(1), b - flow.sum(0)


def _step(
  flow, slack, f, g, gap, wrong_a, wrong_b, *, constants, eliminate, potentials,
  options
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
  leaks = leak * a, leak * b
  network = eliminate(conductance, *leaks)

  def direction(change, solves):
    u, v = jnp.zeros_like(a), jnp.zeros_like(b)
    for _ in range(solves):
      more_u, more_v = potentials(
        conductance,
        network,
        wrong_a - change.sum(1),
        wrong_b - change.sum(0),
      )
      change = change + conductance * (more_u[:, None] + more_v)
      u, v = u + more_u, v + more_v
    return change, -(u[:, None] + v), u, v

  change, fall, _, _ = direction(-conductance * slack, 1)
  over_flow, over_slack = (1 / jnp.maximum(x, _TINY) for x in (flow, slack))
  primal, dual = _reach(change * over_flow), _reach(fall * over_slack)
  ahead = (flow + primal * change) * (slack + dual * fall)
  centering = ahead.sum() / gap
  centering = centering * centering * centering
  aim = (centering * gap) * weight_a[:, None] * weight_b
  aim = aim - (primal * dual) * change * fall
  change, fall, u, v = direction(give * aim - conductance * slack, 2)
  primal = jnp.minimum(1, options.backoff * _reach(change * over_flow))
  dual = jnp.minimum(1, options.backoff * _reach(fall * over_slack))
  flow, slack = flow + primal * change, slack + dual * fall
  f, g = f + dual * u, g + dual * v

  gap, wrong_a, wrong_b = _wrong(flow, slack, a, b)
  wrong = abs(wrong_a).sum() + abs(wrong_b).sum()
  left = gap + wrong + 0 * (f.sum() + g.sum())  # NaN if one of the terms is
  little = options.tolerance * moved_mass
  rounding = 4 * float(jnp.finfo(flow.dtype).eps) * (moved_mass + b.sum())
  close = (gap <= little) & (wrong <= little + rounding)
  return (flow, slack, f, g), (gap, wrong_a, wrong_b), left, close


def _reach(rise):
  """Returns the largest step, up to 1, that keeps 1 + step * rise >= 0."""
  return 1 / jnp.maximum(-rise.min(), 1)
