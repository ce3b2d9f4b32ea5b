"""Exact transport on a CPU by the network simplex: native code, or POT's.

References:
  Cunningham, "A network simplex method", Mathematical Programming 11, 1976.
  Bonneel, van de Panne, Paris, Heidrich, "Displacement Interpolation Using
  Lagrangian Mass Transport", SIGGRAPH Asia 2011 (POT's compiled code).
  Flamary et al., "POT: Python Optimal Transport", JMLR 22(78), 2021.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deepemd_jax.emd import certificate, problem
from deepemd_jax.emd.host_call import host_call
from deepemd_jax.emd.native import library

_MAX_PIVOTS = 1_000_000  # never reached; it would end an infinite loop


@dataclasses.dataclass(frozen=True)
class NetworkSimplex:
  """An exact solver on the host, in float64 whatever the dtype of its input.

  Choose it on a CPU. If the native code has been compiled (see `emd.native`),
  XLA calls it directly. Otherwise a Python callback calls POT's code. On an
  accelerator each call uses POT's code, and it moves the problems to the host
  and the plans back. Under plain `jit` with several devices, JAX gathers the
  whole batch on each device; put the call into `jax.shard_map` instead.

  Attributes:
    threads: the largest number of problems that are solved at a time; None is
      one thread per CPU core that this process may use.
    native: True uses the native code, and False uses POT's. None uses the
      native code if it is available.

  Raises:
    ValueError: threads is below 1, or native is True and the code has not been
      compiled.
  """

  threads: int | None = None
  native: bool | None = None
  on_host: ClassVar[bool] = True
  takes_start: ClassVar[bool] = True

  def __post_init__(self):
    if self.threads is not None and self.threads < 1:
      raise ValueError(f"threads is {self.threads}; use 1 or more, or None")
    if self.native and not library.load():
      raise ValueError(
        "native is True, but the native code has not been compiled; run "
        "python -m deepemd_jax.emd.native.build"
      )

  def __call__(
    self,
    cost: Float[Array, "*batch n m"],
    a: Float[Array, "*batch n"],
    b: Float[Array, "*batch m"],
    start: Float[Array, "*batch n m"] | None = None,
  ) -> problem.Plan:
    """Solves problems that `problem.prepare` has checked; see `emd.solve`.

    Args:
      cost: [..., n, m].
      a: [..., n].
      b: [..., m].
      start: [..., n, m], the flow of a similar problem, for a warm start.
    """
    native = library.load() if self.native is None else self.native
    if native and jax.default_backend() == "cpu":
      return self._call_native(cost, a, b, start)
    return self._call_pot(cost, a, b)

  def _call_native(self, cost, a, b, start) -> problem.Plan:
    batch, dtype = cost.shape[:-2], cost.dtype
    if start is None:
      start = jnp.zeros(0, dtype)
    like = jax.ShapeDtypeStruct
    call = jax.ffi.ffi_call(
      library.target(dtype),
      problem.tree_like_plan(
        flow=like(cost.shape, dtype),
        f=like(a.shape, dtype),
        g=like(b.shape, dtype),
        gap=like(batch, dtype),
        residual=like(batch, dtype),
        steps=like(batch, jnp.int32),
        converged=like(batch, jnp.bool_),
      ),
      vmap_method="broadcast_all",
    )
    limits = {"threads": self.threads or 0, "max_pivots": _MAX_PIVOTS}
    limits = {name: np.int64(limit) for name, limit in limits.items()}
    return problem.Plan(*call(cost, a, b, start, **limits))

  def _call_pot(self, cost, a, b) -> problem.Plan:
    batch, dtype = cost.shape[:-2], cost.dtype
    scaled = problem.scale_problem(
      *problem.batch_last(cost, a, b), may_forbid=True
    )
    unit = jnp.where(scaled.cost_range > 0, scaled.cost_range, 1)
    forbidden = scaled.above == jnp.inf
    # This is more than the cost of all other arcs of a cycle, so that a
    # forbidden pair is used only if there is no other way.
    far = problem.FORBIDDEN * sum(cost.shape[-2:])
    costs = jnp.where(forbidden, far, scaled.above / unit)
    arguments = [jnp.moveaxis(x, -1, 0) for x in (costs, scaled.a, scaled.b)]
    solution = host_call(
      _batch_solver(self.threads or _cpu_cores()),
      [jax.ShapeDtypeStruct(x.shape, dtype) for x in arguments],
      *arguments,
    )
    flow, f, g = (jnp.moveaxis(x, 0, -1) for x in solution)
    scaled, flow = _without_forbidden(scaled, flow, dtype)
    plan = certificate.certify_above(
      scaled, flow, f * unit, g * unit, jnp.where(scaled.valid, 0, 0), dtype
    )
    return problem.batch_first(plan, batch)


def _without_forbidden(scaled: problem.ScaledProblem, flow, dtype):
  """Returns the problem, and the flow without flow on forbidden pairs.

  A problem becomes invalid if such a flow is more than the rounding error of
  its nodes' masses.
  """
  forbidden = scaled.above == jnp.inf
  inexact = min(sum(flow.shape[:2]) * float(jnp.finfo(dtype).eps), 1e-3)
  less = jnp.minimum(scaled.a[:, None], scaled.b)
  impossible = (forbidden & (flow > inexact * less)).any((0, 1))
  scaled = scaled._replace(valid=scaled.valid & ~impossible)
  return scaled, jnp.where(forbidden, 0, flow)


def _cpu_cores() -> int:
  """Returns the number of CPU cores that this process may use."""
  # The affinity respects the limits of batch systems and containers.
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@functools.cache
def _pool(threads: int, process: int) -> concurrent.futures.Executor:
  """Returns threads that wait for work. Starting them takes as long as solving
  ten problems.

  `process` is the process ID, because a fork has none of its parent's threads.
  """
  del process
  return concurrent.futures.ThreadPoolExecutor(threads)


@functools.cache
def _batch_solver(threads: int):
  """Returns `_solve_batch` with a number of threads.

  It is the same object for the same number, so that JAX compiles a program with
  it once.
  """
  return functools.partial(_solve_batch, threads=threads)


def _solve_batch(cost, a, b, *, threads):
  """Solves problems on the host with POT.

  Args:
    cost: [..., n, m], >= 0, which POT does not check.
    a: [..., n].
    b: [..., m].
    threads: the largest number of problems that are solved at a time.

  Returns:
    Flow [..., n, m], potentials [..., n] and [..., m], in cost's dtype.
  """
  # Imported here, because only this solver needs POT, and only when it runs.
  from ot.lp.emd_wrap import emd_c

  dtype, shapes = cost.dtype, [np.shape(x) for x in (cost, a, b)]
  costs = _to_float64(cost, 2)
  sources, targets = _to_float64(a, 1), _to_float64(b, 1)
  targets *= sources.sum(1, keepdims=True) / targets.sum(1, keepdims=True)
  flow, f, g = (np.empty_like(x) for x in (costs, sources, targets))

  # Problems take different times, so each thread takes the next problem as soon
  # as it is free.
  waiting = iter(range(len(costs)))

  def work():
    # The compiled core releases the interpreter lock.
    for i in waiting:
      flow[i], _, f[i], g[i], _ = emd_c(
        sources[i], targets[i], costs[i], _MAX_PIVOTS, 1
      )

  others = min(threads, len(costs)) - 1
  helpers = []
  # Python starts no threads after its main thread has ended, which may be
  # before the last call.
  with contextlib.suppress(RuntimeError):
    for _ in range(others):
      helpers.append(_pool(others, os.getpid()).submit(work))
  work()
  for helper in helpers:
    # A helper that has not begun waits behind another batch, and has nothing
    # left to do.
    if not helper.cancel():
      helper.result()
  return [
    x.astype(dtype, copy=False).reshape(shape)
    for x, shape in zip((flow, f, g), shapes, strict=True)
  ]


def _to_float64(x, dimensions: int) -> np.ndarray:
  """Copies x to float64, with one batch dimension."""
  x = np.asarray(x)
  return np.array(x.reshape(-1, *x.shape[-dimensions:]), np.float64, order="C")
