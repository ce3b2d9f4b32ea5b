"""The interior point method as one GPU kernel: one program a problem.

The steps are those of `interior_point_step`, whose comments explain them.
There each operation runs over all problems and goes through memory. Here a
problem stays in the registers of a multiprocessor from its costs to its
certificate, and stops by itself.

Pallas lowers the kernel through Triton, which needs an NVIDIA GPU of compute
capability 8.0 or more. (Pallas's other backend, Mosaic GPU, needs 9.0 and lays
arrays out for matrix units. These matrices are too small for those.) On other
devices Pallas can interpret the kernel, slowly; the tests do that.
"""

import functools

import jax
import jax.numpy as jnp
from jax import export, lax

from deepemd_jax.emd import certificate, problem
from deepemd_jax.emd.interior_point_step import Options

_SMALLEST_TILE = 16  # nodes a side: Triton's matrix products take no less
_LARGEST_TILE = 64  # the cells of a larger one would not fit the registers
MOST_NODES = _LARGEST_TILE - 1  # one is the dummy
_FAR = 1e30  # slack of a cell that must not bound a step
_TINY = 1e-30  # the smallest divisor
_CAPABILITY = 8.0  # what Triton needs
_ROWS_A_WARP = 16  # of a tile, to 32 threads: fastest on an H200


def fits(cost) -> bool:
  """Whether the kernel can solve problems like cost [B, n, m]."""
  return (
    cost.dtype == jnp.float32
    and not export.is_symbolic_dim(cost.shape[0])
    and max(cost.shape[1:]) <= MOST_NODES
  )


@functools.cache
def is_available() -> bool:
  """Whether this process has a GPU that runs the kernel."""
  device = jax.local_devices()[0]
  try:  # an AMD GPU has a name in place of a number
    capability = float(getattr(device, "compute_capability", "none"))
  except ValueError:
    return False
  return device.platform == "gpu" and capability >= _CAPABILITY


def solve(cost, a, b, options: Options, interpret=False) -> problem.Plan:
  """Exact transport, one program for each problem.

  Args:
    cost: [B, n, m] float32; see `fits`.
    a: [B, n].
    b: [B, m].
    options: tolerance, steps and the strengths of the proximal terms.
    interpret: run by Pallas's interpreter, on any device.

  Returns:
    The plan, batch first.
  """
  count, n, m = cost.shape
  rows, columns = _tile(n), _tile(m)

  def pad(x, *sizes):  # to a tile
    spare = [(0, s - k) for s, k in zip(sizes, x.shape[1:], strict=True)]
    return jnp.pad(x, [(0, 0), *spare])

  call = _pallas_call(
    functools.partial(_kernel, n=n, m=m, options=options),
    count,
    rows,
    columns,
    # Whatever varies over the devices of a shard_map.
    varying=jax.typeof(cost[0, 0, 0] + a[0, 0] + b[0, 0]).manual_axis_type,
    interpret=interpret,
  )
  plan = call(pad(cost, rows, columns), pad(a, rows), pad(b, columns))
  return plan._replace(
    flow=plan.flow[:, :n, :m],
    f=plan.f[:, :n],
    g=plan.g[:, :m],
    converged=plan.converged > 0,
  )


def _pallas_call(kernel, count, rows, columns, *, varying, interpret):
  """A function of tiles: [B, N, M], [B, N], [B, M] -> a `Plan`."""
  # Here, not at the top: most machines do not need it, and it loads slowly.
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  def one(*sizes):  # of the batch, for each program
    return pl.BlockSpec((None, *sizes), lambda i: (i,) + (0,) * len(sizes))

  def batch(dtype, *sizes):
    return jax.ShapeDtypeStruct(
      (count, *sizes), dtype, manual_axis_type=varying
    )

  sides = rows, columns
  return pl.pallas_call(
    kernel,
    grid=(count,),
    in_specs=[one(*sides), one(rows), one(columns)],
    out_specs=problem.Plan(
      one(*sides), one(rows), one(columns), one(), one(), one(), one()
    ),
    out_shape=problem.Plan(
      flow=batch(jnp.float32, *sides),
      f=batch(jnp.float32, rows),
      g=batch(jnp.float32, columns),
      gap=batch(jnp.float32),
      residual=batch(jnp.float32),
      steps=batch(jnp.int32),
      converged=batch(jnp.int32),
    ),
    compiler_params=triton.CompilerParams(
      num_warps=max(sides) // _ROWS_A_WARP, num_stages=1
    ),
    interpret=interpret,
    name="emd_interior_point",
  )


