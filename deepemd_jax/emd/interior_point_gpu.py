"""The interior point method as one GPU kernel: a problem each program.

The steps are those of `interior_point`, which says why they are as they are.
There each operation runs over all problems and goes through memory; here a
problem stays in the registers of a multiprocessor from its costs to its
certificate, and stops by itself.

Pallas lowers it through Triton, which needs an NVIDIA GPU of compute capability
8.0 or more. (Pallas's other backend, Mosaic GPU, needs 9.0 and lays arrays out
for matrix units, which these matrices are too small for.) Elsewhere Pallas can
interpret it, slowly: so it is tested.
"""

import functools

import jax
import jax.numpy as jnp
from jax import export, lax

from deepemd_jax.emd import problem

_LEAST = 16  # side of a tile: Triton's matrix products take no less
_MOST = 64  # of more the cells would not fit the registers
MOST_NODES = _MOST - 1  # one is the dummy
_FAR, _TINY = 1e30, 1e-30  # of slacks; of what is divided by
_CAPABILITY = 8.0  # what Triton needs
_WARP = 16  # rows of a tile to each warp of 32 threads: fastest on an H200


def fits(cost) -> bool:
  """Whether the kernel takes such problems: cost [B, n, m]."""
  return (
    cost.dtype == jnp.float32
    and not export.is_symbolic_dim(cost.shape[0])
    and max(cost.shape[1:]) <= MOST_NODES
  )


@functools.cache
def at_home() -> bool:
  """Whether this process has a GPU that runs the kernel."""
  device = jax.local_devices()[0]
  try:  # AMD's have a name there
    capability = float(getattr(device, "compute_capability", "none"))
  except ValueError:
    return False
  return device.platform == "gpu" and capability >= _CAPABILITY


def solve(cost, a, b, rules, interpret=False) -> problem.Plan:
  """Exact transport, a program for each problem.

  Args:
    cost: [B, n, m] float32; see `fits`.
    a: [B, n].
    b: [B, m].
    rules: `interior_point.Rules`.
    interpret: run by Pallas's interpreter, on any device.

  Returns:
    The plan, batch first.
  """
  # Here, not at the top: most machines do without, and it takes a while.
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  count, n, m = cost.shape
  sides = rows, columns = _tile(n), _tile(m)
  warps = max(sides) // _WARP
  # Whatever varies over the devices of a shard_map.
  varying = jax.typeof(cost[0, 0, 0] + a[0, 0] + b[0, 0]).manual_axis_type

  def filled(x, *sizes):  # up to a tile
    room = [(0, s - k) for s, k in zip(sizes, x.shape[1:], strict=True)]
    return jnp.pad(x, [(0, 0), *room])

  def one(*sizes):
    return pl.BlockSpec((None, *sizes), lambda i: (i,) + (0,) * len(sizes))

  def all_of(dtype, *sizes):
    return jax.ShapeDtypeStruct(
      (count, *sizes), dtype, manual_axis_type=varying
    )

  call = pl.pallas_call(
    functools.partial(_kernel, n=n, m=m, rules=rules),
    grid=(count,),
    in_specs=[one(*sides), one(rows), one(columns)],
    out_specs=problem.Plan(
      one(*sides), one(rows), one(columns), one(), one(), one(), one()
    ),
    out_shape=problem.Plan(
      flow=all_of(cost.dtype, *sides),
      f=all_of(cost.dtype, rows),
      g=all_of(cost.dtype, columns),
      gap=all_of(cost.dtype),
      residual=all_of(cost.dtype),
      steps=all_of(jnp.int32),
      converged=all_of(jnp.int32),
    ),
    compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
    interpret=interpret,
    name="emd_interior_point",
  )
  plan = call(filled(cost, *sides), filled(a, rows), filled(b, columns))
  return plan._replace(
    flow=plan.flow[:, :n, :m],
    f=plan.f[:, :n],
    g=plan.g[:, :m],
    converged=plan.converged > 0,
  )


def _tile(nodes: int) -> int:
  """The nodes and a dummy, filled up to a power of two."""
  return max(_LEAST, 1 << nodes.bit_length())


def _kernel(cost, a, b, flow, f, g, gap, residual, steps, converged, **options):
  """All are references to what is one problem's: [N, M], [N], [M] or []."""
  refs = problem.Plan(flow, f, g, gap, residual, steps, converged)
  plan = _solve(cost[...], a[...], b[...], **options)
  plan = plan._replace(converged=jnp.where(plan.converged, 1, 0))
  for ref, value in zip(refs, plan, strict=True):
    ref[...] = value.astype(ref.dtype)


def _solve(cost, a, b, *, n, m, rules) -> problem.Plan:
  """The plan of a tile, of which the first n rows and m columns count."""
  standard = problem.standard_within(cost, a, b, n, m)
  cost, a, b, moved = standard[:4]
  if m <= n:
    flow, f, g, steps = _iterate(cost, a, b, moved, m, rules)
  else:  # columns are what costs: let them be the shorter side
    flow, g, f, steps = _iterate(cost.T, b, a, moved, n, rules)
    flow = flow.T
  flow = problem.rounded(flow, a, b)
  return problem.certified(standard, flow, f, g, steps, n, m, cost.dtype)


