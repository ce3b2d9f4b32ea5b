"""Exact transport on the host: POT's compiled network simplex.

References:
  Bonneel, van de Panne, Paris, Heidrich, "Displacement Interpolation Using
  Lagrangian Mass Transport", SIGGRAPH Asia 2011 (the solver inside POT).
  Flamary et al., "POT: Python Optimal Transport", JMLR 22(78), 2021.
"""

import concurrent.futures
import dataclasses
import functools
import os

import jax
import numpy as np

from deepemd_jax.emd import problem


@dataclasses.dataclass(frozen=True)
class NetworkSimplex:
  """Host solver, exact: float64 inside whatever the dtype outside.

  One callback a batch, with threads across its problems (POT's core releases
  the GIL). Works under jit, vmap, grad and shard_map; needs the `POT` package.

  Attributes:
    threads: None takes one for each CPU core.
  """

  threads: int | None = None

  def __call__(self, cost, a, b) -> problem.Plan:
    batch, (n, m) = cost.shape[:-2], cost.shape[-2:]
    float_ = functools.partial(jax.ShapeDtypeStruct, dtype=cost.dtype)
    shapes = problem.Plan(
      flow=float_((*batch, n, m)),
      f=float_((*batch, n)),
      g=float_((*batch, m)),
      gap=float_(batch),
      residual=float_(batch),
      steps=jax.ShapeDtypeStruct(batch, np.int32),
      converged=jax.ShapeDtypeStruct(batch, bool),
    )
    host = functools.partial(_solve_batch, threads=self.threads)
    return jax.pure_callback(
      host, shapes, cost, a, b, vmap_method="broadcast_all"
    )


def _solve_batch(cost, a, b, *, threads):
  cost, a, b = (np.asarray(x) for x in (cost, a, b))
  dtype, batch = cost.dtype, cost.shape[:-2]
  n, m = cost.shape[-2:]
  cost64 = np.ascontiguousarray(cost, np.float64).reshape(-1, n, m)
  a64 = np.ascontiguousarray(a, np.float64).reshape(-1, n)
  b64 = np.ascontiguousarray(b, np.float64).reshape(-1, m)
  count = len(cost64)
  flow = np.full((count, n, m), np.nan)
  f, g = np.full((count, n), np.nan), np.full((count, m), np.nan)
  gap, residual = np.full(count, np.nan), np.full(count, np.nan)
  converged = np.zeros(count, bool)

  def work(start, stop):
    for i in range(start, stop):
      found = _solve_one(cost64[i], a64[i], b64[i])
      if found is not None:
        flow[i], f[i], g[i], gap[i], residual[i] = found
        converged[i] = True

  threads = threads or os.cpu_count() or 1
  cuts = np.linspace(0, count, threads + 1).astype(int)
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    list(pool.map(work, cuts[:-1], cuts[1:]))
  return problem.Plan(
    flow.reshape(*batch, n, m).astype(dtype),
    f.reshape(*batch, n).astype(dtype),
    g.reshape(*batch, m).astype(dtype),
    gap.reshape(batch).astype(dtype),
    residual.reshape(batch).astype(dtype),
    np.zeros(batch, np.int32),
    converged.reshape(batch),
  )


def _solve_one(cost, a, b):
  from ot.lp.emd_wrap import emd_c

  total_a, total_b = a.sum(), b.sum()
  if not (
    np.isfinite(cost).all()
    and np.isfinite(total_a + total_b)
    and min(a.min(), b.min()) >= 0
    and min(total_a, total_b) > 0
  ):
    return None
  n, m = cost.shape
  # POT takes costs >= 0 for granted; a constant does not change the plan.
  low = min(cost.min(), 0.0)
  c, p, q = cost - low, a, b
  if abs(total_a - total_b) <= problem.BALANCED * max(total_a, total_b):
    q = b * (total_a / total_b)
  elif total_a > total_b:
    c, q = np.pad(c, ((0, 0), (0, 1))), np.append(b, total_a - total_b)
  else:
    c, p = np.pad(c, ((0, 1), (0, 0))), np.append(a, total_b - total_a)
  flow, _, f, g, _ = emd_c(p, q, c, 1_000_000, 1)
  # POT leaves out nodes without mass: complete their potentials.
  used = q > 0
  f = np.where(p > 0, f, (c - g)[:, used].min(1))
  g = np.where(used, g, (c - f[:, None]).min(0))
  # A dummy's potential is 0.
  if len(q) > m:
    f, g = f + g[-1], g - g[-1] + low
  elif len(p) > n:
    f, g = f - f[-1] + low, g + f[-1]
  else:
    f = f + low
  flow = flow[:n, :m]
  gap = np.vdot(cost, flow) - np.vdot(p[:n], f[:n]) - np.vdot(q[:m], g[:m])
  residual = max(
    np.maximum(flow.sum(1) - a, 0).max(),
    np.maximum(flow.sum(0) - q[:m], 0).max(),
    abs(flow.sum() - min(total_a, total_b)),
  )
  return flow, f[:n], g[:m], max(gap, 0.0), residual
