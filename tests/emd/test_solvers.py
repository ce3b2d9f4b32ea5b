"""What every exact solver promises, and the recorded problems."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import GOLDEN

from deepemd_jax import emd

FOLDER = GOLDEN
GOLDEN = np.load(FOLDER / "emd.npz")
QPTH = np.load(FOLDER / "qpth.npz")
SIZES = ("9x9", "13x13", "25x25", "38x38", "9x13", "13x9", "25x38")
SIZES += ("1x25", "25x1")
SOLVERS = [emd.NetworkSimplex(), emd.InteriorPoint()]
KERNEL = emd.InteriorPoint(kernel=True)  # for float32 only
solve = jax.jit(emd.solve, static_argnames="solver")
distance = jax.jit(emd.distance, static_argnames=("solver", "gradient"))


def name_of(solver):
  return "Kernel" if solver is KERNEL else type(solver).__name__


each_solver = pytest.mark.parametrize("solver", [*SOLVERS, KERNEL], ids=name_of)


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def x64(request):
  # For the whole process: host callbacks run in threads of their own, which a
  # context manager would not reach.
  jax.config.update("jax_enable_x64", request.param)
  yield request.param
  jax.config.update("jax_enable_x64", False)


def reference(cost, a, b):
  """Slow and obvious: the linear program, partial if the totals differ."""
  n, m = cost.shape
  a, b = a.astype(np.float64), b.astype(np.float64)
  rows = np.kron(np.eye(n), np.ones((1, m)))
  columns = np.kron(np.ones((1, n)), np.eye(m))
  found = scipy.optimize.linprog(
    cost.ravel(),
    A_ub=np.concatenate([rows, columns]),
    b_ub=np.concatenate([a, b]) * (1 + 1e-12),
    A_eq=np.ones((1, n * m)),
    b_eq=[min(a.sum(), b.sum())],
    options={"primal_feasibility_tolerance": 1e-9},
  )
  assert found.status == 0, found.message
  return found.fun


def recorded_cases():
  """The interior point's rest is compilation time, left to `make soak`."""
  cases = []
  for solver in (*SOLVERS, KERNEL):
    for size in SIZES:
      for x64 in (False, True)[: 1 if solver is KERNEL else 2]:
        slow = isinstance(solver, emd.InteriorPoint) and x64
        later = slow and size not in ("9x9", "25x25", "9x13")
        name = f"{size}-{64 if x64 else 32}-{name_of(solver)}"
        marks = [pytest.mark.soak] if later else []
        cases.append(pytest.param(solver, size, x64, marks=marks, id=name))
  return cases


@pytest.mark.parametrize(
  ("solver", "size", "x64"), recorded_cases(), indirect=["x64"]
)
def test_recorded_problems(solver, size, x64):
  """64 problems a size: correlated, tied, repeated, zero costs, spikes."""
  dtype = np.float64 if x64 else np.float32
  cost, a, b = (
    GOLDEN[f"{size}_{k}"].astype(dtype) for k in ("cost", "w1n", "w2n")
  )
  plan = jax.tree.map(np.asarray, solve(cost, a, b, solver=solver))
  mass = min(cost.shape[1:])
  exact = GOLDEN[f"{size}_pot_obj"]
  value = (cost.astype(np.float64) * plan.flow).sum((1, 2))
  error = np.abs(value - exact) / mass
  assert error.max() <= (1e-9 if x64 else 2e-5)
  assert (plan.flow >= 0).all()
  excess = [
    np.maximum(plan.flow.sum(2) - a, 0),
    np.maximum(plan.flow.sum(1) - b * _ratio(a, b), 0),
  ]
  tolerance = 1e-9 if x64 else 1e-5
  assert max(e.max() for e in excess) <= tolerance * mass
  rounding = (1e-12 if x64 else 4e-6) * mass
  assert (error * mass <= plan.gap + rounding).all()
  assert plan.converged.all()


def _ratio(a, b):
  """b is rescaled to a's total where they are nearly equal."""
  ratio = a.sum(1, keepdims=True) / b.sum(1, keepdims=True)
  return np.where(np.abs(ratio - 1) < 1e-4, ratio, 1.0)


