"""The optimal plan and value, and the value's gradient by LP duality."""

import functools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from deepemd_jax.emd import problem
from deepemd_jax.emd.interior_point import InteriorPoint
from deepemd_jax.emd.network_simplex import NetworkSimplex
from deepemd_jax.emd.solvers import GRADIENTS


@runtime_checkable
class Solver(Protocol):
  """The interface of a solver for `solve` and `distance`; it must be hashable.

  A solver may have four more attributes. If `differentiable` is true, its flow
  has a gradient. If `on_host` is true, it needs code of this process, so that
  it cannot be exported. If `takes_start` is true, it has a fourth argument:
  the flow of a similar problem, from which it starts. If its potentials are not
  the derivatives of <cost, flow>, a method `value(cost, a, b, plan)` returns
  the objective of which they are the derivatives.
  """

  def __call__(
    self, cost: jax.Array, a: jax.Array, b: jax.Array
  ) -> problem.Plan: ...


def default_solver() -> Solver:
  """Returns the fastest exact solver on this platform.

  It is `NetworkSimplex` on a CPU and `InteriorPoint` elsewhere.
  """
  if jax.default_backend() == "cpu":
    return NetworkSimplex()
  return InteriorPoint()


def solve(
  cost: Shaped[Array | np.ndarray, "*#batch n m"],
  a: Shaped[Array | np.ndarray, "*#batch n"],
  b: Shaped[Array | np.ndarray, "*#batch m"],
  solver: Solver | None = None,
  start: Float[Array | np.ndarray, "*#batch n m"] | None = None,
) -> problem.Plan:
  """Solves transport problems and certifies how exact the solutions are.

  Nodes of mass 0 are allowed, for example as padding, and move nothing. If the
  totals differ by more than 1e-5 of the larger one, transport is partial: the
  smaller total is moved. An invalid problem (NaN, -inf, negative mass, zero
  total) yields NaN and does not affect the other problems of the batch.

  A plan is a constant: no gradient flows through it. `distance` provides the
  gradient of the value. Where the optimum is unique, the gradient of the flow
  with respect to the cost is zero anyway. (`RegularizedQP` is the exception:
  its flow has a gradient with respect to cost, a and b.)

  Args:
    cost: [..., n, m], cost of moving a unit of mass from i to j; any sign. For
      the exact solvers, +inf forbids a pair. If every plan needs a forbidden
      pair, the result is NaN. For other solvers, +inf makes a problem invalid.
    a: [..., n], masses of the rows, >= 0.
    b: [..., m], masses of the columns, >= 0.
    solver: `InteriorPoint()` or `NetworkSimplex()`, which are exact, or
      `RegularizedQP()` or `Sinkhorn()`. None selects the fastest exact solver
      on this platform.
    start: [..., n, m], the flow of a similar problem that this solver has
      solved; zeros are a cold start. The native code of `NetworkSimplex` starts
      from it, which saves time. The optimal value is the same for any start; if
      several plans are optimal, the solver may return another one. Other
      solvers ignore it.

  Batch dimensions are broadcast.

  Returns:
    A `Plan`, in float32, or in float64 if an input is and JAX has it enabled.

  Raises:
    TypeError: solver is neither a solver object nor None.
    ValueError: shapes do not fit, or a dtype is not a real one.
  """
  solver = checked(solver)
  arguments = problem.prepare(cost, a, b)
  if getattr(solver, "differentiable", False):
    return solver(*arguments)
  arguments += _usable_start(solver, start, arguments[0])
  return solver(*jax.lax.stop_gradient(arguments))


def checked(solver) -> Solver:
  """Returns the solver, or the default solver if it is None.

  Args:
    solver: an object such as `InteriorPoint()`, or None.

  Raises:
    TypeError: solver is anything else, such as a name or a class.
  """
  if solver is None:
    return default_solver()
  if not callable(solver) or isinstance(solver, type):
    raise TypeError(
      f"solver is {solver!r}; pass an object such as emd.InteriorPoint(); "
      "emd.solvers.make_solver(NAME) makes one from its name"
    )
  return solver


def _usable_start(solver, start, cost) -> tuple[jax.Array, ...]:
  """Returns the start as an extra argument; () if the solver takes none."""
  if start is None or not getattr(solver, "takes_start", False):
    return ()
  return (problem.prepare_start(start, cost),)


