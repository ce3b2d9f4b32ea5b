"""Exact solvers on recorded problems, whose solutions others computed."""

import jax
import numpy as np
import pytest
from paths import GOLDEN
from solver_table import EXACT
from transport_problems import join, solve

from benchmarks import emd_solvers
from deepemd_jax import emd

RECORDED = np.load(GOLDEN / "emd.npz")
QPTH = np.load(GOLDEN / "qpth.npz")
SIZES = ("9x9", "13x13", "25x25", "9x13", "13x9", "1x25", "25x1")
LARGE = ("38x38", "25x38")
# The solvers in both types. A case is a row of the table, and whether float64
# is used.
CASES = {
  f"{name} {64 if x64 else 32}": (row, x64)
  for name, row in EXACT.items()
  for x64 in (False, True)[: 2 if row.float64 else 1]
}


def each_case(*, soak=()):
  """Runs a test for each case; those in `soak` only in `make soak`.

  They take long to compile.
  """
  cases = [
    pytest.param(*case, id=name, marks=[pytest.mark.soak] * (name in soak))
    for name, case in CASES.items()
  ]
  return pytest.mark.parametrize(("row", "x64"), cases, indirect=["x64"])


def recorded(size, dtype):
  return [RECORDED[f"{size}_{k}"].astype(dtype) for k in ("cost", "w1n", "w2n")]


def check(cost, a, b, plan, mass, exact, x64):
  """Checks plans of problems whose exact values are known."""
  plan = jax.tree.map(np.asarray, plan)
  value = (cost.astype(np.float64) * plan.flow).sum((1, 2))
  error = np.abs(value - exact) / mass
  assert error.max() <= (1e-9 if x64 else 2e-5)
  assert (plan.flow >= 0).all()
  # If the totals are nearly equal, the solver scales b to the total of a.
  ratio = a.sum(1, keepdims=True) / b.sum(1, keepdims=True)
  ratio = np.where(np.abs(ratio - 1) < 1e-4, ratio, 1.0)
  tolerance = (1e-9 if x64 else 1e-5) * mass[:, None]
  assert (plan.flow.sum(2) - a <= tolerance).all()
  assert (plan.flow.sum(1) - b * ratio <= tolerance).all()
  rounding = (1e-12 if x64 else 4e-6) * mass
  assert (error * mass <= plan.gap + rounding).all()
  assert plan.converged.all()


def masses_and_values(sizes, count):
  """Returns the moved mass of each problem, and its exact value, [count]."""
  mass = [min(map(int, size.split("x"))) for size in sizes for _ in range(64)]
  exact = np.concatenate([RECORDED[f"{size}_pot_obj"] for size in sizes])
  return np.resize(mass, count), np.resize(exact, count)


def every(step, starts, values):
  """Of the 64 values of each size, returns every `step`-th from its start."""
  rows = values.reshape(-1, 64)
  return np.concatenate([x[i::step] for x, i in zip(rows, starts, strict=True)])


@each_case(soak=("interior_point 64",))
def test_recorded_problems(row, x64):
  """Solves 16 problems of each size: correlated, tied, repeated, and others.

  Every fourth problem of each kind is solved. Problems of seven sizes (three in
  float64) are padded by nodes without mass to one batch. `make soak` solves all
  problems without padding.
  """
  sizes = ("9x9", "25x25", "9x13") if x64 else SIZES
  groups = [recorded(size, np.float64 if x64 else np.float32) for size in sizes]
  # These are the first, fifth, ... of one size, and the second, sixth, ... of
  # the next size.
  groups = [[x[i % 4 :: 4] for x in group] for i, group in enumerate(groups)]
  starts = np.arange(len(sizes)) % 4
  known = [
    every(4, starts, x) for x in masses_and_values(sizes, 64 * len(sizes))
  ]
  count = 48 if x64 else 125
  problem = join(*groups, count=count, n=25, m=25)
  plan = solve(*problem, solver=row.solver)
  check(*problem, plan, *(np.resize(x, count) for x in known), x64)


