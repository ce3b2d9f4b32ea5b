"""Costs of very different sizes, and forbidden pairs.

Pairs that must not be matched are often marked with a large number or with
infinity. Exact solvers must still be precise for the other costs.
"""

import jax
import numpy as np
import pytest
from solver_table import EXACT
from transport_problems import (
  SMALL,
  distance,
  exact_values,
  pad,
  problems,
  solve,
)

from deepemd_jax import emd


def each_case(rows):
  """Runs a test for rows of the table, in float32 and in float64."""
  cases = [
    pytest.param(row, x64, id=f"{name} {64 if x64 else 32}")
    for name, row in rows.items()
    for x64 in (False, True)[: 2 if row.float64 else 1]
  ]
  return pytest.mark.parametrize(("row", "x64"), cases, indirect=["x64"])


WIDE = {name: row for name, row in EXACT.items() if row.widest > 1}
WIDEST = {name: row for name, row in EXACT.items() if row.widest >= 1e30}
SEEDS = range(2)


def draw(seed, x64, share, balanced=True):
  """Makes costs and masses, and marks about a `share` of the pairs."""
  cost, a, b = problems(seed, balanced, np.float64 if x64 else np.float32)
  marked = np.random.default_rng([seed, 7]).random(SMALL) < share
  return cost, a, b, marked


def judge(cost, a, b, marked):
  """Returns the exact value, or infinity where a marked pair must be used."""
  low, high = (
    exact_values(np.where(marked, mark, cost), a, b) for mark in (1e3, 2e3)
  )
  return np.where(abs(high - low) < 1e-9, low, np.inf)


def paid(cost, plan):
  """Returns <cost, flow> [B], where infinity times 0 is 0."""
  flow = np.asarray(plan.flow, np.float64)
  with np.errstate(invalid="ignore"):
    return np.where(flow == 0, 0, cost.astype(np.float64) * flow).sum((1, 2))


def close(x64):
  """Returns the tolerances for plans that have converged."""
  return {"rtol": 1e-9 if x64 else 2e-5, "atol": 1e-12 if x64 else 1e-7}


@each_case(WIDE)
@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("balanced", [True, False])
def test_large_costs_that_are_not_paid_do_not_blur_the_others(
  row, x64, share, balanced
):
  """The large costs are from 1e3 to 1e30 in one batch."""
  seen = 0
  for seed in SEEDS:
    cost, a, b, marked = draw(seed, x64, share, balanced)
    exact = judge(cost, a, b, marked)
    free = np.isfinite(exact)
    large = 10.0 ** np.array([3, 4, 5, 6, 9, 12, 15, 30])[:, None, None]
    large = np.minimum(large, row.widest)
    cost = np.where(marked, large, cost).astype(cost.dtype)
    plan = solve(cost, a, b, solver=row.solver)
    value = paid(cost, plan)
    np.testing.assert_allclose(value[free], exact[free], **close(x64))
    assert plan.converged[free].all()
    assert (value - exact <= plan.gap + 1e-6)[free].all()
    seen += free.sum()
  assert seen > 2


@each_case(EXACT)
@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("balanced", [True, False])
def test_forbidden_pairs_are_not_used(row, x64, share, balanced):
  """If every plan needs a forbidden pair, the problem has no solution."""
  seen = []
  for seed in SEEDS:
    cost, a, b, marked = draw(seed, x64, share, balanced)
    exact = judge(cost, a, b, marked)
    possible = np.isfinite(exact)
    cost = np.where(marked, np.inf, cost).astype(cost.dtype)
    plan = jax.tree.map(np.asarray, solve(cost, a, b, solver=row.solver))
    np.testing.assert_array_equal(plan.converged, possible)
    for x in plan[:5]:
      assert np.isnan(x[~possible]).all() and np.isfinite(x[possible]).all()
    assert (plan.flow[possible][marked[possible]] == 0).all()
    value = paid(cost, plan)
    np.testing.assert_allclose(value[possible], exact[possible], **close(x64))
    found = distance(cost, a, b, solver=row.solver)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    seen += possible.tolist()
  assert any(seen) and (share < 0.5 or not all(seen))


