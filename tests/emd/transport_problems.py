"""Transport problems for the tests, and programs that all tests share.

Compilation takes most of the time. So tests call `solve` and `distance` with
few shapes: with SMALL, and with problems that `pad` brings to one size.
"""

import jax
import numpy as np
import scipy.optimize

from deepemd_jax import emd

solve = jax.jit(emd.solve, static_argnames="solver")
distance = jax.jit(emd.distance, static_argnames=("solver", "gradient"))
SMALL = (8, 5, 7)


def problems(seed=0, balanced=True, dtype=np.float32):
  """Makes cost [8, 5, 7], a [8, 5] and b [8, 7]."""
  rng = np.random.default_rng(seed)
  count, n, m = SMALL
  cost = rng.random((count, n, m))
  a, b = rng.random((count, n)), rng.random((count, m))
  if balanced:
    a /= a.sum(1, keepdims=True)
    b /= b.sum(1, keepdims=True)
  return [x.astype(dtype) for x in (cost, a, b)]


def pad(cost, a, b, count, n, m):
  """Brings problems to [count, n, m].

  It adds nodes without mass, which have the costs of another node, and repeats
  problems.
  """
  rows, columns = n - cost.shape[1], m - cost.shape[2]
  cost = np.pad(cost, [(0, 0), (0, rows), (0, columns)], mode="edge")
  a = np.pad(a, [(0, 0), (0, rows)])
  b = np.pad(b, [(0, 0), (0, columns)])
  which = np.resize(np.arange(len(cost)), count)
  return [x[which] for x in (cost, a, b)]


def join(*groups, count, n, m):
  """Joins problems of several sizes in one batch [count, n, m]."""
  padded = [pad(*group, len(group[0]), n, m) for group in groups]
  joined = (np.concatenate(x) for x in zip(*padded, strict=True))
  return pad(*joined, count, n, m)


def linear_program(cost, a, b):
  """Computes the optimal value, slowly; partial if the totals differ."""
  n, m = cost.shape
  a, b = a.astype(np.float64), b.astype(np.float64)
  rows = np.kron(np.eye(n), np.ones((1, m)))
  columns = np.kron(np.ones((1, n)), np.eye(m))
  solution = scipy.optimize.linprog(
    cost.ravel(),
    A_ub=np.concatenate([rows, columns]),
    b_ub=np.concatenate([a, b]) * (1 + 1e-12),
    A_eq=np.ones((1, n * m)),
    b_eq=[min(a.sum(), b.sum())],
    options={"primal_feasibility_tolerance": 1e-9},
  )
  assert solution.status == 0, solution.message
  return solution.fun


def exact_values(cost, a, b):
  """Computes the optimal values [B] by `linear_program`."""
  return np.array([linear_program(*p) for p in zip(cost, a, b, strict=True)])
