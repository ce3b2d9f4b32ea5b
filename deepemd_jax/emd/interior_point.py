"""Exact transport on any device: a primal-dual interior point method.

Mehrotra's predictor-corrector on the transport polytope. With slacks
S = C - f - g and conductances D = X / S, the normal equations are the Laplacian
of a bipartite resistor network, see `network`, which float32 can solve.

Each step costs about n m^2 + m^3 multiply-adds; 8 to 20 steps are usual.

References:
  Mehrotra, "On the Implementation of a Primal-Dual Interior Point Method",
  SIAM J. Optim. 2(4), 1992.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import export, lax
from jaxtyping import Array, Float

from deepemd_jax.emd import interior_point_gpu, problem, resistor_network

_LANES = 64  # problems side by side: their arrays fit a CPU core's cache
_GROUP = 6  # blocks that advance together on a CPU, to stay in its caches


class Rules(NamedTuple):
  """What both ways of solving keep to.

  Attributes:
    tolerance: relative duality gap.
    max_steps: bound on the iterations.
    proximal: term in the flow. The limit is still the linear program's. It
      bounds the conductances.
    leak: term in the potentials, likewise. It lets each node leak, in
      proportion to its mass: where an optimal plan falls into parts, only tiny
      conductances connect these, and through them alone the rounding of a
      part's currents would set its voltage.
    backoff: part of the step to the boundary that is taken.
    patience: steps without progress, near the end, before a problem is given
      up: rounding may be why. Farther away some problems rest for a while.
    near: what is left there at most, relative to the moved mass.
  """

  tolerance: float
  max_steps: int
  proximal: float
  leak: float
  backoff: float = 0.995
  patience: int = 5
  near: float = 1e-4


@dataclasses.dataclass(frozen=True)
class InteriorPoint:
  """Device solver, batched, in the dtype of its input.

  The choice on GPUs and TPUs. A problem stops when its duality gap, relative to
  the moved mass times the range of its costs, is below `tolerance`, or when
  rounding stops its progress; its neighbors in the batch go on. The best flow
  met is rounded to exact marginals and the potentials are completed to feasible
  ones, so that `Plan.gap` bounds the value's error however it ended, and
  `Plan.converged` says if that is small (not: if `tolerance` was reached).

  Attributes:
    tolerance: relative duality gap; None is 1e-7 in float32, 1e-10 in float64.
    max_steps: bound on the iterations.
    kernel: whether a GPU solves each problem in one program of its own, see
      `kernel`. None: where it can, an NVIDIA GPU of compute capability 8.0 or
      more, for problems in float32 of up to 63 nodes. True: for these problems
      everywhere, elsewhere by an interpreter, slowly. False: nowhere; programs
      for `jax.export` of fixed sizes need that, if made on such a machine.

  Raises:
    ValueError: tolerance is not positive, or max_steps is below 1; or, when
      called, kernel is True and the problems are not the kernel's.
  """

  tolerance: float | None = None
  max_steps: int = 60
  kernel: bool | None = None

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
    batch, (n, m) = cost.shape[:-2], cost.shape[-2:]
    double = cost.dtype == jnp.float64
    rules = Rules(
      tolerance=self.tolerance or (1e-10 if double else 1e-7),
      max_steps=self.max_steps,
      proximal=1e-12 if double else 1e-6,
      leak=1e-9 if double else 1e-3,
    )
    flat = cost.reshape(-1, n, m), a.reshape(-1, n), b.reshape(-1, m)
    solve = _chosen(flat[0], rules, self.kernel)
    plan = solve(*flat)
    return problem.Plan(*(x.reshape(*batch, *x.shape[1:]) for x in plan))


def _chosen(cost, rules: Rules, wanted: bool | None):
  """What solves problems like cost [B, n, m]; see `InteriorPoint.kernel`."""
  fits = interior_point_gpu.fits(cost)
  if wanted and not fits:
    raise ValueError(
      "kernel is True, but it takes float32 and up to "
      f"{interior_point_gpu.MOST_NODES} nodes a side; "
      f"cost has shape {cost.shape} and dtype {cost.dtype}"
    )
  in_blocks = functools.partial(_in_blocks, rules=rules)
  if wanted is False or not fits or 0 in cost.shape:
    return in_blocks
  on_chip = functools.partial(interior_point_gpu.solve, rules=rules)
  interpreted = _merging(functools.partial(on_chip, interpret=True))
  elsewhere = interpreted if wanted else in_blocks
  if not interior_point_gpu.at_home():
    return elsewhere
  return functools.partial(
    lax.platform_dependent, cuda=_merging(on_chip), default=elsewhere
  )


def _merging(solve):
  """`solve` of arrays with one batch dimension, which is all `jax.vmap` adds: a
  GPU's grid has three, of which two are short.

  Not for problems side by side in blocks: with other blocks XLA rounds
  otherwise, and numbers would depend on how many devices share the episodes.
  """
  whole = jax.custom_batching.custom_vmap(solve)

  @whole.def_vmap
  def _(size, mapped, *arguments):
    def merge(x, is_mapped):
      if not is_mapped:
        x = jnp.broadcast_to(x, (size, *x.shape))
      return x.reshape(size * x.shape[1], *x.shape[2:])

    plan = whole(*map(merge, arguments, mapped))
    parts = (x.reshape(size, len(x) // size, *x.shape[1:]) for x in plan)
    return problem.Plan(*parts), problem.Plan(*[True] * len(plan))

  return whole


def _in_blocks(cost, a, b, rules):
  """The plan of cost [B, n, m], a [B, n], b [B, m], problems side by side."""
  standard = problem.standardize(*problem.batch_last(cost, a, b))
  flow, f, g, steps = _solve(*standard[:4], rules)
  flow = problem.rounded(flow, standard.a, standard.b)
  plan = problem.finish(standard, flow, f, g, steps, dtype=cost.dtype)
  return problem.batch_first(plan, cost.shape[:1])


def _solve(cost, a, b, moved, rules):
  """Flow [n, m, B], potentials [n, B] and [m, B], and steps [B]."""
  n, m, count = cost.shape
  if m > n:  # columns are what costs: let them be the shorter side
    flow, g, f, steps = _solve(cost.swapaxes(0, 1), b, a, moved, rules)
    return flow.swapaxes(0, 1), f, g, steps
  swap = resistor_network.heaviest_last(b)
  blocks, lanes = _blocks(count)
  spare = blocks * lanes - count

  def split(x):  # [..., B] -> [blocks, ..., lanes], the last problem repeated
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)], mode="edge")
    return jnp.moveaxis(x.reshape(*x.shape[:-1], blocks, lanes), -2, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], blocks * lanes)[..., :count]

  iterate = together = functools.partial(_iterate, rules=rules)
  if not export.is_symbolic_dim(count) and blocks > _GROUP:
    iterate = functools.partial(
      lax.platform_dependent,
      cpu=functools.partial(_group_by_group, together),
      default=together,
    )
  arguments = map(split, (swap(cost), a, swap(b), moved))
  flow, f, g, steps = map(join, iterate(*arguments))
  return swap(flow), f, swap(g), steps


def _group_by_group(iterate, *arguments):
  """`iterate` of some blocks at a time, each group until it is done."""
  blocks = len(arguments[0])
  groups = -(-blocks // _GROUP)

  def split(x):  # the last block repeated
    spare = [(0, groups * _GROUP - blocks)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, spare, mode="edge").reshape(groups, _GROUP, *x.shape[1:])

  found = lax.map(lambda group: iterate(*group), tuple(map(split, arguments)))
  return tuple(x.reshape(-1, *x.shape[2:])[:blocks] for x in found)


def _blocks(count):
  """How many blocks of problems, of how many each."""
  if export.is_symbolic_dim(count):  # a program for any number of problems
    return (count + _LANES - 1) // _LANES, _LANES
  blocks = max(1, -(-count // _LANES))
  return blocks, -(-count // (8 * blocks)) * 8


class _Given(NamedTuple):
  """What stays the same over the steps.

  Attributes:
    a: [n, B], row sums.
    b: [m, B], column sums.
    moved: [B], the mass without dummies.
    weight: [n, m, B], the cells' shares of the gap on the central path.
    ones: [max(n, m), B]; see `network.stored`.
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
    idle: [B], steps in a row without progress, near the end.
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


