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
  """A solver that `solve` and `distance` can use; hashable.

  A solver may have four more attributes. If `differentiable` is true, its flow
  has a gradient. If `on_host` is true, it needs code of this process, so that
  it cannot be exported. If `takes_start` is true, it has a fourth argument:
  the flow of a similar problem, from which it starts. A method
  `value(cost, a, b, plan)` returns the objective whose derivatives its
  potentials are, if that is not <cost, flow>.
  """

  def __call__(
    self, cost: jax.Array, a: jax.Array, b: jax.Array
  ) -> problem.Plan: ...


def default_solver() -> Solver:
  """The fastest exact solver on this platform.

  That is `NetworkSimplex` on a CPU, and `InteriorPoint` elsewhere.
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
  """Solves transport problems, and certifies how exact the solutions are.

  Nodes of mass 0 are allowed, for padding say, and move nothing. If the totals
  differ by more than 1e-5 of the larger one, transport is partial: the smaller
  total is moved. A problem without meaning (NaN, -inf, negative mass, zero
  total) returns NaN and does not affect its neighbors in the batch.

  A plan is a constant: no gradient flows through it. `distance` has the
  gradient of the value. Where the optimum is unique, the gradient of the flow
  with respect to the cost is zero anyway. (`RegularizedQP` is the exception:
  its flow has a gradient with respect to cost, a and b.)

  Args:
    cost: [..., n, m], cost of moving a unit of mass from i to j; any sign. For
      the exact solvers, +inf forbids a pair; if no plan does without forbidden
      pairs, the problem returns NaN. To other solvers it has no meaning.
    a: [..., n], masses of the rows, >= 0.
    b: [..., m], masses of the columns, >= 0.
    solver: `InteriorPoint()` or `NetworkSimplex()`, which are exact, or
      `RegularizedQP()` or `Sinkhorn()`. None is the fastest exact one on this
      platform.
    start: [..., n, m], the flow of a similar problem that this solver has
      solved. `NetworkSimplex` starts from it, which saves time; the optimum is
      the same (where several plans tie, perhaps another one of them). Other
      solvers make no use of it.

  Batch dimensions are broadcast.

  Returns:
    A `Plan`, in float32, or in float64 if an input is and JAX has it enabled.

  Raises:
    TypeError: solver is no solver.
    ValueError: shapes do not fit, or a dtype is not a real one.
  """
  solver = checked(solver)
  arguments = problem.prepare(cost, a, b)
  if getattr(solver, "differentiable", False):
    return solver(*arguments)
  arguments += _usable_start(solver, start, arguments[0])
  return solver(*jax.lax.stop_gradient(arguments))


def checked(solver) -> Solver:
  """Returns the solver, or the default one for None.

  Args:
    solver: an object such as `InteriorPoint()`, or None.

  Raises:
    TypeError: it is something else, such as a name or a class.
  """
  if solver is None:
    return default_solver()
  if not callable(solver) or isinstance(solver, type):
    raise TypeError(
      f"solver is {solver!r}; pass an object, emd.InteriorPoint() say; "
      "emd.solvers.make_solver(NAME) makes one by its name"
    )
  return solver


def _usable_start(solver, start, cost) -> tuple[jax.Array, ...]:
  """The start as a further argument of a solver; () if it takes none."""
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
  """The optimal value min_X <C, X>, differentiable in cost, a and b.

  With X the optimal flow and f, g the optimal potentials, LP duality gives

    d value / dC = X,   d value / da = f,   d value / db = g

  at no further cost. For equal totals f and g are known up to a constant. It
  drops out as soon as the masses are scaled to a fixed total, as they must be
  for the totals to stay equal. Where the optimum is not unique (ties) the value
  has a kink, and the gradient is one of its subgradients: a vertex's with
  `NetworkSimplex`, near the middle of the optimal face with `InteriorPoint`.
  With an exact solver, forward and reverse mode are there, and the second
  derivatives, which are zero: around a point the value is linear in the costs,
  and in the masses. (At its kinks it has none.)

  `Sinkhorn` returns the entropic objective that it solved, and the gradient is
  that objective's, in reverse mode, once. `RegularizedQP` returns <C, X> of its
  smoothed flow X and differentiates through X, as the paper does.

  Args:
    cost: [..., n, m]; see `solve`.
    a: [..., n].
    b: [..., m].
    solver: see `solve`.
    gradient: "exact", or "flow", which takes the flow as constant, so that the
      masses get no gradient. The official DeepEMD does the latter with its
      OpenCV solver; choose it to compare with that.

  Returns:
    [...], the value; NaN for a problem without meaning, whose gradient is 0, so
    that `jnp.where` can leave it out.

  Raises:
    ValueError: shapes do not fit, a dtype is not a real one, or gradient is
      neither of the two.

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
  """`distance`, and the optimal flow, by solving once.

  The flow is a constant to derivatives, except that of `RegularizedQP`. Given
  back as `start`, it saves time when the costs have changed a little, as they
  do from one step of gradient descent to the next.

  Args:
    cost: [..., n, m]; see `solve`.
    a: [..., n].
    b: [..., m].
    solver: see `solve`.
    gradient: see `distance`.
    start: see `solve`.

  Returns:
    [...], the value, and [..., n, m], the flow.

  Raises:
    ValueError: as `distance`; or start has not the shape of cost.
  """
  if gradient not in GRADIENTS:
    raise ValueError(f"gradient is {gradient!r}; use one of {GRADIENTS}")
  solver = checked(solver)
  cost, a, b = problem.prepare(cost, a, b)
  if gradient == "exact" and getattr(solver, "differentiable", False):
    flow = solver(cost, a, b).flow
    return jnp.sum(cost * flow, (-2, -1)), flow
  if gradient == "flow":  # nothing behind the masses is differentiated
    a, b = jax.lax.stop_gradient((a, b))
  if hasattr(solver, "value"):
    return _smoothed(solver, cost, a, b)
  starts = jax.lax.stop_gradient(_usable_start(solver, start, cost))
  return _solved(solver, cost, a, b, *starts)[:2]


# Compiled, because JAX's tracers of a custom derivative refuse what `vmap`
# hands on of a NumPy array.
@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solved(solver, cost, a, b, *start):
  """The value, the flow, and the potentials of an exact solver."""
  plan = solver(cost, a, b, *start)
  # A forbidden pair costs infinity, and is not used.
  paid = jnp.where(plan.flow == 0, 0, cost * plan.flow)
  return jnp.sum(paid, (-2, -1)), plan.flow, plan.f, plan.g


# pyrefly: ignore[missing-attribute]: what is jitted is kept there
@_solved.__wrapped__.defjvp
def _tangents(solver, primals, tangents):
  """The value's tangent is <flow, d_cost> + <f, d_a> + <g, d_b>. Flow and
  potentials do not change where they are unique."""
  solution = _solved(solver, *primals)
  d_cost, d_a, d_b = tangents[:3]
  flow, f, g = map(_or_zero, solution[1:])
  d_value = jnp.sum(flow * d_cost, (-2, -1))
  d_value += jnp.sum(f * d_a, -1) + jnp.sum(g * d_b, -1)
  return solution, (d_value, *map(jnp.zeros_like, solution[1:]))


def _or_zero(derivative):
  """A problem without meaning has no derivative. As NaN it would reach those
  who leave the problem out by `jnp.where`, because 0 * NaN is NaN."""
  return jnp.where(jnp.isnan(derivative), 0, derivative)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _smoothed(solver, cost, a, b):
  """The objective and the flow of a solver whose flow and potentials change
  with it, so that only the objective's first derivative is known."""
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
