"""The optimal value, and its gradient by linear-programming duality.

The gradient costs nothing: at an optimum (X, f, g),

    d value / d C = X,   d value / d a = f,   d value / d b = g

(the envelope theorem), so every exact solver shares one `custom_vjp`. When the
totals are equal, f and g are unique only up to a constant (f + t, g - t), which
gradients through a normalisation of the masses do not see. Where several optima
tie the value has a kink, and a subgradient is returned: a vertex's from
`NetworkSimplex`, near the centre of the optimal face from `InteriorPoint`.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Num

from deepemd_jax.emd import problem
from deepemd_jax.emd.interior_point import InteriorPoint
from deepemd_jax.emd.simplex import NetworkSimplex

GRADIENTS = ("exact", "flow")


def default_solver():
  """What serves best on this platform: the compiled simplex on a CPU, the
  interior point, which stays on the device, elsewhere."""
  if jax.default_backend() == "cpu":
    return NetworkSimplex()
  return InteriorPoint()


def solve(
  cost: Num[ArrayLike, "*c n m"],
  a: Num[ArrayLike, "*a n"],
  b: Num[ArrayLike, "*b m"],
  solver=None,
) -> problem.Plan:
  """The optimal transport plan of one or many problems.

  Equal totals (to 1e-5, then b is rescaled) give balanced transport; unequal
  ones partial transport of the smaller total. Masses may be zero: such a node
  moves nothing. A problem without meaning (NaN, infinity, negative mass, zero
  total) gives NaN and `converged=False` for itself alone.

  Args:
    cost: [..., n, m], what moving one unit from i to j costs.
    a: [..., n] masses >= 0. Batch dimensions of all three broadcast.
    b: [..., m] masses >= 0.
    solver: `InteriorPoint()` or `NetworkSimplex()`; None is `default_solver()`.

  Returns:
    A `Plan`. No gradient flows through it: its flow is piecewise constant in
    the costs. Differentiate `distance`.

  Raises:
    ValueError: the shapes do not fit.
  """
  solver = default_solver() if solver is None else solver
  return jax.lax.stop_gradient(
    solver(*jax.lax.stop_gradient(problem.prepare(cost, a, b)))
  )


def distance(
  cost: Num[ArrayLike, "*c n m"],
  a: Num[ArrayLike, "*a n"],
  b: Num[ArrayLike, "*b m"],
  solver=None,
  gradient: str = "exact",
) -> jax.Array:
  """The Earth Mover's Distance: the cost of the optimal plan.

  Args:
    cost: see `solve`, as all but the last.
    a: see `solve`.
    b: see `solve`.
    solver: see `solve`.
    gradient: "exact", in cost, a and b by duality; or "flow", which takes the
      flow for a constant and gives the masses no gradient, as DeepEMD's
      official OpenCV path does.

  Returns:
    [...], sum_ij cost_ij flow_ij; not divided by the mass.

  Raises:
    ValueError: the shapes do not fit, or `gradient` is neither.

  References:
    Bertsimas and Tsitsiklis, "Introduction to Linear Optimization", 1997,
    sections 5.2 and 5.3 (derivatives of an optimal value).
  """
  if gradient not in GRADIENTS:
    raise ValueError(f"gradient is {gradient!r}; use one of {GRADIENTS}")
  solver = default_solver() if solver is None else solver
  return _distance(solver, gradient, *problem.prepare(cost, a, b))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _distance(solver, gradient, cost, a, b):
  return _forward(solver, gradient, cost, a, b)[0]


def _forward(solver, gradient, cost, a, b):
  plan = solver(cost, a, b)
  value = jnp.sum(cost * plan.flow, (-2, -1))
  return value, (plan.flow, plan.f, plan.g)


def _backward(solver, gradient, residuals, cotangent):
  flow, f, g = residuals
  to_cost = cotangent[..., None, None] * flow
  if gradient == "flow":
    return to_cost, jnp.zeros_like(f), jnp.zeros_like(g)
  return to_cost, cotangent[..., None] * f, cotangent[..., None] * g


_distance.defvjp(_forward, _backward)