def _tile(nodes: int) -> int:
  """The nodes and a dummy, filled up to a power of two."""
  return max(_SMALLEST_TILE, 1 << nodes.bit_length())


def _kernel(
  cost, a, b, flow, f, g, gap, residual, steps, converged, *, n, m, options
):
  """References to one problem's arrays: [N, M], [N], [M] or []."""
  outputs = problem.Plan(flow, f, g, gap, residual, steps, converged)
  plan = _solve(cost[...], a[...], b[...], n=n, m=m, options=options)
  plan = plan._replace(converged=jnp.where(plan.converged, 1, 0))
  for output, value in zip(outputs, plan, strict=True):
    output[...] = value.astype(output.dtype)


def _solve(cost, a, b, *, n, m, options) -> problem.Plan:
  """The plan of a tile, of which the first n rows and m columns count."""
  scaled = problem.scale_padded_problem(cost, a, b, n, m)
  cost, a, b, moved_mass = scaled[:4]
  if m <= n:
    flow, f, g, steps = _iterate(cost, a, b, moved_mass, m, options)
  else:  # time grows with the columns: let them be the shorter side
    flow, g, f, steps = _iterate(cost.T, b, a, moved_mass, n, options)
    flow = flow.T
  flow = certificate.round_to_marginals(flow, a, b)
  return certificate.certify_padded(scaled, flow, f, g, steps, n, m, cost.dtype)


def _iterate(cost, a, b, moved_mass, m, options):
  """Flow [N, M], potentials [N] and [M], and steps of one problem.

  m is the number of columns that count, besides a dummy.
  """
  flow = a[:, None] * b / a.sum()
  f = cost.min(1) - 0.1
  g = (cost - f[:, None]).min(0) - 0.1
  # Nodes without mass move nothing and have no say: their slacks are too large
  # to bound a step.
  empty = (a[:, None] <= 0) | (b <= 0)
  slack = jnp.where(empty, _FAR, cost - f[:, None] - g)
  root_a, root_b = jnp.sqrt(a), jnp.sqrt(b)
  weights = root_a / root_a.sum(), root_b / root_b.sum()
  # The order in which columns are eliminated: the heaviest last, as the ground.
  rank = lax.iota(jnp.int32, len(b))
  rank = jnp.where(rank == jnp.argmax(b), len(b), rank)
  step = functools.partial(
    _step, constants=(a, b, moved_mass, *weights, rank), m=m, options=options
  )
  wrong = _wrong(flow, slack, a, b)

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
  state = flow, slack, f, g, wrong, [flow, f, g]
  state = *state, moved_mass + jnp.inf, zero, zero, zero
  *_, best, _, _, steps, _ = lax.while_loop(unfinished, advance, state)
  return *best, steps


def _wrong(flow, slack, a, b):
  """The gap [], and what rows [N] and columns [M] lack."""
  return (flow * slack).sum(), a - flow.sum(1), b - flow.sum(0)


def _step(flow, slack, f, g, gap, wrong_a, wrong_b, *, constants, m, options):
  """One predictor-corrector step.

  Returns:
    The next flow, slack, f and g; what is wrong with them, see `_wrong`; how
    much is left to do; whether that is little enough to stop.
  """
  a, b, moved_mass, weight_a, weight_b, rank = constants
  # give * flow is the conductance, 1 / (slack / flow + proximal).
  give = 1 / (slack + options.proximal * flow)
  conductance = give * flow
  leaks = options.leak * a, options.leak * b
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
  left = gap + wrong + 0 * (f.sum() + g.sum())  # NaN, if one of these is
  little = options.tolerance * moved_mass
  rounding = 4 * float(jnp.finfo(flow.dtype).eps) * (moved_mass + b.sum())
  close = (gap <= little) & (wrong <= little + rounding)
  return (flow, slack, f, g), (gap, wrong_a, wrong_b), left, close


def _eliminate(conductance, leak_a, leak_b, rank, m):
  """Does what `resistor_network.eliminate` does.

  A column's row of the mesh stays as it was when the column's turn came, not
  yet divided by the column's total.

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

  def eliminate(k, state):  # does nothing when it is the ground's turn
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
  """Does what `resistor_network.potentials` does."""
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
