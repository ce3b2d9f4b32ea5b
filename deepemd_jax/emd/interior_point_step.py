"""One step of Mehrotra's predictor-corrector on the transport polytope.

With slacks S = C - f - g and conductances D = X / S, the matrix of a step's
normal equations is the Laplacian of a bipartite resistor network.
`resistor_network` solves these equations, in float32 as well.

All arrays have the batch last. A problem that is done does not change while
others in the batch go on.

References:
  Mehrotra, "On the Implementation of a Primal-Dual Interior Point Method",
  SIAM J. Optim. 2(4), 1992.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deepemd_jax.emd import resistor_network
from deepemd_jax.emd.resistor_network import stored, summed


class Options(NamedTuple):
  """The settings of all implementations of `InteriorPoint`.

  Attributes:
    tolerance: the relative duality gap to reach.
    max_steps: bound on the iterations.
    proximal: strength of a proximal term in the flow, which bounds the
      conductances. The limit is still the linear program's solution.
    leak: strength of a proximal term in the potentials. It lets each
      node leak current to the ground, in proportion to its mass. An optimal
      plan may consist of parts that only tiny conductances connect. Without the
      leak, the rounding error of a part's currents would set its voltage.
    backoff: share of the way to the boundary that a step goes.
    patience: the number of steps in a row without progress, near the end, after
      which a problem stops, because rounding may be the reason. Farther from
      the end some problems pause for a while and then go on.
    near: a problem is near the end if its remaining error, `State.left`, is
      below this share of the moved mass.
  """

  tolerance: float
  max_steps: int
  proximal: float
  leak: float
  backoff: float = 0.995
  patience: int = 5
  near: float = 1e-4


class Constants(NamedTuple):
  """The values that stay the same over the steps.

  Attributes:
    a: [n, B], row sums.
    b: [m, B], column sums.
    moved_mass: [B], the mass without dummies.
    weight: [n, m, B], the cells' shares of the gap on the central path.
    ones: [max(n, m), B]; see `resistor_network.stored`.
    leak_a: [n, B], leaks of the rows; see `Options.leak`.
    leak_b: [m, B], leaks of the columns.
  """

  a: jax.Array
  b: jax.Array
  moved_mass: jax.Array
  weight: jax.Array
  ones: jax.Array
  leak_a: jax.Array
  leak_b: jax.Array


class State(NamedTuple):
  """The values that change over the steps. They are frozen where `done`.

  Attributes:
    flow: [n, m, B], X.
    slack: [n, m, B], S = C - f - g. It is updated on its own, because near the
      end it is smaller than the rounding error of C - f - g.
    f: [n, B], row potentials.
    g: [m, B], column potentials.
    left: [B], the remaining error at `best`: its duality gap, plus the errors
      of its marginals.
    best: flow, f and g of the best point so far.
    idle: [B], the number of steps in a row without progress, near the end.
    steps: [B], the number of steps.
    done: [B] bool.
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


def iterate(cost, a, b, moved_mass, leak, options: Options):
  """Takes steps until all problems are done.

  Nodes without mass have no flow, hence no conductance, and drop out.

  Args:
    cost: [blocks, n, m, B], scaled.
    a: [blocks, n, B], row sums.
    b: [blocks, m, B], column sums, the heaviest last.
    moved_mass: [blocks, B]; a negative value skips the problem.
    leak: [blocks, B], a factor of `options.leak`.
    options: tolerance, steps and the strengths of the proximal terms.

  Returns:
    The best flow [blocks, n, m, B], its potentials [blocks, n, B] and
    [blocks, m, B], and steps [blocks, B].
  """
  constants, state = jax.vmap(_start)(
    cost, a, b, moved_mass, leak * options.leak
  )
  step = jax.vmap(functools.partial(_step, options=options))

  def unfinished(carry):
    count, state = carry
    return (count < options.max_steps) & ~state.done.all()

  def advance(carry):
    count, state = carry
    return count + 1, step(state, constants)

  _, state = lax.while_loop(unfinished, advance, (0, state))
  return *state.best, state.steps


def _start(cost, a, b, moved_mass, leak) -> tuple[Constants, State]:
  """Returns the constants and a strictly feasible point."""
  flow = a[:, None] * b / a.sum(0)
  f = cost.min(1) - 0.1
  g = (cost - f[:, None]).min(0) - 0.1
  # On the central path X S = mu the slacks are mu / X. Where X must be small,
  # they are so large that float32 loses the others. With weights X0 instead of
  # 1 the iteration starts on the path, but its steps are soon blocked. The root
  # of X0 is between 1 and X0, and avoids both problems.
  weight = jnp.sqrt(flow)
  # It is computed from data, so that it varies over devices as the data does
  # under shard_map.
  zero = jnp.where(moved_mass > 0, 0, 0)
  return Constants(
    a=a,
    b=b,
    moved_mass=moved_mass,
    weight=weight / weight.sum((0, 1)),
    ones=resistor_network.ones(a, len(b)),
    leak_a=leak * a,
    leak_b=leak * b,
  ), State(
    flow=flow,
    slack=cost - f[:, None] - g,
    f=f,
    g=g,
    left=moved_mass + jnp.inf,
    best=(flow, f, g),
    idle=zero,
    steps=zero,
    done=moved_mass < 0,
  )