def distance(
  cost: Shaped[Array | np.ndarray, "*#batch n m"],
  a: Shaped[Array | np.ndarray, "*#batch n"],
  b: Shaped[Array | np.ndarray, "*#batch m"],
  solver: Solver | None = None,
  gradient: str = "exact",
) -> Float[Array, "..."]:
  """Computes the optimal value min_X <C, X>, differentiable in cost, a and b.

  For the optimal flow X and the optimal potentials f and g, LP duality gives

    d value / dC = X,   d value / da = f,   d value / db = g

  at no further cost. If the totals are equal, f and g are determined only up to
  a constant. This constant cancels when the masses are scaled to a fixed total,
  which keeps the totals equal. Where the optimum is not unique (ties), the
  value has a kink, and the gradient is one of its subgradients: that of a
  vertex with `NetworkSimplex`, and one near the middle of the optimal face with
  `InteriorPoint`. An exact solver supports forward and reverse mode, and second
  derivatives. These are zero, because the value is locally linear in the costs
  and in the masses. (At a kink there is no second derivative.)

  With `Sinkhorn`, the value is the entropic objective, and the gradient is that
  of this objective. Only reverse mode and first derivatives are supported. With
  `RegularizedQP`, the value is <C, X> of the smoothed flow X, and the gradient
  passes through X, as in the paper.

  Args:
    cost: [..., n, m]; see `solve`.
    a: [..., n], masses of the rows.
    b: [..., m], masses of the columns.
    solver: see `solve`.
    gradient: "exact" or "flow". "flow" treats the flow as constant, so that the
      masses get no gradient. The official DeepEMD does so with its OpenCV
      solver; choose it to compare with that code.

  Returns:
    [...], the value. It is NaN for an invalid problem, whose gradient is 0, so
    that `jnp.where` can mask it.

  Raises:
    ValueError: shapes do not fit, a dtype is not a real one, or gradient is
      neither "exact" nor "flow".

  References:
    Bertsimas, Tsitsiklis, "Introduction to Linear Optimization", 1997,
    section 5.2 (the value's sensitivity is the dual solution).
    Zhang, Cai, Lin, Shen, "DeepEMD", CVPR 2020, https://arxiv.org/abs/2003.06777.
  """
  return distance_and_flow(cost, a, b, solver, gradient)[0]


def distance_and_flow(
  cost: Shaped[Array | np.ndarray, "*#batch n m"],
  a: Shaped[Array | np.ndarray, "*#batch n"],
  b: Shaped[Array | np.ndarray, "*#batch m"],
  solver: Solver | None = None,
  gradient: str = "exact",
  start: Float[Array | np.ndarray, "*#batch n m"] | None = None,
) -> tuple[Float[Array, "..."], Float[Array, "... n m"]]:
  """Computes `distance` and the optimal flow in one solve.

  The flow has no derivative, except with `RegularizedQP`. Passed back as
  `start`, it saves time if costs and masses have changed only a little, as they
  do from one step of gradient descent to the next.

  Args:
    cost: [..., n, m]; see `solve`.
    a: [..., n], masses of the rows.
    b: [..., m], masses of the columns.
    solver: see `solve`.
    gradient: see `distance`.
    start: [..., n, m]; see `solve`.

  Returns:
    [...], the value, and [..., n, m], the flow.

  Raises:
    ValueError: as for `distance`, or start does not fit the shape of cost.
  """
  if gradient not in GRADIENTS:
    raise ValueError(f"gradient is {gradient!r}; use one of {GRADIENTS}")
  solver = checked(solver)
  cost, a, b = problem.prepare(cost, a, b)
  if gradient == "exact" and getattr(solver, "differentiable", False):
    flow = solver(cost, a, b).flow
    return jnp.sum(cost * flow, (-2, -1)), flow
  if gradient == "flow":  # no gradient reaches the masses
    a, b = jax.lax.stop_gradient((a, b))
  if hasattr(solver, "value"):
    return _smoothed(solver, cost, a, b)
  starts = jax.lax.stop_gradient(_usable_start(solver, start, cost))
  return _solved(solver, cost, a, b, *starts)[:2]


# Without `jit`, `vmap` over a NumPy array passes a type that JAX's tracers of
# custom derivatives reject.
@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solved(solver, cost, a, b, *start):
  """Returns the value, the flow, and the potentials of an exact solver."""
  plan = solver(cost, a, b, *start)
  # A forbidden pair has infinite cost and no flow, and inf * 0 is NaN.
  paid = jnp.where(plan.flow == 0, 0, cost * plan.flow)
  return jnp.sum(paid, (-2, -1)), plan.flow, plan.f, plan.g


# pyrefly: ignore[missing-attribute]: jit keeps the function there
@_solved.__wrapped__.defjvp
def _tangents(solver, primals, tangents):
  """Computes the tangent of the value: <flow, d_cost> + <f, d_a> + <g, d_b>.

  Flow and potentials are locally constant where they are unique.
  """
  solution = _solved(solver, *primals)
  d_cost, d_a, d_b = tangents[:3]
  flow, f, g = map(_or_zero, solution[1:])
  d_value = jnp.sum(flow * d_cost, (-2, -1))
  d_value += jnp.sum(f * d_a, -1) + jnp.sum(g * d_b, -1)
  return solution, (d_value, *map(jnp.zeros_like, solution[1:]))


def _or_zero(derivative):
  """Replaces NaN, the derivative of an invalid problem, by 0.

  `jnp.where` could not mask a NaN, because 0 * NaN is NaN.
  """
  return jnp.where(jnp.isnan(derivative), 0, derivative)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _smoothed(solver, cost, a, b):
  """Returns the objective and the flow of a smoothed solver.

  Its flow and potentials vary smoothly with the problem. Only the first
  derivative of the objective is known.
  """
  return _forward(solver, cost, a, b)[0]


def _forward(solver, cost, a, b):
  plan = solver(cost, a, b)
  value = solver.value(cost, a, b, plan)
  return (value, plan.flow), (plan.flow, plan.f, plan.g)


def _backward(solver, residuals, cotangents):
  del solver
  cotangent, _ = cotangents  # the flow is a constant
  flow, f, g = map(_or_zero, residuals)
  to_cost = cotangent[..., None, None] * flow
  return to_cost, cotangent[..., None] * f, cotangent[..., None] * g


_smoothed.defvjp(_forward, _backward)
