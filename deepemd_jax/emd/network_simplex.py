"""Exact transport on a CPU: the network simplex, ours or POT's.

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

_MAX_PIVOTS = 1_000_000  # never reached; it ends what would not end


@dataclasses.dataclass(frozen=True)
class NetworkSimplex:
  """An exact solver on the host, in float64 whatever the dtype of its input.

  Choose it on a CPU. It is native code that XLA calls by itself, if that has
  been compiled (see `emd.native`), and else POT's, in a Python callback. On an
  accelerator every call moves the problems to the host and the plans back, and
  the code is POT's. Under plain `jit` with several devices JAX gathers the
  batch onto each; put the call into `jax.shard_map`.

  Attributes:
    threads: at most so many problems are solved at a time; None is one thread
      per CPU core that this process may use.
    native: True takes the native code and False POT's; None takes the native
      one where it is there.

  Raises:
    ValueError: threads is below 1; native is True, and the code has not been
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
    # More than all arcs of a cycle cost: a forbidden pair is used only if there
    # is no other way.
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
  """The problem without meaning where a flow uses forbidden pairs, for more
  than the rounding of the masses of their nodes; and the flow without them."""
  forbidden = scaled.above == jnp.inf
  inexact = min(sum(flow.shape[:2]) * float(jnp.finfo(dtype).eps), 1e-3)
  less = jnp.minimum(scaled.a[:, None], scaled.b)
  impossible = (forbidden & (flow > inexact * less)).any((0, 1))
  scaled = scaled._replace(valid=scaled.valid & ~impossible)
  return scaled, jnp.where(forbidden, 0, flow)


def _cpu_cores() -> int:
  """How many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):  # knows a batch system's or container's
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@functools.cache
def _pool(threads: int, process: int) -> concurrent.futures.Executor:
  """Threads that wait for work; starting them costs as much as ten problems.

  `process` is the process's id: a fork has none of its parent's threads.
  """
  del process
  return concurrent.futures.ThreadPoolExecutor(threads)


@functools.cache
def _batch_solver(threads: int):
  """`_solve_batch`; the same object for the same number, so that JAX compiles a
  program with it once."""
  return functools.partial(_solve_batch, threads=threads)


def _solve_batch(cost, a, b, *, threads):
  """Runs on the host.

  Args:
    cost: [..., n, m], >= 0, which POT takes for granted.
    a: [..., n].
    b: [..., m].
    threads: at most so many problems are solved at a time.

  Returns:
    Flow [..., n, m], potentials [..., n] and [..., m], in cost's dtype.
  """
  # Here, not at the top: only this solver needs POT, and only when it runs.
  from ot.lp.emd_wrap import emd_c

  dtype, shapes = cost.dtype, [np.shape(x) for x in (cost, a, b)]
  costs = _to_float64(cost, 2)
  sources, targets = _to_float64(a, 1), _to_float64(b, 1)
  targets *= sources.sum(1, keepdims=True) / targets.sum(1, keepdims=True)
  flow, f, g = (np.empty_like(x) for x in (costs, sources, targets))

  # Problems take different times: each thread takes the next one when it is
  # ready for it.
  waiting = iter(range(len(costs)))

  def work():
    # The compiled core releases the interpreter lock.
    for i in waiting:
      flow[i], _, f[i], g[i], _ = emd_c(
        sources[i], targets[i], costs[i], _MAX_PIVOTS, 1
      )

  others = min(threads, len(costs)) - 1
  helpers = []
  # Python starts no threads once its main thread has ended. That may be before
  # the last call.
  with contextlib.suppress(RuntimeError):
    for _ in range(others):
      helpers.append(_pool(others, os.getpid()).submit(work))
  work()
  for helper in helpers:
    # A helper that has not begun, behind another batch, has nothing left to do.
    if not helper.cancel():
      helper.result()
  return [
    x.astype(dtype, copy=False).reshape(shape)
    for x, shape in zip((flow, f, g), shapes, strict=True)
  ]


def _to_float64(x, dimensions: int) -> np.ndarray:
  """A copy of x in float64, with one batch dimension."""
  x = np.asarray(x)
  return np.array(x.reshape(-1, *x.shape[-dimensions:]), np.float64, order="C")