@pytest.mark.parametrize("row", EXACT.values(), ids=EXACT)
def test_large_recorded_problems(row):
  """There are 8 problems of each size, and five difficult ones of DeepEMD.

  An earlier version of the interior point method did not solve all of the five.
  """
  # The first size includes problems with zero costs, and the second includes
  # problems with spikes.
  groups = [
    [x[4 * i :: 8] for x in recorded(size, np.float32)]
    for i, size in enumerate(LARGE)
  ]
  cost, a, b = emd_solvers.problems(375, 38)
  which = [8, 121, 131, 148, 263]
  a, b = (emd_solvers.masses(x[which]) for x in (a, b))
  problem = join(*groups, (cost[which], a, b), count=21, n=38, m=38)
  plan = solve(*problem, solver=row.solver)
  assert plan.converged.all()
  first = jax.tree.map(lambda x: x[:16], (*problem, plan))
  known = (every(8, (0, 4), x) for x in masses_and_values(LARGE, 128))
  check(*first, *known, False)


@pytest.mark.soak
@each_case()
@pytest.mark.parametrize("size", SIZES + LARGE)
def test_recorded_problems_as_they_are(row, x64, size):
  problem = recorded(size, np.float64 if x64 else np.float32)
  plan = solve(*problem, solver=row.solver)
  check(*problem, plan, *masses_and_values([size], 64), x64)


def gradients_in_weights(solver, x64):
  """Returns gradients of logits with respect to raw weights, [48, 25] each.

  There are 16 recorded problems of 9 nodes, 16 of 25, and 16 of qpth's of 25.
  """
  dtype = np.float64 if x64 else np.float32
  names = "cost", "w1", "w2"
  groups = [[RECORDED[f"grad_9x9_{k}"] for k in names]]
  groups += [[RECORDED[f"grad_25x25_{k}"] for k in names]]
  groups += [[QPTH[f"25x25_{k}"] for k in names]]
  cost, *weights = (
    x.astype(dtype) for x in join(*groups, count=48, n=25, m=25)
  )
  n = np.repeat([9, 25, 25], 16).astype(dtype)

  def logits(w1, w2):
    a, b = (w * (n / w.sum(-1))[:, None] for w in (w1, w2))
    return (12.5 / n * (n - emd.distance(cost, a, b, solver))).sum()

  gradients = jax.jit(jax.grad(logits, (0, 1)))(*weights)
  return [np.asarray(x) for x in gradients]


def compare(gradient, expected, good, largest):
  """Checks errors relative to the largest entry of each gradient."""
  assert good.sum() >= 8
  scale = np.abs(expected[good]).max(-1, keepdims=True)
  assert (np.abs(gradient - expected)[good] / scale).max() < largest


# `test_solvers` tests the gradients of the interior point method, with 5 x 7
# nodes.
@each_case(soak=["interior_point 32", "interior_point 64"])
def test_recorded_gradients_through_the_weight_normalization(row, x64):
  """Compares d logit / d raw weights at stable, non-degenerate vertices.

  It also compares with the differentiated QP of qpth where qpth is right.
  """
  loose = not x64 and isinstance(row.solver, emd.InteriorPoint)
  ours = gradients_in_weights(row.solver, x64)
  for gradient, name in zip(ours, ("w1", "w2"), strict=True):
    for place, size in enumerate(("9x9", "25x25")):
      get = lambda k, size=size: RECORDED[f"grad_{size}_{k}"]  # noqa: E731
      expected = get(f"ref_glogit_{name}")
      part = gradient[16 * place : 16 * place + 16, : expected.shape[1]]
      good = get("stable") & get("nondegenerate")
      compare(part, expected, good, 1e-2 if loose else 1e-3)
    good = QPTH["25x25_L2e-6_agree_glogit_w1"] < 1e-3
    # qpth is within 1e-3 of the exact gradient, and float32 potentials are
    # within 1e-2.
    theirs = QPTH[f"25x25_L2e-6_glogit_{name}"]
    compare(gradient[32:], theirs, good, 1e-2 if loose else 2e-3)