def _iterate(cost, a, b, moved, m, rules):
  """Flow [N, M], potentials [N] and [M], steps; of m columns and a dummy."""
  flow = a[:, None] * b / a.sum()
  f = cost.min(1) - 0.1
  g = (cost - f[:, None]).min(0) - 0.1
  # Nodes without mass have nothing to move and no say: no step is bounded by
  # what is far away.
  empty = (a[:, None] <= 0) | (b <= 0)
  slack = jnp.where(empty, _FAR, cost - f[:, None] - g)
  root_a, root_b = jnp.sqrt(a), jnp.sqrt(b)
  weights = root_a / root_a.sum(), root_b / root_b.sum()
  # Columns in the order of elimination: the heaviest last, as the ground.
  rank = lax.iota(jnp.int32, len(b))
  rank = jnp.where(rank == jnp.argmax(b), len(b), rank)
  step = functools.partial(
    _step, given=(a, b, moved, *weights, rank), m=m, rules=rules
  )
  wrong = _wrong(flow, slack, a, b)

  def unfinished(state):
    *_, steps, done = state
    return (steps < rules.max_steps) & (done == 0)

  def advance(state):
    *now, wrong, best, least, idle, steps, _ = state
    now, wrong, left, close = step(*now, *wrong)
    healthy = left < jnp.inf  # false for NaN
    better = left < least
    flow, _, f, g = now
    best = [
      jnp.where(better, x, y) for x, y in zip((flow, f, g), best, strict=True)
    ]
    rests = (left > 0.9 * least) & (left < rules.near * moved)
    idle = jnp.where(rests, idle + 1, 0)
    done = ~healthy | close | (idle >= rules.patience)
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
  state = flow, slack, f, g, wrong, [flow, f, g]
  state = *state, moved + jnp.inf, zero, zero, zero
  *_, best, _, _, steps, _ = lax.while_loop(unfinished, advance, state)
  return *best, steps


def _wrong(flow, slack, a, b):
  """The gap, and what rows and columns lack."""
  return (flow * slack).sum(), a - flow.sum(1), b - flow.sum(0)


def _step(flow, slack, f, g, gap, wrong_a, wrong_b, *, given, m, rules):
  """One predictor-corrector step.

  Returns:
    The next flow, slack, f and g; what is wrong with them, see `_wrong`; what
    is left to do; whether it is little.
  """
  a, b, moved, weight_a, weight_b, rank = given
  # give * flow is the conductance, 1 / (slack / flow + proximal).
  give = 1 / (slack + rules.proximal * flow)
  conductance = give * flow
  leaks = rules.leak * a, rules.leak * b
  network = _eliminate(conductance, *leaks, rank, m)

  def direction(change, solves):
    u, v = jnp.zeros_like(a), jnp.zeros_like(b)
    for _ in range(solves):
      more_u, more_v = _potentials(
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
  centring = ahead.sum() / gap
  centring = centring * centring * centring
  aim = (centring * gap) * weight_a[:, None] * weight_b
  aim = aim - (primal * dual) * change * fall
  change, fall, u, v = direction(give * aim - conductance * slack, 2)
  primal = jnp.minimum(1, rules.backoff * _reach(change * over_flow))
  dual = jnp.minimum(1, rules.backoff * _reach(fall * over_slack))
  flow, slack = flow + primal * change, slack + dual * fall
  f, g = f + dual * u, g + dual * v

  gap, wrong_a, wrong_b = _wrong(flow, slack, a, b)
  wrong = abs(wrong_a).sum() + abs(wrong_b).sum()
  left = gap + wrong + 0 * (f.sum() + g.sum())  # NaN, if one of these is
  little = rules.tolerance * moved
  rounding = 4 * float(jnp.finfo(flow.dtype).eps) * (moved + b.sum())
  close = (gap <= little) & (wrong <= little + rounding)
  return (flow, slack, f, g), (gap, wrong_a, wrong_b), left, close


def _eliminate(conductance, leak_a, leak_b, rank, m):
  """See `network.eliminate`.

  What a column spreads stays in its place as it was when the column's turn
  came, not yet divided by its total.

  Returns:
    [N], 1 / degree of the rows; [M, M], `Network.spread` times `total` of its
    columns; [M], 1 / `total`.
  """
  ground = len(rank)
  degree = conductance.sum(1) + leak_a
  part = 1 / jnp.where(degree > 0, degree, 1)
  share = conductance * part[:, None]
  mesh = lax.dot_general(
    share, conductance, (((0,), (0,)), ((), ())), precision="highest"
  )
  into_ground = (share * leak_a[:, None]).sum(0) + leak_b
  mesh = mesh + jnp.where(rank == ground, into_ground[:, None], 0)

  def eliminate(k, state):  # nothing happens when it is the ground's turn
    mesh, inverse = state
    own = (jnp.where(rank == k, 1.0, 0.0)[:, None] * mesh).sum(0)
    to_later = jnp.where(rank > k, own, 0)
    total = to_later.sum()
    over = jnp.where(total > _TINY, 1 / total, 0)
    own = jnp.where(rank == k, 0, own)
    mesh = mesh + (to_later * over)[:, None] * own
    return mesh, jnp.where(rank == k, over, inverse)

  state = mesh, jnp.zeros(rank.shape, mesh.dtype)
  mesh, inverse = lax.fori_loop(0, m + 1, eliminate, state)
  below = (rank < rank[:, None]) & (rank[:, None] < ground)
  return part, jnp.where(below, mesh, 0), inverse


def _potentials(conductance, network, into_rows, into_columns):
  """See `network.potentials`."""
  part, spread, inverse = network
  into_rows = into_rows * part
  load = (conductance * into_rows[:, None]).sum(0) - into_columns
  voltage = (load + (spread * (load * inverse)).sum(1)) * inverse
  voltage = voltage + (spread * voltage[:, None]).sum(0) * inverse
  u = into_rows + (conductance * voltage).sum(1) * part
  return u, -voltage


def _reach(rise):
  """The largest step, up to 1, that keeps 1 + step * rise >= 0."""
  return 1 / jnp.maximum(-rise.min(), 1)
