"""`InteriorPoint` at the limit of its precision, and with large problems."""

import numpy as np
import pytest
from transport_problems import solve

from benchmarks import emd_peers, emd_solvers
from deepemd_jax import emd

SOLVER = emd.InteriorPoint(kernel=False)


def similar_images(count, n, noise, seed=0):
  """Makes DeepEMD's problems for images that are nearly the same, in float32.

  The plan pays far less than most pairs cost, and most masses have the least
  value.
  """
  rng = np.random.default_rng([seed, n])
  x = rng.standard_normal((count, n, 64))
  y = x + noise * rng.standard_normal(x.shape)
  x, y = (np.where(z > 0, z, 0.1 * z) for z in (x, y))

  def weights(x, y):
    dots = (x * y.mean(1, keepdims=True)).sum(-1)
    cut = np.quantile(dots, 0.6, axis=1, keepdims=True)
    return np.maximum(dots - cut, 0) + 1e-3

  a, b = (emd_solvers.masses(w) for w in (weights(x, y), weights(y, x)))
  x, y = (z - z.mean(-1, keepdims=True) for z in (x, y))
  x, y = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
  return [z.astype(np.float32) for z in (1 - x @ y.swapaxes(1, 2), a, b)]


@pytest.mark.parametrize(
  "count", [128, pytest.param(4096, marks=pytest.mark.soak)]
)
def test_float32_is_right_to_what_is_paid(count):
  """In an earlier version, one of 1,024 was off by 1.7e-4, and five by 1e-5."""
  problem = similar_images(count, 25, 0.1)
  expected = emd_peers.loop_over_pot(*problem)
  plan = solve(*problem, solver=SOLVER)
  assert plan.converged.all()
  value = (problem[0].astype(np.float64) * plan.flow).sum((1, 2))
  np.testing.assert_allclose(value, expected, rtol=1.2e-5)
  mass, largest = problem[1].sum(1), np.ptp(problem[0], (1, 2))
  error = abs(value - expected) / (mass * largest)
  assert np.median(error) < 1e-7 and error.max() < 1e-6


def clouds(count, n, m, dtype):
  """Makes Euclidean distances and unequal totals; some masses are 0."""
  rng = np.random.default_rng([n, m])
  x, y = rng.random((count, n, 1, 3)), rng.random((count, 1, m, 3))
  a, b = rng.random((count, n)), rng.random((count, m))
  a, b = (np.where(w < 0.1, 0, w) for w in (a, b))
  a /= a.sum(1, keepdims=True)
  b *= np.linspace(0.7, 1, count)[:, None] / b.sum(1, keepdims=True)
  return [z.astype(dtype) for z in (np.linalg.norm(x - y, axis=-1), a, b)]


@pytest.mark.parametrize(
  ("n", "m", "x64"),
  [
    (70, 64, False),
    pytest.param(64, 90, True, marks=pytest.mark.soak),
    pytest.param(200, 130, False, marks=pytest.mark.soak),
    pytest.param(130, 200, True, marks=pytest.mark.soak),
  ],
  indirect=["x64"],
)
def test_large_problems(n, m, x64):
  """With more than 63 nodes a side, matrix products do most of the work."""
  cost, a, b = clouds(4, n, m, np.float64 if x64 else np.float32)
  cost[0, :5, :7] = np.inf
  plan, judge = (
    solve(cost, a, b, solver=x) for x in (SOLVER, emd.NetworkSimplex())
  )
  assert plan.converged.all() and judge.converged.all()
  assert (plan.flow >= 0).all() and (plan.flow[0, :5, :7] == 0).all()
  finite = np.where(np.isinf(cost), 0, cost).astype(np.float64)
  value, expected = ((finite * x.flow).sum((1, 2)) for x in (plan, judge))
  np.testing.assert_allclose(value, expected, rtol=1e-9 if x64 else 2e-5)
  assert (abs(value - expected) <= plan.gap + judge.gap).all()
  assert plan.steps.max() <= 16  # without correctors up to 36