def _iterate(cost, a, b, moved, rules):
  """Steps until all problems are done; blocks of problems in front.

  Nodes without mass have no flow, hence no conductance, and drop out.
  """
  given, state = jax.vmap(_start)(cost, a, b, moved)
  step = jax.vmap(functools.partial(_step, rules=rules))

  def unfinished(carry):
    count, state = carry
    return (count < rules.max_steps) & ~state.done.all()

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
    ones=resistor_network.ones(a, len(b)),
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


def _step(state: _State, given: _Given, *, rules: Rules) -> _State:
  """One predictor-corrector step."""
  a, b, moved, weight, ones = given
  flow, slack = state.flow, state.slack
  epsilon = float(jnp.finfo(flow.dtype).eps)
  conductance = 1 / (slack / flow + rules.proximal)
  leak_a, leak_b = rules.leak * a, rules.leak * b
  mesh = resistor_network.eliminate(conductance, leak_a, leak_b, ones)
  wrong_a, wrong_b = (
    a - resistor_network.summed(flow, 1),
    b - resistor_network.summed(flow, 0),
  )

  def direction(target, solves):
    """Changes of flow, slack, f and g that make good what is wrong."""
    change, u, v = target, 0 * a, 0 * b
    for _ in range(solves):
      more_u, more_v = resistor_network.potentials(
        mesh,
        resistor_network.stored(
          wrong_a - resistor_network.summed(change, 1), ones
        ),
        resistor_network.stored(
          wrong_b - resistor_network.summed(change, 0), ones
        ),
        ones,
      )
      change = change + conductance * (more_u[:, None] + more_v)
      u, v = u + more_u, v + more_v
    fall = jnp.where(flow > 0, -(u[:, None] + v), 0)
    return change, fall, u, v

  gap = resistor_network.stored(
    resistor_network.summed(resistor_network.summed(flow * slack, 0), 0), ones
  )
  change, fall, _, _ = direction(-conductance * slack, 1)
  primal, dual = (
    resistor_network.reach(flow, change),
    resistor_network.reach(slack, fall),
  )
  ahead = (flow + primal * change) * (slack + dual * fall)
  centring = (
    resistor_network.summed(resistor_network.summed(ahead, 0), 0) / gap
  ) ** 3
  aim = (
    resistor_network.stored(centring * gap, ones) * weight
    - resistor_network.stored(primal * dual, ones) * change * fall
  )
  target = jnp.where(flow > 0, conductance * (aim / flow - slack), 0)
  # The second solve refines: it brings back the digits that float32 lost.
  change, fall, u, v = direction(target, 2)
  primal = jnp.minimum(1, rules.backoff * resistor_network.reach(flow, change))
  dual = jnp.minimum(1, rules.backoff * resistor_network.reach(slack, fall))
  now = flow + primal * change, state.f + dual * u, state.g + dual * v
  flow, slack = now[0], slack + dual * fall

  gap = resistor_network.stored(
    resistor_network.summed(resistor_network.summed(flow * slack, 0), 0), ones
  )
  wrong = abs(a - resistor_network.summed(flow, 1)).sum(0) + abs(
    b - resistor_network.summed(flow, 0)
  ).sum(0)
  left = gap + wrong  # what the marginals lack has to be moved, too
  healthy = jnp.isfinite(left + now[1].sum(0) + now[2].sum(0))
  moves = healthy & ~state.done
  better = moves & (left < state.left)
  rests = (left > 0.9 * state.left) & (left < rules.near * moved)
  idle = jnp.where(rests, state.idle + 1, 0)
  rounding = 4 * epsilon * (moved + b.sum(0))
  little = rules.tolerance * moved
  close = (gap <= little) & (wrong <= little + rounding)
  moves, better = (
    resistor_network.stored(jnp.where(x, 1.0, 0.0).astype(flow.dtype), ones) > 0
    for x in (moves, better)
  )
  old = state.flow, state.slack, state.f, state.g
  return _State(
    *_pick(moves, (flow, slack, *now[1:]), old),
    left=jnp.where(better, left, state.left),
    best=_pick(better, now, state.best),
    idle=idle,
    steps=state.steps + moves,
    done=state.done | ~healthy | close | (idle >= rules.patience),
  )


def _pick(condition, new, old):
  return tuple(jnp.where(condition, *xy) for xy in zip(new, old, strict=True))
