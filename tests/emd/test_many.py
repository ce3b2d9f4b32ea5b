"""Random problems by the thousand (and, in `make soak`, the million)."""

import jax
import numpy as np
import pytest

from benchmarks import emd_solvers
from deepemd_jax import emd

solve = jax.jit(emd.solve, static_argnames="solver")
SOLVERS = [emd.NetworkSimplex(), emd.InteriorPoint()]
SOLVERS += [emd.InteriorPoint(kernel=True)]
NAMES = ["simplex", "interior", "kernel"]
SIZES = [(1, 1), (1, 9), (13, 1), (5, 5), (9, 13), (13, 9), (25, 25), (38, 25)]
BATCH = 2000


def nasty(rng, count: int, n: int, m: int):
  """Float32 problems, each of which draws its own vices."""
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
  cost = chosen(0.3, cost + 1e-6 * rng.random(cost.shape), cost)  # nearly
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


def examine(rng, count, n, m, solver):
  """Checks what must hold of every problem; returns how many converged."""
  problem = nasty(rng, count, n, m)
  plan = jax.tree.map(np.asarray, solve(*problem, solver))
  cost, a, b = (x.astype(np.float64) for x in problem)
  for name in ("flow", "f", "g", "gap", "residual"):
    assert np.isfinite(getattr(plan, name)).all(), name
  mass = np.minimum(a.sum(1), b.sum(1))
  scale = mass * np.abs(cost).max((1, 2))
  exact = solve(*problem, SOLVERS[0])
  assert np.asarray(exact.converged).all()
  value, optimum = ((cost * x.flow).sum((1, 2)) for x in (plan, exact))
  error = np.abs(value - optimum)
  # Two float32 roundings: of the flow that is judged, and of the judge's.
  rounding = 4e-6 * scale
  assert (error <= plan.gap + rounding).all()
  assert (error[plan.converged] <= (2.5e-5 * scale)[plan.converged]).all()
  assert (plan.residual <= 1e-5 * mass).all()
  assert (plan.flow >= 0).all()
  return plan.converged.sum()


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
@pytest.mark.parametrize("size", [(1, 9), (25, 25)], ids=str)
def test_a_thousand(solver, size):
  rng = np.random.default_rng([1, *size])
  assert examine(rng, 1000, *size, solver) >= 980


@pytest.mark.soak
@pytest.mark.parametrize(
  ("solver", "count"),
  # Interpreted, a million would take an hour.
  [(SOLVERS[1], 1_000_000), (SOLVERS[2], 100_000)],
  ids=NAMES[1:],
)
def test_a_million(solver, count):
  """Random problems through InteriorPoint, judged by NetworkSimplex."""
  batches = count // (BATCH * len(SIZES))
  good = np.zeros(len(SIZES))
  for seed in range(batches + 1):
    for i, size in enumerate(SIZES):
      rng = np.random.default_rng([2, seed, i])
      good[i] += examine(rng, BATCH, *size, solver)
  share = good / (BATCH * (batches + 1))
  print(dict(zip(SIZES, share.round(5).tolist(), strict=True)))
  assert (share > 0.98).all()


@pytest.mark.parametrize(
  "solver",
  [
    *SOLVERS[1:],
    emd.RegularizedQP(form="L2"),
    emd.RegularizedQP(form="QP"),
  ],
  ids=[*NAMES[1:], "L2", "QP"],
)
def test_problems_that_rest_on_the_way(solver):
  """DeepEMD's, one or more of which each of these solvers once gave up."""
  cost, a, b = emd_solvers.problems(375, 38)
  chosen = [8, 121, 131, 148, 263]
  a, b = (emd_solvers.masses(x[chosen]) for x in (a, b))
  assert np.asarray(solve(cost[chosen], a, b, solver).converged).all()