@pytest.mark.parametrize(
  ("solver", "x64"),
  [*((s, x64) for s in SOLVERS for x64 in (False, True)), (KERNEL, False)],
  indirect=["x64"],
  ids=lambda x: {False: "32", True: "64"}.get(x) or name_of(x),
)
@pytest.mark.parametrize("size", ["9x9", "25x25"])
def test_recorded_gradients_through_the_weight_normalization(solver, size, x64):
  """d logit / d raw weights at stable, non-degenerate vertices."""
  get = lambda k: GOLDEN[f"grad_{size}_{k}"]  # noqa: E731
  dtype = jnp.float64 if x64 else jnp.float32
  cost, w1, w2 = (jnp.asarray(get(k), dtype) for k in ("cost", "w1", "w2"))
  n = cost.shape[1]

  def logits(w1, w2):
    a = w1 * (n / w1.sum(-1, keepdims=True))
    b = w2 * (n / w2.sum(-1, keepdims=True))
    return (12.5 / n * (n - emd.distance(cost, a, b, solver))).sum()

  ours = jax.jit(jax.grad(logits, (0, 1)))(w1, w2)
  good = get("stable") & get("nondegenerate")
  assert good.sum() >= 8
  loose = not x64 and isinstance(solver, emd.InteriorPoint)
  for gradient, name in zip(ours, ("w1", "w2"), strict=True):
    exact = get(f"ref_glogit_{name}")[good]
    scale = np.abs(exact).max(-1, keepdims=True)
    error = np.abs(np.asarray(gradient)[good] - exact) / scale
    assert error.max() < (1e-2 if loose else 1e-3)


@each_solver
def test_the_gradient_of_qpth_where_it_is_right(solver):
  """The paper's QP, differentiated, comes to what duality gives for nothing."""
  get = lambda k: QPTH[f"25x25_{k}"]  # noqa: E731

  def logits(w1, w2):
    a, b = (w * (25 / w.sum(-1, keepdims=True)) for w in (w1, w2))
    return 12.5 / 25 * (25 - emd.distance(get("cost"), a, b, solver)).sum()

  ours = jax.jit(jax.grad(logits, (0, 1)))(get("w1"), get("w2"))
  good = get("L2e-6_agree_glogit_w1") < 1e-3
  assert good.sum() >= 8
  for gradient, name in zip(ours, ("w1", "w2"), strict=True):
    theirs = get(f"L2e-6_glogit_{name}")[good]
    scale = np.abs(theirs).max(-1, keepdims=True)
    error = np.abs(np.asarray(gradient)[good] - theirs) / scale
    # Theirs is within 1e-3 of the exact one; float32 duals within 1e-2.
    assert error.max() < (
      1e-2 if isinstance(solver, emd.InteriorPoint) else 2e-3
    )


def problems(count, n, m, seed=0, balanced=True):
  rng = np.random.default_rng(seed)
  cost = rng.random((count, n, m))
  a, b = rng.random((count, n)), rng.random((count, m))
  if balanced:
    a /= a.sum(1, keepdims=True)
    b /= b.sum(1, keepdims=True)
  return [x.astype(np.float32) for x in (cost, a, b)]


@each_solver
@pytest.mark.parametrize("balanced", [True, False])
def test_the_linear_program(solver, balanced):
  cost, a, b = problems(8, 5, 7, balanced=balanced)
  expected = [reference(*p) for p in zip(cost, a, b, strict=True)]
  np.testing.assert_allclose(
    distance(cost, a, b, solver=solver), expected, rtol=3e-5, atol=1e-6
  )


@each_solver
@settings(max_examples=15, deadline=None)
@given(
  seed=st.integers(0, 2**31),
  shift=st.floats(-3, 3),
  scale=st.floats(0.01, 100),
)
def test_invariances(solver, seed, shift, scale):
  """Shifting, scaling, permuting and transposing do what they must."""
  cost, a, b = problems(8, 5, 7, seed)
  value = distance(cost, a, b, solver=solver)
  rng = np.random.default_rng(seed)
  rows, columns = rng.permutation(5), rng.permutation(7)
  near = {"rtol": 5e-5, "atol": 5e-5}
  shifted = distance(cost + np.float32(shift), a, b, solver=solver)
  np.testing.assert_allclose(shifted, value + shift, **near)
  scaled = distance(cost * np.float32(scale), a, b * 1, solver=solver)
  np.testing.assert_allclose(scaled / scale, value, **near)
  heavier = distance(
    cost, a * np.float32(scale), b * np.float32(scale), solver=solver
  )
  np.testing.assert_allclose(heavier / scale, value, **near)
  permuted = distance(
    cost[:, rows][:, :, columns], a[:, rows], b[:, columns], solver=solver
  )
  np.testing.assert_allclose(permuted, value, **near)
  there_and_back = distance(np.swapaxes(cost, 1, 2).copy(), b, a, solver=solver)
  np.testing.assert_allclose(there_and_back, value, **near)