@each_case(EXACT)
def test_forbidden_pairs_beside_masses_of_any_size(row, x64):
  """The masses are over 8 orders of magnitude, and a plan exists."""
  for seed in range(6):
    rng = np.random.default_rng([seed, 8])
    cost, *_, marked = draw(seed, x64, 0.5)
    known = np.where(marked, 0, 10 ** (-8 * rng.random(SMALL)))
    known /= known.sum((1, 2), keepdims=True)
    a, b = (known.sum(axis).astype(cost.dtype) for axis in (2, 1))
    forbidden = np.where(marked, np.inf, cost).astype(cost.dtype)
    plan = solve(forbidden, a, b, solver=row.solver)
    assert plan.converged.all()
    assert (np.asarray(plan.flow)[marked] == 0).all()
    assert (paid(forbidden, plan) <= (known * cost).sum((1, 2)) + 1e-6).all()


@each_case(EXACT)
def test_a_node_of_little_mass_can_make_a_problem_impossible(row, x64):
  """Row 1 may only go to column 1, which has less mass."""
  cost = [[0, np.inf, 0.3], [np.inf, 1, np.inf], [0.2, np.inf, 0.1]]
  little = np.array([1e-2, 1e-3, 1e-4, 1e-5])
  a, b = (np.full((4, 3), 0.5) for _ in range(2))
  a[:, 1], b[:, 1] = little, little / 2
  b[:, 0] += little / 2
  dtype = np.float64 if x64 else np.float32
  cost = np.broadcast_to(cost, (4, 3, 3))
  problem = pad(*(x.astype(dtype) for x in (cost, a, b)), *SMALL)
  plan = solve(*problem, solver=row.solver)
  assert not plan.converged[:4].any() and np.isnan(plan.flow[:4]).all()


@each_case(WIDEST)
def test_tiny_costs_count_beside_huge_ones(row, x64):
  """A problem has costs over 60 orders of magnitude."""
  cost, a, b, marked = draw(0, x64, 0.2)
  exact = judge(cost, a, b, marked)
  free = np.isfinite(exact)
  assert free.sum() >= 4
  spread = np.where(marked, 1e30, 1e-30 * cost).astype(cost.dtype)
  plan = solve(spread, a, b, solver=row.solver)
  value = paid(spread, plan) * 1e30
  np.testing.assert_allclose(value[free], exact[free], **close(x64))
  assert plan.converged[free].all()


@each_case(EXACT)
def test_what_has_converged_is_right(row, x64):
  """This holds for all costs; POT's code and the kernel may not converge."""
  for seed in SEEDS:
    cost, a, b, marked = draw(seed, x64, 0.2)
    exact = judge(cost, a, b, marked)
    for unit, mark in ((1, 1e9), (1, 1e30), (1e-30, 1e30)):
      spread = np.where(marked, mark, unit * cost).astype(cost.dtype)
      plan = solve(spread, a, b, solver=row.solver)
      good = np.isfinite(exact) & np.asarray(plan.converged)
      value = paid(spread, plan) / unit
      np.testing.assert_allclose(value[good], exact[good], **close(x64))


@each_case(EXACT)
def test_values_near_zero_are_not_held_against_a_plan(row, x64):
  """Values may cancel, or be the distance of a cloud from itself."""
  cost, a, b = problems(0, dtype=np.float64 if x64 else np.float32)
  value = np.asarray(distance(cost, a, b, solver=row.solver))
  shifted = cost - value[:, None, None]
  plan = solve(shifted, a, b, solver=row.solver)
  assert plan.converged.all()
  assert abs(paid(shifted, plan)).max() <= (1e-9 if x64 else 2e-6)
  points = np.random.default_rng(0).random((8, 7, 2)).astype(cost.dtype)
  itself = np.linalg.norm(points[:, :5, None] - points[:, None], axis=-1)
  same = np.zeros((8, 7), cost.dtype)
  same[:, :5] = a
  plan = solve(itself.astype(cost.dtype), a, same, solver=row.solver)
  assert plan.converged.all()
  assert abs(paid(itself, plan)).max() <= (1e-9 if x64 else 2e-6)


@pytest.mark.parametrize("kernel", [False, True])
def test_a_solver_that_stops_early_does_not_say_converged(kernel):
  """Its error is small only relative to costs that are not paid."""
  solver = emd.InteriorPoint(max_steps=2, kernel=kernel)
  cost, a, b, marked = draw(0, False, 0.1)
  exact = judge(cost, a, b, marked)
  free = np.isfinite(exact)
  cost = np.where(marked, np.float32(1e6), cost)
  plan = solve(cost, a, b, solver=solver)
  wrong = paid(cost, plan) > exact * (1 + 1e-4)
  assert (wrong & free).sum() >= 3
  assert not plan.converged[wrong & free].any()
