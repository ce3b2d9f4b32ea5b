"""Solves hundreds of random problems, and in `make soak` a million."""

import jax
import numpy as np
import pytest
from solver_table import EXACT
from transport_problems import join, solve

# The judge is the code of POT. In float64 it may not converge if costs differ
# by more than 1e9. Such problems are not judged.
JUDGE = EXACT["network_simplex by POT"].solver
SIZES = [(1, 1), (1, 9), (13, 1), (5, 5), (9, 13), (13, 9), (25, 25), (38, 25)]
BATCH = 2000


def vicious(rng, count: int, n: int, m: int):
  """Makes difficult float32 problems, with properties drawn at random."""
  one_of = lambda *options: rng.choice(options, (count, 1, 1))  # noqa: E731

  def chosen(probability, new, old):
    which = rng.random(count) < probability
    return np.where(which.reshape(-1, *[1] * (old.ndim - 1)), new, old)

  cost = rng.random((count, n, m))
  x, y = rng.random((count, n, 1, 2)), rng.random((count, 1, m, 2))
  cost = chosen(0.4, np.linalg.norm(x - y, axis=-1), cost)
  cost = chosen(0.1, abs(x - y)[..., 0], cost)  # points on a line
  levels = one_of(1, 2, 4, 8)
  cost = chosen(0.3, np.round(cost * levels) / levels, cost)  # ties
  cost = chosen(0.3, cost + 1e-6 * rng.random(cost.shape), cost)  # near ties
  cost = chosen(0.1, cost[:, rng.integers(0, n, n)], cost)  # repeated nodes
  cost = chosen(0.1, 10 ** rng.uniform(-6, 0, cost.shape), cost)
  cost = (cost - one_of(0, 0.5, 1)) * 10.0 ** one_of(-6, -3, 0, 0, 0, 3, 6)

  def masses(k):
    mass = rng.random((count, k))
    mass = chosen(0.25, np.ones((count, k)), mass)
    spread = one_of(-8, -4, -2)[..., 0]
    mass = chosen(0.3, 10 ** (rng.random((count, k)) * spread), mass)
    floor = np.where(rng.random((count, k)) < 0.5, 1e-3, mass)
    mass = chosen(0.2, floor, mass)
    empty = rng.random((count, k)) < 0.2
    empty[:, 0] = False
    mass = chosen(0.2, np.where(empty, 0, mass), mass)
    return mass / mass.sum(1, keepdims=True)

  a, b = masses(n), masses(m)
  ratio = 10 ** rng.uniform(-1, 1, (count, 1))
  b = chosen(0.3, b * ratio, b)  # partial transport
  units = 10.0 ** one_of(-3, 0, 0, 2)[..., 0]
  return [x.astype(np.float32) for x in (cost, a * units, b * units)]


def examine(problem, solver):
  """Checks the plan of every problem; returns how many converged."""
  plan = jax.tree.map(np.asarray, solve(*problem, solver=solver))
  cost, a, b = (x.astype(np.float64) for x in problem)
  for name in ("flow", "f", "g", "gap", "residual"):
    assert np.isfinite(getattr(plan, name)).all(), name
  mass = np.minimum(a.sum(1), b.sum(1))
  scale = mass * np.abs(cost).max((1, 2))
  exact = solve(*problem, solver=JUDGE)
  judged = np.asarray(exact.converged)
  assert judged.mean() > 0.99
  value, optimum = ((cost * x.flow).sum((1, 2)) for x in (plan, exact))
  error = np.where(judged, np.abs(value - optimum), 0)
  # There are two float32 roundings: of the flow, and of the judge's flow.
  rounding = 4e-6 * scale
  assert (error <= plan.gap + rounding).all()
  assert (error[plan.converged] <= (2.5e-5 * scale)[plan.converged]).all()
  assert (plan.residual <= 1e-5 * mass).all()
  assert (plan.flow >= 0).all()
  return plan.converged.sum()


@pytest.mark.parametrize("row", EXACT.values(), ids=EXACT)
def test_hundreds(row):
  """The problems have two sizes.

  They are padded to the size and number of the recorded problems, so that both
  share a program.
  """
  groups = []
  for size in ((1, 9), (25, 25)):
    groups.append(vicious(np.random.default_rng([1, *size]), 62, *size))
  problem = join(*groups, count=125, n=25, m=25)
  assert examine(problem, row.solver) >= 122


@pytest.mark.soak
@pytest.mark.parametrize(
  ("name", "count"),
  # In the interpreter, a million problems would take an hour.
  [("interior_point", 1_000_000), ("interior_point kernel", 100_000)],
)
def test_a_million(name, count):
  """The results of random problems are compared with the judge."""
  batches = count // (BATCH * len(SIZES))
  good = np.zeros(len(SIZES))
  for seed in range(batches + 1):
    for i, size in enumerate(SIZES):
      rng = np.random.default_rng([2, seed, i])
      problem = vicious(rng, BATCH, *size)
      good[i] += examine(problem, EXACT[name].solver)
  share = good / (BATCH * (batches + 1))
  print(dict(zip(SIZES, share.round(5).tolist(), strict=True)))
  assert (share > 0.98).all()


@pytest.mark.soak
def test_a_thousand_large_ones():
  """With more than 63 nodes a side, `InteriorPoint` runs other code."""
  problem = vicious(np.random.default_rng([3, 80, 66]), 1000, 80, 66)
  solver = EXACT["interior_point"].solver
  assert examine(problem, solver) >= 998
