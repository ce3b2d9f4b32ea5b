"""Tests of the Wasserstein distance, its gradient, and invalid input."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import scipy.stats

from deepemd_jax import emd
from deepemd_jax.emd import point_clouds, problem

wasserstein = jax.jit(emd.wasserstein, static_argnames=("p", "solver"))
COUNT, N, M = 8, 5, 7


def clouds(seed=0, d=3, dtype=np.float64):
  """Makes x [8, 5, d], y [8, 7, d], and weights with unequal totals."""
  rng = np.random.default_rng(seed)
  x, y = (rng.standard_normal((COUNT, k, d)) for k in (N, M))
  a, b = rng.random((COUNT, N)), 3 * rng.random((COUNT, M))
  a[:, 1] = 0
  return [z.astype(dtype) for z in (x, y, a, b)]


def by_pot(x, y, a, b, p):
  """Computes the distances by a loop over POT in float64."""
  values = []
  for u, v, r, s in zip(
    *(z.astype(np.float64) for z in (x, y, a, b)), strict=True
  ):
    distances = np.linalg.norm(u[:, None] - v, axis=-1)
    values.append(ot.emd2(r / r.sum(), s / s.sum(), distances**p) ** (1 / p))
  return np.array(values)


@pytest.mark.parametrize(
  ("x64", "p"),
  [(True, 1), (True, 1.5), (True, 2), (False, 2), (False, 6)],
  indirect=["x64"],
)
def test_the_values_are_those_of_pot(x64, p):
  given = clouds(dtype=np.float64 if x64 else np.float32)
  tolerance = 1e-13 if x64 else 1e-6
  value = wasserstein(*given, p=p)
  np.testing.assert_allclose(value, by_pot(*given, p), rtol=tolerance)


def test_on_a_line_it_is_scipys(x64):
  given = clouds(d=1)
  expected = [
    scipy.stats.wasserstein_distance(x[:, 0], y[:, 0], a, b)
    for x, y, a, b in zip(*given, strict=True)
  ]
  np.testing.assert_allclose(wasserstein(*given, p=1), expected, rtol=1e-13)


@pytest.mark.parametrize("p", [1, 2, 2.5])
def test_the_gradient_is_that_of_differences(x64, p):
  given = clouds(1)
  given[2][:, 1] = 0.5  # a weight of 0 cannot decrease
  way = [np.random.default_rng(2).standard_normal(z.shape) for z in given]

  def value(*arguments):
    return emd.wasserstein(*arguments, p=p)

  slope = jax.jit(lambda z, w: jax.jvp(value, z, w)[1])(given, way)
  step = 1e-6
  ahead, behind = (
    wasserstein(*(z + s * w for z, w in zip(given, way, strict=True)), p=p)
    for s in (step, -step)
  )
  differences = (ahead - behind) / (2 * step)
  np.testing.assert_allclose(slope, differences, rtol=1e-7, atol=1e-8)
  total = jax.jit(jax.grad(lambda z: value(*z).sum()))(given)
  backward = sum((g * w).sum() for g, w in zip(total, way, strict=True))
  np.testing.assert_allclose(backward, slope.sum(), rtol=1e-10)


@pytest.mark.parametrize("x64", [True, False], indirect=True)
@pytest.mark.parametrize(("p", "pull"), [(1, 0.5), (1.5, 0.5 ** (2 / 3))])
def test_points_that_coincide_do_not_pull(x64, p, pull):
  x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [3.0]])
  slope = jax.jit(jax.grad(lambda z: emd.wasserstein(*z, p=p)))((x, y))
  # W = (2^p / 2)^(1/p), and only the pair at a distance contributes.
  np.testing.assert_allclose(slope[0][:, 0], [0, -pull], rtol=1e-6)
  np.testing.assert_allclose(slope[1][:, 0], [0, pull], rtol=1e-6)


@pytest.mark.parametrize("x64", [True, False], indirect=True)
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("exact", [True, False])
def test_equal_clouds_have_a_gradient(x64, p, exact):
  """Equal weights have the same sum in any order.

  The sums of other weights differ by rounding, and the difference is moved.
  """
  x, _, a, _ = clouds()
  x[:, 2] = x[:, 3]
  a = np.ones_like(a) if exact else a
  both = jax.jit(jax.value_and_grad(lambda z: emd.wasserstein(*z, p=p).sum()))
  value, slope = both((x, x[:, ::-1], a, a[:, ::-1]))
  assert all(np.isfinite(z).all() for z in slope)
  if exact:
    assert value == 0 and not slope[0].any() and not slope[1].any()
  else:
    rounding = np.finfo(value.dtype).eps ** (1 / p)
    assert value <= COUNT * 2 * rounding * np.ptp(x)


def test_one_without_meaning_leaves_its_neighbors_alone():
  x, y, a, b = clouds(dtype=np.float32)
  expected = wasserstein(x, y, a, b)
  x[0, 0, 0], y[1, 2, 1], a[2, 3], b[3, 0] = np.nan, np.inf, -0.1, np.inf
  a[4] = 0

  def meaning(*arguments):
    value = emd.wasserstein(*arguments)
    return jnp.where(jnp.isnan(value), 0, value).sum(), value

  every = jax.value_and_grad(meaning, (0, 1, 2, 3), has_aux=True)
  (_, value), slope = jax.jit(every)(x, y, a, b)
  assert np.isnan(value[:5]).all()
  np.testing.assert_allclose(value[5:], expected[5:], rtol=1e-6)
  for z in slope:
    assert np.isfinite(z).all() and not z[:5].any() and z[5:].any()


def test_any_unit_will_do():
  """The unit is a power of 2, so the values are equal in every digit."""
  x, y, a, b = clouds(dtype=np.float32)
  value = wasserstein(x, y, a, b, p=6)
  for unit in np.float32([2.0**-100, 2.0**100]):
    scaled = wasserstein(x * unit, y * unit, a, b, p=6)
    np.testing.assert_array_equal(scaled, value * unit)


def test_batches_are_broadcast_and_mapped():
  x, y, a, b = clouds(dtype=np.float32)
  value = wasserstein(x[:2, None], y[None, :3], a[0], b[:3])
  assert value.shape == (2, 3)
  one = jax.vmap(
    jax.vmap(wasserstein, (None, 0, None, 0)), (0, None, None, None)
  )
  mapped = one(x[:2], y[:3], a[0], b[:3])
  np.testing.assert_allclose(value, mapped, rtol=1e-6)
  expected = by_pot(x[:2], y[:2], a[[0, 0]], b[:2], 2)
  np.testing.assert_allclose(jnp.diagonal(value), expected, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Outer:
  """A fake smoothed solver, which moves a_i b_j for any costs."""

  differentiable: ClassVar[bool] = True

  def __call__(self, cost, a, b):
    flow = a[..., None] * b[..., None, :]
    zero = jnp.zeros(cost.shape[:-2])
    return problem.Plan(flow, a, b, zero, zero, zero, zero == 0)


def test_a_smoothed_solver_sees_the_costs_in_the_users_unit():
  x, y = clouds(dtype=np.float32)[:2]
  seen = []

  class Spy(Outer):
    def __call__(self, cost, a, b):
      seen.append(cost)
      return super().__call__(cost, a, b)

  value = emd.wasserstein(x, y, p=3, solver=Spy())
  cost = np.linalg.norm(x[:, :, None] - y[:, None], axis=-1) ** 3
  np.testing.assert_allclose(seen[0], cost, rtol=1e-5)
  np.testing.assert_allclose(value, cost.mean((1, 2)) ** (1 / 3), rtol=1e-5)


def test_interior_point_is_as_close_as_the_root_lets_it():
  """The cost has an error of 1e-7 of the largest cost; this is its root."""
  x = clouds(dtype=np.float32)[0]
  value = wasserstein(x, x, solver=emd.InteriorPoint())
  diameter = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1).max((1, 2))
  assert (value <= 2e-3 * diameter).all()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([np.ones(5), np.ones((7, 1))], r"x has shape \(5,\).*write x\[:, None\]"),
    ([np.ones((5, 2)), np.ones((0, 2))], r"y has shape \(0, 2\)"),
    ([np.ones((5, 2)), np.ones((7, 3))], r"\(5, 2\) and y \(7, 3\).*same"),
    ([np.ones((5, 2))] * 2 + [np.ones(4)], r"a has shape \(4,\).*\[..., 5\]"),
    ([np.ones((5, 2))] * 2 + [None, 1.0], r"b has shape \(\)"),
    ([np.ones((2, 5, 2)), np.ones((3, 5, 2))], "do not broadcast"),
    ([np.ones((5, 2), complex), np.ones((5, 2))], "must be real"),
  ],
)
def test_what_does_not_fit_is_told(arguments, message):
  arguments += [None] * (4 - len(arguments))
  with pytest.raises(ValueError, match=message) as told:
    point_clouds.prepare_clouds(*arguments)
  assert "\n" not in str(told.value)


@pytest.mark.parametrize("p", [0.5, -1, np.inf, np.nan, None, "2"])
def test_a_power_below_one_is_told(p):
  with pytest.raises(ValueError, match=f"p is {p}; it must be .* at least 1"):
    point_clouds.check_power(p)
