"""Exact transport on the host: POT's compiled network simplex.

References:
  Bonneel, van de Panne, Paris, Heidrich, "Displacement Interpolation Using
  Lagrangian Mass Transport", SIGGRAPH Asia 2011 (the compiled code).
  Flamary et al., "POT: Python Optimal Transport", JMLR 22(78), 2021.
"""

import concurrent.futures
import dataclasses
import functools
import os
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deepemd_jax.emd import certificate, problem

_MAX_PIVOTS = 1_000_000  # never reached; it ends what would not end


@dataclasses.dataclass(frozen=True)
class NetworkSimplex:
  """An exact solver on the host, in float64 whatever the dtype of its input.

  Choose it on a CPU. On an accelerator every call moves the problems to the
  host and the plans back. One callback serves a whole batch; `jax.vmap` makes
  its axis one more batch dimension. Under plain `jit` with several devices JAX
  gathers the batch onto the first; put the call into `jax.shard_map`. Several
  CPU devices of one process cannot all use it: JAX would wait for ever.

  Attributes:
    threads: at most so many problems are solved at a time; None is one thread
      per CPU core that this process may use.

  Raises:
    ValueError: threads is below 1; when called, on several CPU devices.
  """

  threads: int | None = None
  on_host: ClassVar[bool] = True

  def __post_init__(self):
    if self.threads is not None and self.threads < 1:
      raise ValueError(f"threads is {self.threads}; use 1 or more, or None")

  def __call__(
    self,
    cost: Float[Array, "*batch n m"],
    a: Float[Array, "*batch n"],
    b: Float[Array, "*batch m"],
  ) -> problem.Plan:
    """Solves problems that `problem.prepare` has checked; see `emd.solve`."""
    _check_devices()
    batch, dtype = cost.shape[:-2], cost.dtype
    scaled = problem.scale_problem(*problem.batch_last(cost, a, b))
    arguments = [jnp.moveaxis(x, -1, 0) for x in scaled[:3]]
    solution = jax.pure_callback(
      functools.partial(_solve_batch, threads=self.threads or _cpu_cores()),
      [jax.ShapeDtypeStruct(x.shape, dtype) for x in arguments],
      *arguments,
      vmap_method="broadcast_all",
    )
    flow, f, g = (jnp.moveaxis(x, 0, -1) for x in solution)
    steps = jnp.where(scaled.valid, 0, 0)
    plan = certificate.certify(scaled, flow, f, g, steps, dtype=dtype)
    return problem.batch_first(plan, batch)


def _check_devices() -> None:
  """Refuses several CPU devices of one process.

  XLA has one thread for each CPU device, and the callback keeps it busy. To
  fetch the callback's arguments JAX needs one more.
  """
  mesh, count = jax.sharding.get_abstract_mesh(), jax.local_device_count()
  if jax.default_backend() != "cpu" or count == 1:
    return
  if mesh.manual_axes and mesh.size > 1:
    raise ValueError(
      f"NetworkSimplex on {count} CPU devices of one process would wait for "
      "ever; use InteriorPoint, or one device a process"
    )


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


def _solve_batch(cost, a, b, *, threads):
  """Runs on the host.

  Args:
    cost: [..., n, m].
    a: [..., n].
    b: [..., m].
    threads: at most so many problems are solved at a time.

  Returns:
    Flow [..., n, m], potentials [..., n] and [..., m], in cost's dtype.
  """
  # Here, not at the top: only this solver needs POT, and only when it runs.
  from ot.lp.emd_wrap import emd_c

  dtype, shapes = cost.dtype, [np.shape(x) for x in (cost, a, b)]
  # POT takes costs >= 0 for granted; scaled ones are >= -1/2.
  costs = _to_float64(cost, 2) + 0.5
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
  helpers = [_pool(others, os.getpid()).submit(work) for _ in range(others)]
  work()
  for helper in helpers:
    # A helper that has not begun, behind another batch, has nothing left to do.
    if not helper.cancel():
      helper.result()
  f -= 0.5
  return [
    x.astype(dtype, copy=False).reshape(shape)
    for x, shape in zip((flow, f, g), shapes, strict=True)
  ]


def _to_float64(x, dimensions: int) -> np.ndarray:
  """A copy of x in float64, with one batch dimension."""
  x = np.asarray(x)
  return np.array(x.reshape(-1, *x.shape[-dimensions:]), np.float64, order="C")
