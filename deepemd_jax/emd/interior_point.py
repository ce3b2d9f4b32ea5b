"""Exact transport on any device: a primal-dual interior point method.

Mehrotra's predictor-corrector on the transport polytope. This module says how
problems are spread over the device; `interior_point_step` has the method
itself, and `interior_point_gpu` the same method as one GPU kernel.

`interior_point_dense` has it for large ones. `refinement` solves again, in
smaller units, what is not exact enough yet.

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

_BLOCK = 64  # problems side by side: their arrays fit a CPU core's cache
_GROUP = 6  # blocks that advance together on a CPU, to stay in its caches


@dataclasses.dataclass(frozen=True)
class InteriorPoint:
  """An exact solver on the device, batched, in the dtype of its input.

  Choose it on GPUs and TPUs. A problem stops when its duality gap, relative to
  the moved mass times the range of its costs, is below `tolerance`, or when
  rounding stops its progress; its neighbors in the batch go on. If it pays so
  little that this is not enough (see `Plan.converged`), it is solved again with
  what is left of its costs, in a smaller unit; `Plan.steps` counts all. So
  costs may differ by any order of magnitude, and +inf forbids a pair. The flow
  is then rounded to exact marginals, and the potentials are completed to
  feasible ones. So `Plan.gap` bounds the value's error however the solver
  ended. `Plan.converged` says whether that bound is small, not whether
  `tolerance` was reached.

  Attributes:
    tolerance: relative duality gap; None is 1e-7 in float32, 1e-10 in float64.
    max_steps: bound on the iterations of a round.
    kernel: whether a GPU solves each problem in a program of its own, see
      `interior_point_gpu`. None: where it can, that is on an NVIDIA GPU of
      compute capability 8.0 or more, for float32 problems of up to 63 nodes.
      True: for these problems on every device; other devices interpret the
      kernel, slowly. False: nowhere. Programs of fixed sizes for `jax.export`
      need False if they are made on such a GPU.

  Raises:
    ValueError: tolerance is not positive, or max_steps is below 1. When called:
      kernel is True and the problems do not fit the kernel.
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
      a: [..., n].
      b: [..., m].
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
  """The function that solves problems like cost [B, n, m].

  `kernel` is as in `InteriorPoint`.
  """
  fits = interior_point_gpu.fits(cost)
  if kernel and not fits:
    raise ValueError(
      "kernel is True, but it takes float32 and up to "
      f"{interior_point_gpu.MOST_NODES} nodes a side; "
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
  """`solve` of arrays with one batch dimension; `jax.vmap` makes it longer.

  Without this, each `jax.vmap` would add a dimension to the GPU's grid. A grid
  has three, two of which are short.

  Not for `_solve_in_blocks`: XLA rounds differently in blocks of another size,
  and numbers would depend on how many devices share the episodes.
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
  """The plan of cost [B, n, m], a [B, n], b [B, m]; batch first."""
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
  """Flow [n, m, B], potentials [n, B] and [m, B], and steps [B]."""
  n, m, count = cost.shape
  if m > n:  # time grows with the columns: let them be the shorter side
    transposed = cost.swapaxes(0, 1), b, a, moved_mass, leak
    flow, g, f, steps = _iterate_in_blocks(*transposed, options=options)
    return flow.swapaxes(0, 1), f, g, steps
  swap = resistor_network.heaviest_last(b)
  blocks, size = _blocks(count)
  spare = blocks * size - count

  def split(x):  # [..., B] -> [blocks, ..., size], the last problem repeated
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
  """`iterate` of a few blocks at a time, each group until it is done."""
  blocks = len(arguments[0])
  groups = -(-blocks // _GROUP)

  def split(x):  # the last block repeated
    spare = [(0, groups * _GROUP - blocks)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, spare, mode="edge").reshape(groups, _GROUP, *x.shape[1:])

  outputs = lax.map(lambda group: iterate(*group), tuple(map(split, arguments)))
  return tuple(x.reshape(-1, *x.shape[2:])[:blocks] for x in outputs)


def _blocks(count):
  """How many blocks of problems there are, and how many problems each has."""
  if export.is_symbolic_dim(count):  # a program for any number of problems
    return (count + _BLOCK - 1) // _BLOCK, _BLOCK
  blocks = max(1, -(-count // _BLOCK))
  return blocks, -(-count // (8 * blocks)) * 8
