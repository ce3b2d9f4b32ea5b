"""The interior point method as one GPU kernel, with one program per problem.

The steps are those of `interior_point_step`, whose comments explain them.
There each operation runs over all problems and goes through memory. Here a
problem stays in the registers of a multiprocessor from its costs to its
certificate, and stops independently of the others.

Pallas lowers the kernel through Triton, which needs an NVIDIA GPU of compute
capability 8.0 or more. (Pallas's other backend, Mosaic GPU, needs 9.0 and lays
arrays out for matrix units, for which these matrices are too small.) On other
devices Pallas can interpret the kernel, slowly; the tests do that.
"""

import functools

import jax
import jax.numpy as jnp
from jax import export, lax

from deepemd_jax.emd import interior_point_single, problem, refinement
from deepemd_jax.emd.interior_point_step import Options

_SMALLEST_TILE = 16  # nodes a side, the minimum of Triton's matrix products
_LARGEST_TILE = 64  # the cells of a larger tile would not fit the registers
MOST_NODES = _LARGEST_TILE - 1  # one is the dummy
_TINY = 1e-30  # the smallest divisor
_CAPABILITY = 8.0  # the compute capability that Triton needs
_ROWS_A_WARP = 16  # rows of a tile for 32 threads; the fastest on an H200


def fits(cost) -> bool:
  """Tells whether the kernel can solve problems like cost [B, n, m]."""
  return (
    cost.dtype == jnp.float32
    and not export.is_symbolic_dim(cost.shape[0])
    and max(cost.shape[1:]) <= MOST_NODES
  )


@functools.cache
def is_available() -> bool:
  """Tells whether this process has a GPU that can run the kernel."""
  device = jax.local_devices()[0]
  try:  # an AMD GPU has a name in place of a number
    capability = float(getattr(device, "compute_capability", "none"))
  except ValueError:
    return False
  return device.platform == "gpu" and capability >= _CAPABILITY


def solve(cost, a, b, options: Options, interpret=False) -> problem.Plan:
  """Solves transport problems exactly, with one program for each.

  Args:
    cost: [B, n, m] float32; see `fits`.
    a: [B, n].
    b: [B, m].
    options: tolerance, steps and the strengths of the proximal terms.
    interpret: whether to use Pallas's interpreter, which runs on any device.

  Returns:
    The plan, batch first.
  """
  count, n, m = cost.shape
  rows, columns = _tile(n), _tile(m)

  def pad(x, *sizes):  # pads x to a tile
    spare = [(0, s - k) for s, k in zip(sizes, x.shape[1:], strict=True)]
    return jnp.pad(x, [(0, 0), *spare])

  call = _pallas_call(
    functools.partial(_kernel, n=n, m=m, options=options),
    count,
    rows,
    columns,
    # The plan varies over the devices of a shard_map as the inputs do.
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
  """Returns a function from tiles [B, N, M], [B, N], [B, M] to a `Plan`."""
  # Imported here, because most machines do not need it, and it loads slowly.
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  def one(*sizes):  # each program gets one problem of the batch
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
    out_specs=problem.tree_like_plan(
      one(*sides), one(rows), one(columns), one(), one(), one(), one()
    ),
    out_shape=problem.tree_like_plan(
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
  """Returns the number of nodes and a dummy, rounded up to a power of two."""
  return max(_SMALLEST_TILE, 1 << nodes.bit_length())


def _kernel(
  cost, a, b, flow, f, g, gap, residual, steps, converged, *, n, m, options
):
  """Solves one problem. Arguments are references to [N, M], [N], [M] or []."""
  outputs = problem.Plan(flow, f, g, gap, residual, steps, converged)
  plan = _solve(cost[...], a[...], b[...], n=n, m=m, options=options)
  plan = plan._replace(converged=jnp.where(plan.converged, 1, 0))
  for output, value in zip(outputs, plan, strict=True):
    output[...] = value.astype(output.dtype)


def _solve(cost, a, b, *, n, m, options) -> problem.Plan:
  """Solves a tile, of which the first n rows and m columns count."""
  scaled = problem.scale_padded_problem(cost, a, b, n, m, may_forbid=True)

  def iterate(cost, a, b, moved_mass, leak):
    if m <= n:
      return _iterate(cost, a, b, moved_mass, leak, m, options)
    # Columns cost more time than rows, so they become the shorter side.
    flow, g, f, steps = _iterate(cost.T, b, a, moved_mass, leak, n, options)
    return flow.T, f, g, steps

  return refinement.solve(scaled, iterate, n, m, cost.dtype)


def _iterate(cost, a, b, moved_mass, leak, m, options):
  """Runs `interior_point_single.iterate` with m columns and a dummy."""
  # Columns are eliminated in this order. The heaviest is last, as the ground.
  rank = lax.iota(jnp.int32, len(b))
  rank = jnp.where(rank == jnp.argmax(b), len(b), rank)
  return interior_point_single.iterate(
    cost,
    a,
    b,
    moved_mass,
    leak,
    eliminate=functools.partial(_eliminate, rank=rank, m=m),
    potentials=_potentials,
    options=options,
  )


def _eliminate(conductance, leak_a, leak_b, *, rank, m):
  """Does what `resistor_network.eliminate` does.

  The mesh row of an eliminated column keeps the values that it had before the
  elimination, not divided by the total of the column.

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

  def eliminate(k, state):  # has no effect for the ground
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
