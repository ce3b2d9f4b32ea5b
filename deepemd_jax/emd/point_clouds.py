"""Wasserstein distances of weighted point clouds."""

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from deepemd_jax.emd import api


def wasserstein(
  x: Shaped[Array | np.ndarray, "*#batch n d"],
  y: Shaped[Array | np.ndarray, "*#batch m d"],
  a: Shaped[Array | np.ndarray, "*#batch n"] | None = None,
  b: Shaped[Array | np.ndarray, "*#batch m"] | None = None,
  p: float | int = 2,
  solver: api.Solver | None = None,
) -> Float[Array, "..."]:
  """Computes the p-Wasserstein distance of weighted point clouds.

      W_p = (min_X sum_ij X_ij |x_i - y_j|^p)^(1/p)

  over all plans X with row sums a / sum(a) and column sums b / sum(b), with the
  Euclidean distance. It is a distance of probability measures: as in SciPy's
  `wasserstein_distance`, weights count relative to their sum, and clouds of
  unequal totals are compared as if each total were 1. To move only the smaller
  total, pass the costs to `emd.distance`.

  All four arrays have a gradient. W_p has kinks, where the gradient is finite,
  too. Points that coincide contribute 0 to it. Where W_p is 0 and p is above 1,
  the whole gradient is 0. Where W_p is just above 0, the gradient with respect
  to the weights is large.

  The root amplifies errors where W_p is small compared to the clouds' size. In
  float32, weights and values are exact to about 1e-7 of the largest distance^p.
  So the W_2 of equal clouds may be 5e-4 of their diameter (1e-8 in float64)
  instead of 0. A large p needs float64: in float32 a W_p below 10^(-38 / p) of
  the largest distance becomes 0.

  Args:
    x: [..., n, d], points, in any unit.
    y: [..., m, d], points, in the same unit.
    a: [..., n], weights of x, >= 0; None gives all points the same weight.
      Points of weight 0 are allowed, for example as padding, but their
      coordinates must be finite.
    b: [..., m], weights of y; see a.
    p: the power, at least 1; a number, not a traced array.
    solver: see `emd.solve`. The strength of a smoothed solver is in units of
      distance^p.

  Batch dimensions are broadcast. The gradient with respect to the points needs
  memory for n m d numbers per problem.

  Returns:
    [...], the distance in the unit of the points and the common dtype of the
    inputs, at least float32. It is NaN, with the gradient 0, if a coordinate or
    weight is not finite, a weight is negative, or no weight is above 0.

  Raises:
    ValueError: shapes do not fit, a dtype is not a real one, or p is below 1.

  References:
    Villani, "Optimal Transport: Old and New", 2009, chapter 6.
  """
  check_power(p)
  x, y, a, b = _without_nan(*prepare_clouds(x, y, a, b))
  solver = api.checked(solver)
  cost, unit = _costs(x, y, p, _is_smoothed(solver))
  return unit * _root(api.distance(cost, a, b, solver), p)


def check_power(p) -> None:
  """Raises an error unless p is a finite number of at least 1."""
  # pyrefly: ignore[unsupported-operation]: the stubs compare no Real with int
  if not isinstance(p, numbers.Real) or not 1 <= p < math.inf:
    raise ValueError(f"p is {p}; it must be a finite number, at least 1")


def prepare_clouds(x, y, a, b):
  """Checks shapes, fills in weights, broadcasts them, and chooses the dtype.

  Batch dimensions of x and y do not change.

  Returns:
    x [..., n, d], y [..., m, d], a [..., n] and b [..., m], of one dtype.

  Raises:
    ValueError: the shapes do not fit, or the dtype is not a real one.
  """
  x, y = jnp.asarray(x), jnp.asarray(y)
  for name, points in (("x", x), ("y", y)):
    if points.ndim < 2 or 0 in points.shape[-2:]:
      advice = f"; write {name}[:, None] for numbers" * (points.ndim == 1)
      raise ValueError(
        f"{name} has shape {points.shape}; it must be [..., points, "
        f"coordinates], at least one of each{advice}"
      )
  if x.shape[-1] != y.shape[-1]:
    raise ValueError(
      f"x has shape {x.shape} and y {y.shape}; their points must have the same "
      "number of coordinates, which come last"
    )
  a, b = _weights("a", a, "x", x), _weights("b", b, "y", y)
  try:
    batch = jnp.broadcast_shapes(
      x.shape[:-2], y.shape[:-2], a.shape[:-1], b.shape[:-1]
    )
  except ValueError as error:
    raise ValueError(
      f"batch dimensions of x {x.shape}, y {y.shape}, a {a.shape} and b "
      f"{b.shape} do not broadcast"
    ) from error
  dtype = jnp.promote_types(jnp.result_type(x, y, a, b), jnp.float32)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"x, y, a and b must be real; together they are {dtype}")
  a, b = (jnp.broadcast_to(w, (*batch, w.shape[-1])) for w in (a, b))
  return tuple(z.astype(dtype) for z in (x, y, a, b))