@each_solver
def test_duals_are_feasible_and_tight(solver):
  cost, a, b = problems(8, 5, 7, 3)
  plan = solve(cost, a, b, solver=solver)
  slack = cost - plan.f[..., None] - plan.g[:, None]
  assert slack.min() > -1e-5
  dual = (a * plan.f).sum(1) + (b * plan.g).sum(1)
  np.testing.assert_allclose(dual, (cost * plan.flow).sum((1, 2)), atol=2e-5)


@each_solver
def test_nodes_without_mass_move_nothing_and_constrain_nobody(solver):
  cost, a, b = problems(8, 5, 7, 5)
  a[:, 2], b[:, [0, 6]] = 0, 0
  a /= a.sum(1, keepdims=True)
  b /= b.sum(1, keepdims=True)
  cost[:, 2], cost[:, :, 0] = 0.0, 0.0  # tempting, if it counted
  plan = solve(cost, a, b, solver=solver)
  flow = np.asarray(plan.flow)
  assert (flow[:, 2] == 0).all() and (flow[:, :, [0, 6]] == 0).all()
  kept = np.delete(np.delete(cost, 2, 1), [0, 6], 2)
  smaller = distance(
    *(kept, np.delete(a, 2, 1), np.delete(b, [0, 6], 1)), solver=solver
  )
  np.testing.assert_allclose((cost * flow).sum((1, 2)), smaller, atol=2e-5)
  used = np.delete(np.arange(7), [0, 6])
  completed = (cost[:, 2] - plan.g)[:, used].min(1)
  np.testing.assert_allclose(plan.f[:, 2], completed, atol=1e-5)


@each_solver
def test_partial_transport_leaves_the_rest_where_it_is(solver):
  cost = jnp.array([[0.0, 5.0], [5.0, 1.0], [9.0, 9.0]])
  plan = solve(cost, jnp.array([1.0, 1, 1]), jnp.array([1.0, 1]), solver=solver)
  np.testing.assert_allclose(plan.flow, [[1, 0], [0, 1], [0, 0]], atol=1e-5)
  dual = plan.f.sum() + plan.g.sum()
  np.testing.assert_allclose(dual, 1.0, atol=1e-4)
  assert plan.f.max() <= 1e-5  # what stays has a potential of at most 0


@each_solver
def test_a_bad_problem_is_alone(solver):
  cost, a, b = problems(8, 5, 7, 1)
  expected = distance(cost, a, b, solver=solver)
  cost[0, 1, 1], cost[1, 0, 0] = np.nan, np.inf
  a[2, 0], b[3] = -1.0, 0.0
  plan = solve(cost, a, b, solver=solver)
  value = distance(cost, a, b, solver=solver)
  assert np.isnan(value[:4]).all() and not plan.converged[:4].any()
  np.testing.assert_allclose(value[4:], expected[4:], atol=1e-5)
  assert plan.converged[4:].all()


@each_solver
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_extreme_costs(solver, scale):
  cost, a, b = problems(8, 5, 7, 8)
  value = distance(cost, a, b, solver=solver)
  scaled = distance(cost * np.float32(scale), a, b, solver=solver)
  np.testing.assert_allclose(scaled / scale, value, rtol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS, ids=name_of)
def test_gradients_against_finite_differences(solver):
  jax.config.update("jax_enable_x64", True)
  try:
    cost, a, b = (x.astype(np.float64) for x in problems(1, 4, 5, 2))

    def value(cost, a, b):
      normalized = [w / w.sum(-1, keepdims=True) for w in (a, b)]
      return distance(cost, *normalized, solver=solver).sum()

    ours = jax.grad(value, (0, 1, 2))(cost, a, b)
    step = 1e-5
    for which, gradient in enumerate(ours):
      for place in np.ndindex(gradient.shape):
        sides = []
        for sign in (1, -1):
          moved = [np.array(x) for x in (cost, a, b)]
          moved[which][place] += sign * step
          sides.append(value(*moved))
        numeric = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(gradient[place], numeric, atol=1e-6)
  finally:
    jax.config.update("jax_enable_x64", False)


