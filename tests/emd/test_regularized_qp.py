"""The solvers that smooth the problem: the paper's QP, and entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDEN

from deepemd_jax import emd

RECORDED = np.load(GOLDEN / "qpth.npz")
QPS = {
  "L2e-6": emd.RegularizedQP("L2", 1e-6),
  "L2e-4": emd.RegularizedQP("L2", 1e-4),
  "QP": emd.RegularizedQP("QP"),
}
solve = jax.jit(emd.solve, static_argnames="solver")
distance = jax.jit(emd.distance, static_argnames=("solver", "gradient"))


@pytest.fixture
def x64():
  jax.config.update("jax_enable_x64", True)
  yield
  jax.config.update("jax_enable_x64", False)


def recorded(size, dtype=np.float64):
  return [
    RECORDED[f"{size}_{k}"].astype(dtype) for k in ("cost", "w1", "w2", "R")
  ]


def normalized(weights):
  return weights * (weights.shape[-1] / weights.sum(-1, keepdims=True))


def objective(form, strength, cost, flow):
  squares = (flow**2).sum((1, 2)) / 2
  spent = (cost * flow).sum((1, 2))
  return (
    spent**2 / 2 + 1e-4 * squares
    if form == "QP"
    else spent + strength * squares
  )


CASES = [("9x13", "L2e-6"), ("25x25", "L2e-4"), ("25x25", "QP")]
ALL = [(size, tag) for size in ("9x9", "9x13", "25x25") for tag in QPS]


def cases(chosen, everything):
  """The rest is compilation time, hence left to `make soak`."""
  soak = [
    pytest.param(*case, marks=pytest.mark.soak)
    for case in everything
    if case not in chosen
  ]
  return [*chosen, *soak]


@pytest.mark.parametrize(("size", "tag"), cases(CASES, ALL))
def test_flows_of_qpth(x64, size, tag):
  """qpth is wrong in about one of six solves; ours is never worse."""
  solver = QPS[tag]
  cost, w1, w2, _ = recorded(size)
  plan = jax.tree.map(
    np.asarray, solve(cost, normalized(w1), normalized(w2), solver)
  )
  mass = min(cost.shape[1:])
  assert plan.converged.all()
  assert plan.flow.min() >= 0 and plan.residual.max() < 1e-7 * mass
  theirs = RECORDED[f"{size}_{tag}_flow"].astype(np.float64)
  ours, other = (
    objective(solver.form, solver.l2_strength, cost, flow)
    for flow in (plan.flow, theirs)
  )
  # qpth's marginals are only right to about 1e-6, which may save it something.
  assert (ours <= other + 1e-5 * mass).all()
  near = np.abs(plan.flow - theirs).max((1, 2)) < 1e-4
  assert near.mean() >= 0.6


ASKED = [("25x25", "L2e-6", "float32"), ("9x9", "QP", "float64")]
ALL_ASKED = [
  (size, tag, dtype)
  for size in ("9x9", "25x25")
  for tag in QPS
  for dtype in ("float32", "float64")
]


@pytest.mark.parametrize(("size", "tag", "dtype"), cases(ASKED, ALL_ASKED))
def test_gradients_of_qpth(size, tag, dtype):
  """Of sum(flow * sim * R), a random question to the flow, where qpth agrees
  with the exact derivative."""
  jax.config.update("jax_enable_x64", dtype == "float64")
  try:
    cost, w1, w2, factors = recorded(size, dtype)

    def asked(cost, w1, w2):
      arguments = cost, normalized(w1), normalized(w2)
      flow = emd.solve(*arguments, QPS[tag]).flow
      return (flow * (1 - cost) * factors).sum()

    ours = jax.jit(jax.grad(asked, (0, 1, 2)))(cost, w1, w2)
    good = RECORDED[f"{size}_{tag}_agree_gR_w1"] < 1e-3
    assert good.sum() >= 4
    for gradient, name in zip(ours[1:], ("w1", "w2"), strict=True):
      theirs = RECORDED[f"{size}_{tag}_gR_{name}"][good]
      scale = np.abs(theirs).max(1, keepdims=True)
      error = np.abs(np.asarray(gradient)[good] - theirs) / scale
      assert error.max() < 1e-3
  finally:
    jax.config.update("jax_enable_x64", False)


# The totals of the columns, relative to those of the rows.
TOTALS = np.array([0.6, 1.0, 1.7, 1.0])


def problems():
  rng = np.random.default_rng(0)
  cost = rng.random((4, 5, 7))
  a, b = rng.random((4, 5)), rng.random((4, 7))
  return cost, a, balanced(a, b) * TOTALS[:, None]


def balanced(a, b):
  return b * (a.sum(-1, keepdims=True) / b.sum(-1, keepdims=True))


SMOOTH = {
  "L2": emd.RegularizedQP("L2", 0.05),
  "QP": emd.RegularizedQP("QP"),
  "Sinkhorn": emd.Sinkhorn(0.05, threshold=1e-11, max_iterations=100_000),
}


@pytest.mark.parametrize(
  "name", ["L2", pytest.param("QP", marks=pytest.mark.soak), "Sinkhorn"]
)
def test_distance_against_finite_differences(x64, name):
  cost, a, b = problems()
  equal = (TOTALS == 1)[:, None]  # a derivative there leaves the totals equal

  def value(cost, a, b):
    b = jnp.where(equal, balanced(a, b), b)
    return distance(cost, a, b, solver=SMOOTH[name])

  ours = jax.grad(lambda *x: value(*x).sum(), (0, 1, 2))(cost, a, b)
  step = 1e-6
  rng = np.random.default_rng(1)
  for which, gradient in enumerate(ours):
    direction = rng.standard_normal(gradient.shape)
    sides = []
    for sign in (1, -1):
      moved = [np.array(x) for x in (cost, a, b)]
      moved[which] += sign * step * direction
      sides.append(value(*moved))
    numeric = (sides[0] - sides[1]) / (2 * step)
    axes = tuple(range(1, gradient.ndim))
    np.testing.assert_allclose(
      (gradient * direction).sum(axes), numeric, rtol=2e-4, atol=2e-4
    )


@pytest.mark.parametrize("name", ["L2", "Sinkhorn"])
def test_smoothing_less_comes_closer(x64, name):
  cost, a, b = problems()
  exact = distance(cost, a, b, solver=emd.NetworkSimplex())
  plan = solve(cost, a, b, solver=SMOOTH[name])
  spent = (cost * plan.flow).sum((1, 2))
  assert (spent >= exact - 1e-9).all() and plan.converged.all()
  assert (spent - exact <= plan.gap + 1e-9).all()
  sharper = emd.Sinkhorn(0.005, 1e-9, 100_000)
  if name != "Sinkhorn":
    sharper = emd.RegularizedQP("L2", 1e-7)
  closer = solve(cost, a, b, solver=sharper)
  error = (cost * closer.flow).sum((1, 2)) - exact
  assert (error <= 0.01).all() and (error <= spent - exact + 1e-9).all()


@pytest.mark.parametrize("name", ["L2", "Sinkhorn"])
def test_bad_problems_and_empty_nodes(x64, name):
  cost, a, b = problems()
  a[0, 2] = 0
  expected = solve(cost, a, b, solver=SMOOTH[name])
  assert (expected.flow[0, 2] == 0).all()
  cost[1, 0, 0] = np.nan
  a[2, 0] = -1
  plan = solve(cost, a, b, solver=SMOOTH[name])
  assert np.isnan(plan.flow[1:3]).all() and not plan.converged[1:3].any()
  np.testing.assert_allclose(plan.flow[::3], expected.flow[::3], atol=1e-7)

  def value(cost):
    return distance(cost, a, b, solver=SMOOTH[name])[::3].sum()

  gradient = jax.grad(value)(cost)
  assert jnp.isfinite(gradient[::3]).all() and (gradient[0, 2] == 0).all()


def test_sinkhorn_starts_warm(x64):
  cost, a, b = map(jnp.asarray, problems())
  solver = SMOOTH["Sinkhorn"]
  again = jax.jit(lambda *start: solver(cost, a, b, start=start))
  cold = solve(cost, a, b, solver=solver)
  warm = again(cold.f, cold.g)
  assert (warm.steps < cold.steps).all()
  np.testing.assert_allclose(warm.flow, cold.flow, atol=1e-8)
  schedule = emd.Sinkhorn(0.05, 1e-11, 100_000, 20.0, 0.9)
  scheduled = solve(cost, a, b, solver=schedule)
  np.testing.assert_allclose(scheduled.flow, cold.flow, atol=1e-8)


@pytest.mark.parametrize(
  ("make", "value"),
  [
    (lambda: emd.RegularizedQP("L1"), "L1"),
    (lambda: emd.RegularizedQP(l2_strength=0.0), "0"),
    (lambda: emd.Sinkhorn(-1.0), "-1"),
    (lambda: emd.Sinkhorn(epsilon_decay=2.0), "2"),
    (lambda: emd.InteriorPoint(tolerance=0.0), "0"),
    (lambda: emd.NetworkSimplex(threads=0), "0"),
  ],
)
def test_options_out_of_range_are_told(make, value):
  with pytest.raises(ValueError, match=value):
    make()
