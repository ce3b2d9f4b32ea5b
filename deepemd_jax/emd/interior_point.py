"""Exact transport on any device: a primal-dual interior point method.

The method is Mehrotra's predictor-corrector on the transport polytope. This
module distributes the problems over the device. `interior_point_step` has the
method itself, `interior_point_gpu` has it as one GPU kernel, and
`interior_point_dense` has it for large problems. `refinement` solves a problem
again, in smaller units, if it is not exact enough yet.

Each step costs about n m^2 + m^3 multiply-adds, and 8 to 20 steps are usual.
"""

import dataclasses
import functools

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import export, lax
from jaxtyping import Array, Float

from deepemd_jax.emd import (
  interior_point_dense,
  interior_point_gpu,
  interior_point_step,
  problem,
  refinement,
  resistor_network,
)
from deepemd_jax.emd.interior_point_step import Options

_BLOCK = 64  # problems in a block, whose arrays fit the cache of a CPU core
_GROUP = 6  # blocks that advance together on a CPU, to stay in its caches


@dataclasses.dataclass(frozen=True)
class InteriorPoint:
  """An exact, batched solver on the device, in the dtype of its input.

  Choose it on GPUs and TPUs. A problem stops when its duality gap, relative to
  the moved mass times the range of its costs, is below `tolerance`, or when
  rounding stops its progress. The other problems of the batch go on. If the
  plan costs so little that this is not enough (see `Plan.converged`), the
  problem is solved again with its slacks as costs, in a smaller unit.
  `Plan.steps` counts the steps of all these rounds. So costs may differ by any
  order of magnitude, and +inf forbids a pair. The flow is then rounded to exact
  marginals, and the potentials are completed to feasible ones. So `Plan.gap`
  bounds the error of the value however the solver ended. `Plan.converged` tells
  whether that bound is small, not whether `tolerance` was reached.

  Attributes:
    tolerance: relative duality gap; None is 1e-7 in float32, 1e-10 in float64.
    max_steps: bound on the iterations of a round.
    kernel: whether a GPU solves each problem in a program of its own; see
      `interior_point_gpu`. None does so where possible: on an NVIDIA GPU of
      compute capability 8.0 or more, for float32 problems of up to 63 nodes a
      side. True does so for these problems on every device; other devices
      interpret the kernel, slowly. False never does so. To export a program of
      fixed sizes by `jax.export` on such a GPU, use False.

  Raises:
    ValueError: tolerance is not positive, or max_steps is below 1. A call
      raises it if kernel is True and the problems do not fit the kernel.
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
    """Solves problems that `problem.prepare` has checked; see `emd.solve`.

    Args:
      cost: [..., n, m].
      a: [..., n], row masses.
      b: [..., m], column masses.
    """
    batch, (n, m) = cost.shape[:-2], cost.shape[-2:]
    double = cost.dtype == jnp.float64
    options = Options(
      tolerance=self.tolerance or (1e-10 if double else 1e-7),
      max_steps=self.max_steps,
      proximal=1e-12 if double else 1e-6,
      leak=1e-9 if double else 1e-3,
      near=1e-9 if double else 1e-4,
    )
    flat = cost.reshape(-1, n, m), a.reshape(-1, n), b.reshape(-1, m)
    solve = _implementation(flat[0], options, self.kernel)
    plan = solve(*flat)
    return problem.Plan(*(x.reshape(*batch, *x.shape[1:]) for x in plan))


def _implementation(cost, options: Options, kernel: bool | None):
  """Returns the function that solves problems like cost [B, n, m].

  `kernel` is as in `InteriorPoint`.
  """
  fits = interior_point_gpu.fits(cost)
  if kernel and not fits:
    raise ValueError(
      "kernel is True, but the kernel needs float32 and at most "
      f"{interior_point_gpu.MOST_NODES} nodes per side; "
      f"cost has shape {cost.shape} and dtype {cost.dtype}"
    )
  in_blocks = functools.partial(_solve_in_blocks, options=options)
  if kernel is False or not fits or 0 in cost.shape:
    return in_blocks
  on_gpu = functools.partial(interior_point_gpu.solve, options=options)
  interpreted = _flatten_vmaps(functools.partial(on_gpu, interpret=True))
  elsewhere = interpreted if kernel else in_blocks
  if not interior_point_gpu.is_available():
    return elsewhere
  return functools.partial(
    lax.platform_dependent, cuda=_flatten_vmaps(on_gpu), default=elsewhere
  )


def _flatten_vmaps(solve):
  """Wraps `solve` so that `jax.vmap` makes its one batch dimension longer.

  Without this, each `jax.vmap` would add a dimension to the GPU's grid. A grid
  has three dimensions, two of which are short.

  Do not wrap `_solve_in_blocks`: XLA rounds differently in blocks of another
  size, so that results would depend on how many devices share the episodes.
  """
  flattening = jax.custom_batching.custom_vmap(solve)

  @flattening.def_vmap
  def _(size, is_mapped, *arguments):
    def flatten(x, mapped):
      if not mapped:
        x = jnp.broadcast_to(x, (size, *x.shape))
      return x.reshape(size * x.shape[1], *x.shape[2:])

    plan = flattening(*map(flatten, arguments, is_mapped))
    parts = (x.reshape(size, len(x) // size, *x.shape[1:]) for x in plan)
    return problem.Plan(*parts), problem.tree_like_plan(*[True] * len(plan))

  return flattening


def _solve_in_blocks(cost, a, b, options: Options) -> problem.Plan:
  """Solves cost [B, n, m], a [B, n], b [B, m]. The plan has the batch first."""
  (n, m), dtype = cost.shape[1:], cost.dtype
  arguments = problem.batch_last(cost, a, b)
  scaled = problem.scale_problem(*arguments, may_forbid=True)
  large = max(n, m) > interior_point_gpu.MOST_NODES
  iterate = interior_point_dense.iterate if large else _iterate_in_blocks
  iterate = functools.partial(iterate, options=options)
  plan = refinement.solve(scaled, iterate, n, m, dtype)
  plan = plan._replace(flow=plan.flow[:n, :m], f=plan.f[:n], g=plan.g[:m])
  return problem.batch_first(plan, cost.shape[:1])


def _iterate_in_blocks(cost, a, b, moved_mass, leak, *, options: Options):
  """Returns flow [n, m, B], potentials [n, B] and [m, B], and steps [B]."""
  n, m, count = cost.shape
  if m > n:  # columns cost more time, so they become the shorter side
    transposed = cost.swapaxes(0, 1), b, a, moved_mass, leak
    flow, g, f, steps = _iterate_in_blocks(*transposed, options=options)
    return flow.swapaxes(0, 1), f, g, steps
  swap = resistor_network.heaviest_last(b)
  blocks, size = _blocks(count)
  spare = blocks * size - count

  def split(x):  # [..., B] -> [blocks, ..., size]; repeats the last problem
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)], mode="edge")
    return jnp.moveaxis(x.reshape(*x.shape[:-1], blocks, size), -2, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], blocks * size)[..., :count]

  iterate = functools.partial(interior_point_step.iterate, options=options)
  if not export.is_symbolic_dim(count) and blocks > _GROUP:
    iterate = functools.partial(
      lax.platform_dependent,
      cpu=functools.partial(_iterate_by_group, iterate),
      default=iterate,
    )
  arguments = map(split, (swap(cost), a, swap(b), moved_mass, leak))
  flow, f, g, steps = map(join, iterate(*arguments))
  return swap(flow), f, swap(g), steps


def _iterate_by_group(iterate, *arguments):
  """Runs `iterate` on a few blocks at a time, each group until it is done."""
  blocks = len(arguments[0])
  groups = -(-blocks // _GROUP)

  def split(x):  # repeats the last block
    spare = [(0, groups * _GROUP - blocks)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, spare, mode="edge").reshape(groups, _GROUP, *x.shape[1:])

  outputs = lax.map(lambda group: iterate(*group), tuple(map(split, arguments)))
  return tuple(x.reshape(-1, *x.shape[2:])[:blocks] for x in outputs)


def _blocks(count):
  """Returns the number of blocks and the number of problems in each."""
  if export.is_symbolic_dim(count):  # a program for any number of problems
    return (count + _BLOCK - 1) // _BLOCK, _BLOCK
  blocks = max(1, -(-count // _BLOCK))
  return blocks, -(-count // (8 * blocks)) * 8