@each_solver
def test_the_flow_gradient_leaves_the_masses_alone(solver):
  cost, a, b = problems(8, 5, 7, 4)

  def value(cost, a, b):
    return distance(cost, a, b, solver=solver, gradient="flow").sum()

  to_cost, to_a, to_b = jax.grad(value, (0, 1, 2))(cost, a, b)
  assert not to_a.any() and not to_b.any()
  plan = solve(cost, a, b, solver=solver)
  np.testing.assert_allclose(to_cost, plan.flow, atol=1e-6)
  with pytest.raises(ValueError, match="exact"):
    emd.distance(cost, a, b, gradient="exakt")


@each_solver
def test_transformations_agree(solver):
  cost, a, b = problems(8, 5, 7, 6)
  value = distance(cost, a, b, solver=solver)

  def one(cost, a, b):
    return emd.distance(cost, a, b, solver)

  vmapped = jax.jit(jax.vmap(one))(cost, a, b)
  np.testing.assert_allclose(vmapped, value, atol=2e-5)
  shared = jax.jit(jax.vmap(one, (0, None, None)))(cost, a[0], b[0])
  broadcast = distance(cost, a[0], b[0], solver=solver)
  np.testing.assert_allclose(shared, broadcast, atol=2e-5)
  _, scanned = jax.lax.scan(lambda c, x: (c, one(*x)), 0, (cost, a, b))
  np.testing.assert_allclose(scanned, value, atol=2e-5)
  mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec("data")
  sharded = jax.jit(
    jax.shard_map(
      jax.vmap(one),
      mesh=mesh,
      in_specs=spec,
      out_specs=spec,
      check_vma=solver is not KERNEL,  # Pallas's interpreter does not pass it
    )
  )
  np.testing.assert_allclose(sharded(cost, a, b), value, atol=2e-5)


@each_solver
def test_one_compilation_a_shape(solver):
  traces = 0

  @jax.jit
  def counted(cost, a, b):
    nonlocal traces
    traces += 1
    return emd.distance(cost, a, b, solver)

  for seed in range(3):
    counted(*problems(8, 5, 7, seed))
  assert traces == 1


@each_solver
def test_no_problems_are_no_trouble(solver):
  cost, a, b = (x[:0] for x in problems(8, 5, 7))
  assert emd.solve(cost, a, b, solver).flow.shape == (0, 5, 7)


def test_shapes_that_do_not_fit_are_told():
  one = np.ones
  with pytest.raises(ValueError, match=r"\(4,\).*\(2, 3, 5\)"):
    emd.problem.prepare(one((2, 3, 5)), one(4), one(5))
  with pytest.raises(ValueError, match="broadcast"):
    emd.problem.prepare(one((2, 3, 5)), one((4, 3)), one(5))
  with pytest.raises(ValueError, match="must be"):
    emd.problem.prepare(one(3), one(3), one(3))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_other_types_are_computed_in_float32(dtype):
  cost = jnp.arange(12).reshape(3, 4).astype(dtype)
  masses = jnp.array([4, 4, 4], dtype), jnp.array([3, 3, 3, 3], dtype)
  value = emd.distance(cost, *masses)
  assert value.dtype == jnp.float32
  expected = emd.distance(
    np.arange(12.0, dtype=np.float32).reshape(3, 4),
    np.full(3, 4, np.float32),
    np.full(4, 3, np.float32),
  )
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_the_readme_example_runs():
  text = (pathlib.Path(emd.__file__).parent / "README.md").read_text()
  code = text.split("```python\n")[1].split("```")[0]
  found: dict = {}
  exec(code, found)
  np.testing.assert_allclose(
    found["value"],
    (found["cost"] * found["plan"].flow).sum((1, 2)),
    rtol=1e-4,
  )
  np.testing.assert_allclose(found["to_cost"].sum((1, 2)), 1.0, rtol=1e-5)