def _weights(name, weights, of, points):
  if weights is None:
    return jnp.ones(points.shape[-2], jnp.int8)
  weights = jnp.asarray(weights)
  if weights.shape[-1:] != points.shape[-2:-1]:
    raise ValueError(
      f"{name} has shape {weights.shape}, but {of} has shape {points.shape}: "
      f"{name} must be [..., {points.shape[-2]}], a weight for each point"
    )
  return weights


def _without_nan(x, y, a, b):
  """Returns the clouds without NaN, and with weights that sum to 1.

  Bad numbers are replaced before they reach a derivative, because 0 * NaN is
  NaN. A problem with bad numbers gets weights of 0, so that the solver returns
  NaN for it.
  """
  finite = [jnp.isfinite(z).all((-2, -1)) for z in (x, y)]
  x, y = (
    jnp.where(is_finite[..., None, None], z, 0)
    for z, is_finite in zip((x, y), finite, strict=True)
  )
  usable = finite[0] & finite[1] & _are_weights(a) & _are_weights(b)
  a, b = (_normalize(jnp.where(usable[..., None], w, 0)) for w in (a, b))
  return x, y, a, b


def _are_weights(weights):
  """Tells whether all weights are finite and at least 0, [...] bool."""
  return jnp.isfinite(weights.sum(-1)) & (weights >= 0).all(-1)


def _normalize(weights):
  total = weights.sum(-1, keepdims=True)
  return weights / jnp.where(total > 0, total, 1)


def _is_smoothed(solver) -> bool:
  differentiable = getattr(solver, "differentiable", False)
  return differentiable or hasattr(solver, "value")


def _costs(x, y, p, in_given_unit: bool):
  """Returns costs [..., n, m] and a factor [...] for the p-th root of a value.

  The largest cost is 1, so that no power is too large or too small for the
  dtype. With `in_given_unit`, the costs have the unit of the points.
  """
  scale = _power_of_two(x, y)
  x, y = x / scale, y / scale
  # Differences are used, because |x|^2 + |y|^2 - 2 xy would lose all digits for
  # points that are close.
  difference = x[..., :, None, :] - y[..., None, :, :]
  square = jnp.sum(difference * difference, -1)
  largest = jax.lax.stop_gradient(square).max((-2, -1))
  largest = jnp.where(largest > 0, largest, 1)
  apart = square > 0
  ratio = jnp.where(apart, square / largest[..., None, None], 1)
  power = ratio if p == 2 else jnp.sqrt(ratio) if p == 1 else ratio ** (p / 2)
  cost = jnp.where(apart, power, 0)
  unit = scale * jnp.sqrt(largest)
  if in_given_unit:
    return cost * unit[..., None, None] ** p, jnp.ones_like(unit)
  return cost, unit


def _power_of_two(x, y):
  """Returns a power of two near the largest difference of coordinates in the
  whole batch. Division by it is exact, and keeps squares within the range of
  the dtype."""
  high = jnp.maximum(x.max(-2), y.max(-2))
  low = jnp.minimum(x.min(-2), y.min(-2))
  span = jax.lax.stop_gradient(high - low).max()
  limits = jnp.finfo(span.dtype)
  exponent = jnp.clip(jnp.frexp(span)[1], limits.minexp + 3, limits.maxexp - 3)
  return jnp.ldexp(jnp.ones_like(span), exponent)


def _root(value, p):
  """Returns value^(1/p), whose derivative is 0 where p > 1 and value is 0."""
  if p == 1:
    return value
  positive = value > 0
  root = jnp.where(positive, value, 1) ** (1 / p)
  return jnp.where(positive, root, jnp.where(jnp.isnan(value), jnp.nan, 0))
