"""The optimal value, and its gradient by linear-programming duality."""

import functools

import jax
import jax.numpy as jnp

from deepemd_jax.emd import problem
from deepemd_jax.emd.interior_point import InteriorPoint
from deepemd_jax.emd.simplex import NetworkSimplex

GRADIENTS = ("exact", "flow")


def default_solver():
  """What serves best on this platform."""
  if jax.default_backend() == "cpu":
    return NetworkSimplex()
  return InteriorPoint()


def solve(cost, a, b, solver=None) -> problem.Plan:
  """The optimal plan; no gradient flows through it (use `distance`)."""
  solver = default_solver() if solver is None else solver
  return jax.lax.stop_gradient(solver(*problem.prepare(cost, a, b)))


def distance(cost, a, b, solver=None, gradient: str = "exact"):
  """The optimal value, [...], differentiable in cost, a and b."""
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
