"""Tests the promises of all solvers of `solver_table`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_table import EXACT, FLOAT64, TABLE, each
from transport_problems import (
  distance,
  exact_values,
  pad,
  problems,
  solve,
)

from deepemd_jax import emd
from deepemd_jax.emd import solvers


def small(row, seed=0, balanced=True):
  return problems(seed, balanced, np.float64 if row.x64 else np.float32)


def test_every_solver_of_the_registry_is_in_the_table():
  classes = {
    type(solvers.make_solver(name))
    for name in solvers.SOLVERS
    if name != "auto"
  }
  assert classes == {type(row.solver) for row in TABLE.values()}


@each()
@pytest.mark.parametrize("balanced", [True, False])
def test_the_gap_bounds_the_error(row, x64, balanced):
  cost, a, b = small(row, balanced=balanced)
  expected = exact_values(cost, a, b)
  plan = solve(cost, a, b, solver=row.solver)
  assert {x.dtype for x in plan[:5]} == {cost.dtype}
  assert plan.converged.all() and (plan.flow >= 0).all()
  moved_mass = np.minimum(a.sum(1), b.sum(1))
  np.testing.assert_allclose(plan.flow.sum((1, 2)), moved_mass, rtol=1e-5)
  assert (plan.flow.sum(2) <= a + plan.residual[:, None] + 1e-6).all()
  assert (plan.flow.sum(1) <= b + plan.residual[:, None] + 1e-6).all()
  largest = 1e-7 if row.x64 else 1e-5
  assert (plan.residual <= largest * moved_mass).all()
  error = (cost * plan.flow).sum((1, 2)) - expected
  rounding = 1e-6 * moved_mass
  assert (error >= -rounding).all() and (error <= plan.gap + rounding).all()
  if row.exact:
    value = distance(cost, a, b, solver=row.solver)
    np.testing.assert_allclose(value, expected, rtol=3e-5, atol=1e-6)


@each()
def test_nodes_without_mass_move_nothing_and_constrain_nobody(row, x64):
  cost, a, b = small(row, 5)
  a[:, 2], b[:, [0, 6]] = 0, 0
  a /= a.sum(1, keepdims=True)
  b /= b.sum(1, keepdims=True)
  cost[:, 2], cost[:, :, 0] = 0.0, 0.0  # would be used if it had mass
  plan = solve(cost, a, b, solver=row.solver)
  flow = np.asarray(plan.flow)
  assert (flow[:, 2] == 0).all() and (flow[:, :, [0, 6]] == 0).all()
  if not row.exact:
    return
  without = np.delete(np.delete(cost, 2, 1), [0, 6], 2)
  smaller = exact_values(without, np.delete(a, 2, 1), np.delete(b, [0, 6], 1))
  np.testing.assert_allclose((cost * flow).sum((1, 2)), smaller, atol=2e-5)
  used = np.delete(np.arange(7), [0, 6])
  completed = (cost[:, 2] - plan.g)[:, used].min(1)
  np.testing.assert_allclose(plan.f[:, 2], completed, atol=1e-5)


@each()
def test_a_bad_problem_is_alone(row, x64):
  cost, a, b = small(row, 1)
  expected = solve(cost, a, b, solver=row.solver)
  value = distance(cost, a, b, solver=row.solver)
  cost[0, 1, 1], cost[1, 0, 0] = np.nan, -np.inf
  a[2, 0], b[3] = -1.0, 0.0
  plan = solve(cost, a, b, solver=row.solver)
  bad_value = distance(cost, a, b, solver=row.solver)
  assert np.isnan(bad_value[:4]).all() and not plan.converged[:4].any()
  for x in plan[:5]:
    assert np.isnan(x[:4]).all()
  np.testing.assert_allclose(bad_value[4:], value[4:], atol=1e-6)
  np.testing.assert_allclose(plan.flow[4:], expected.flow[4:], atol=1e-6)
  assert plan.converged[4:].all()


@each(soak=("regularized_qp", "sinkhorn", "interior_point"))
def test_transformations_agree(row, x64):
  # The problems are small, because each of the three functions is compiled.
  cost, a, b = small(row, 6)
  cost, a, b = cost[:, :2, :4], a[:, :2], b[:, :4]

  def one(cost, a, b):
    return emd.distance(cost, a, b, row.solver)

  def expected(cost, a, b):
    if row.exact:
      return exact_values(cost, a, b)
    return distance(cost, a, b, solver=row.solver)

  value = expected(cost, a, b)
  shared = jax.jit(jax.vmap(one, (0, None, None)))(cost, a[0], b[0])
  repeated = np.repeat(a[:1], 8, 0), np.repeat(b[:1], 8, 0)
  np.testing.assert_allclose(shared, expected(cost, *repeated), atol=2e-5)
  scan = jax.jit(lambda *x: jax.lax.scan(lambda c, x: (c, one(*x)), 0, x)[1])
  np.testing.assert_allclose(scan(cost, a, b), value, atol=2e-5)
  mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec("data")
  sharded = jax.jit(
    jax.shard_map(
      jax.vmap(one),
      mesh=mesh,
      in_specs=spec,
      out_specs=spec,
      check_vma=row.passes_vma_check,
    )
  )
  np.testing.assert_allclose(sharded(cost, a, b), value, atol=2e-5)


@each()
def test_one_compilation_a_shape(row, x64):
  distance(*small(row), solver=row.solver)
  compiled = distance._cache_size()
  for seed in (1, 2):
    distance(*small(row, seed), solver=row.solver)
  assert distance._cache_size() == compiled


@each()
def test_no_problems_are_no_trouble(row, x64):
  cost, a, b = (x[:0] for x in small(row))
  if row.exact:
    plan = solve(cost, a, b, solver=row.solver)
  else:
    one = functools.partial(emd.solve, solver=row.solver)
    plan = jax.eval_shape(one, cost, a, b)
  assert plan.flow.shape == (0, 5, 7)


# The totals of the columns relative to those of the rows.
TOTALS = np.tile([0.6, 1.0, 1.7, 1.0], 2)


def balance(a, b):
  return b * (a.sum(-1, keepdims=True) / b.sum(-1, keepdims=True))


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.soak] if name.endswith("QP") else [])
    for name in FLOAT64
  ],
)
def test_gradients_are_those_of_finite_differences(name, x64):
  """Gradients of valid problems are finite, even beside invalid ones."""
  row = FLOAT64[name]
  cost, a, b = problems(0, False, np.float64)
  b = balance(a, b) * TOTALS[:, None]
  equal = (TOTALS == 1)[:, None]  # here the totals stay equal

  @jax.jit
  def value_and_gradients(good, cost, a, b):
    def total(cost, a, b):
      b = jnp.where(equal, balance(a, b), b)
      values = emd.distance(cost, a, b, row.solver)
      return jnp.where(good, values, 0).sum(), values

    gradients = jax.grad(total, (0, 1, 2), has_aux=True)
    return gradients(cost, a, b)

  every = np.ones(len(cost), bool)
  ours, _ = value_and_gradients(every, cost, a, b)
  step = 1e-6
  rng = np.random.default_rng(1)
  for which, gradient in [x for x in enumerate(ours) for _ in range(4)]:
    direction = rng.standard_normal(gradient.shape)
    sides = []
    for sign in (1, -1):
      shifted = [np.array(x) for x in (cost, a, b)]
      shifted[which] += sign * step * direction
      sides.append(value_and_gradients(every, *shifted)[1])
    numeric = (sides[0] - sides[1]) / (2 * step)
    along = (gradient * direction).sum(tuple(range(1, gradient.ndim)))
    error = abs(along - numeric) / (1 + abs(numeric))
    assert error.max() <= row.derivative_error

  a[0, 2] = 0
  cost[1, 0, 0], a[2, 0] = np.nan, -1
  good = np.array([True, False, False, *[True] * 5])
  (to_cost, *_), values = value_and_gradients(good, cost, a, b)
  assert np.isnan(values[1:3]).all() and np.isfinite(values[good]).all()
  assert jnp.isfinite(to_cost[good]).all() and (to_cost[0, 2] == 0).all()


# For the interior point method, only the kernel is tested: all solvers have the
# same rules.
@each(EXACT, soak=("interior_point",))
def test_all_derivatives_are_there(row, x64):
  """These are forward, reverse, linearized and second derivatives.

  They are taken in a batch and under vmap. A problem that is left out adds
  nothing.
  """
  cost, a, b = small(row)
  cost[0, 0, 0] = np.nan
  ok = np.arange(len(cost)) > 0
  direction = np.random.default_rng(0).standard_normal(cost.shape)
  direction = direction.astype(cost.dtype)

  def value(cost):
    values = emd.distance(cost, a, b, row.solver)
    return jnp.where(ok, values, 0).sum()

  @jax.jit
  def derivatives(cost, direction):
    found, linear = jax.linearize(value, cost)
    one_by_one = jax.vmap(lambda c, x, y: emd.distance(c, x, y, row.solver))
    tangent = lambda c: jax.jvp(value, (c,), (direction,))[1]  # noqa: E731
    return {
      "reverse": (jax.grad(value)(cost) * direction).sum(),
      "forward": tangent(cost),
      "linearized": linear(direction),
      "vmap": jnp.where(
        ok,
        jax.jvp(lambda c: one_by_one(c, a, b), (cost,), (direction,))[1],
        0,
      ).sum(),
      "reverse of forward": jax.grad(tangent)(cost),
      "forward of reverse": jax.jvp(jax.grad(value), (cost,), (direction,))[1],
      "scale": jax.grad(lambda w: value(w * cost))(1.0) - found,
    }

  found = derivatives(cost, direction)
  expected = found.pop("reverse")
  for name in ("reverse of forward", "forward of reverse"):
    assert not found.pop(name).any(), name  # NaN would count as a value
  scale = found.pop("scale")
  assert jnp.isnan(scale) or abs(scale) < 1e-5
  assert jnp.isfinite(expected)
  for name, tangent in found.items():
    np.testing.assert_allclose(tangent, expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("row", EXACT.values(), ids=EXACT)
@settings(max_examples=15, deadline=None)
@given(
  seed=st.integers(0, 2**31),
  shift=st.floats(-3, 3),
  scale=st.floats(0.01, 100),
)
def test_invariances(row, seed, shift, scale):
  """Shifting, scaling, permuting and transposing have the right effect."""
  solver = row.solver
  cost, a, b = problems(seed)
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


@each(EXACT)
def test_duals_are_feasible_and_tight(row, x64):
  cost, a, b = problems(3)
  plan = solve(cost, a, b, solver=row.solver)
  slack = cost - plan.f[..., None] - plan.g[:, None]
  assert slack.min() > -1e-5
  dual = (a * plan.f).sum(1) + (b * plan.g).sum(1)
  np.testing.assert_allclose(dual, (cost * plan.flow).sum((1, 2)), atol=2e-5)


@each(EXACT)
def test_partial_transport_leaves_the_rest_where_it_is(row, x64):
  cost = np.array([[[0, 5], [5, 1], [9, 9]]], np.float32)
  a, b = np.ones((1, 3), np.float32), np.ones((1, 2), np.float32)
  plan = solve(*pad(cost, a, b, 8, 5, 7), solver=row.solver)
  expected = [[1, 0], [0, 1], [0, 0]]
  np.testing.assert_allclose(plan.flow[0, :3, :2], expected, atol=1e-5)
  dual = plan.f[0, :3].sum() + plan.g[0, :2].sum()
  np.testing.assert_allclose(dual, 1.0, atol=1e-4)
  assert plan.f.max() <= 1e-5  # potentials of the heavier side


@each(EXACT)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_extreme_costs(row, x64, scale):
  cost, a, b = problems(8)
  value = distance(cost, a, b, solver=row.solver)
  scaled = distance(cost * np.float32(scale), a, b, solver=row.solver)
  np.testing.assert_allclose(scaled / scale, value, rtol=1e-4)


# This does not depend on the solver.
@each(EXACT, soak=("interior_point", "interior_point kernel"))
def test_the_flow_gradient_leaves_the_masses_alone(row, x64):
  cost, a, b = problems(4)

  @jax.jit
  def gradients(cost, a, b):
    def value(cost, a, b):
      return emd.distance(cost, a, b, row.solver, gradient="flow").sum()

    return jax.grad(value, (0, 1, 2))(cost, a, b)

  to_cost, to_a, to_b = gradients(cost, a, b)
  assert not to_a.any() and not to_b.any()
  plan = solve(cost, a, b, solver=row.solver)
  np.testing.assert_allclose(to_cost, plan.flow, atol=1e-6)