def _step(state: State, constants: Constants, *, options: Options) -> State:
  """Takes one predictor-corrector step."""
  a, b, _, weight, ones, leak_a, leak_b = constants
  flow, slack = state.flow, state.slack
  conductance = 1 / (slack / flow + options.proximal)
  network = resistor_network.eliminate(conductance, leak_a, leak_b, ones)
  lacks = a - summed(flow, 1), b - summed(flow, 0)

  def direction(target, solves: int):
    """Returns changes of flow, slack, f, g for `target` and the marginals."""
    currents = target, 0 * a, 0 * b
    for _ in range(solves):
      currents = resistor_network.refine(
        network, conductance, currents, *lacks, ones
      )
    change, u, v = currents
    fall = jnp.where(flow > 0, -(u[:, None] + v), 0)
    return change, fall, u, v

  # The predictor tells how far the gap could fall without a correction.
  gap = stored(_total(flow * slack), ones)
  change, fall, _, _ = direction(-conductance * slack, 1)
  primal = resistor_network.reach(flow, change)
  dual = resistor_network.reach(slack, fall)
  ahead = (flow + primal * change) * (slack + dual * fall)
  centering = (_total(ahead) / gap) ** 3
  # The corrector aims at the central path, with a second-order term.
  aim = (
    stored(centering * gap, ones) * weight
    - stored(primal * dual, ones) * change * fall
  )
  target = jnp.where(flow > 0, conductance * (aim / flow - slack), 0)
  # The second solve is a refinement: it recovers the digits that float32 lost.
  change, fall, u, v = direction(target, 2)
  primal = jnp.minimum(
    1, options.backoff * resistor_network.reach(flow, change)
  )
  dual = jnp.minimum(1, options.backoff * resistor_network.reach(slack, fall))
  point = (
    flow + primal * change,
    slack + dual * fall,
    state.f + dual * u,
    state.g + dual * v,
  )
  return _judge(state, point, constants, options)


def _judge(state: State, point, constants: Constants, options: Options):
  """Returns the next state, given the next flow, slack, f and g."""
  a, b, moved_mass, _, ones, *_ = constants
  flow, slack = point[:2]
  gap = stored(_total(flow * slack), ones)
  wrong = abs(a - summed(flow, 1)).sum(0) + abs(b - summed(flow, 0)).sum(0)
  little = options.tolerance * moved_mass
  rounding = 4 * float(jnp.finfo(flow.dtype).eps) * (moved_mass + b.sum(0))
  return accept(
    state,
    point,
    left=gap + wrong,  # the mass that is missing must be moved, too
    near=options.near * moved_mass,
    close=(gap <= little) & (wrong <= little + rounding),
    patience=options.patience,
    mask=lambda x: stored(jnp.where(x, 1.0, 0.0).astype(flow.dtype), ones) > 0,
  )


def accept(
  state: State, point, *, left, near, close, patience: int, mask=lambda x: x
) -> State:
  """Moves on to a point, unless it is not finite or the problem is done.

  Args:
    state: the state before the step.
    point: flow [n, m, B], slack [n, m, B], f [n, B] and g [m, B].
    left: [B], the remaining error at the point.
    near: [B]; a problem with a smaller remaining error is near the end.
    close: [B] bool, whether the problem is solved.
    patience: see `Options`.
    mask: a function of [B] bool that returns the condition for `jnp.where`.
  """
  flow, slack, f, g = point
  healthy = jnp.isfinite(left + f.sum(0) + g.sum(0))
  moves = healthy & ~state.done
  better = moves & (left < state.left)
  rests = (left > 0.9 * state.left) & (left < near)
  idle = jnp.where(rests, state.idle + 1, 0)
  moves, better = mask(moves), mask(better)
  flow, slack, f, g = _select(
    moves, point, (state.flow, state.slack, state.f, state.g)
  )
  return State(
    flow=flow,
    slack=slack,
    f=f,
    g=g,
    left=jnp.where(better, left, state.left),
    best=_select(better, (point[0], *point[2:]), state.best),
    idle=idle,
    steps=state.steps + moves,
    done=state.done | ~healthy | close | (idle >= patience),
  )


def _total(x):
  """Sums [n, m, B] to [B]."""
  return summed(summed(x, 0), 0)


def _select(condition, new, old) -> Any:
  return tuple(jnp.where(condition, *xy) for xy in zip(new, old, strict=True))
