"""The method of the paper: a quadratic program with an implicit gradient.

The official code smooths the transport problem into a quadratic program, and
differentiates its solution, the flow, through the KKT system. This module does
the same with jaxopt's implicit differentiation. `quadratic_program` solves the
program and the KKT system.

References:
  Zhang, Cai, Lin, Shen, "DeepEMD", CVPR 2020, section 3.3 and appendix;
  official `emd_utils.emd_inference_qpth`.
  Amos, Kolter, "OptNet: Differentiable Optimization as a Layer in Neural
  Networks", ICML 2017 (qpth).
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deepemd_jax.emd import (
  certificate,
  problem,
  quadratic_program,
  resistor_network,
)

FORMS = ("L2", "QP")
_QP_RIDGE = 1e-4  # as in the official code; independent of l2_strength


@dataclasses.dataclass(frozen=True)
class RegularizedQP:
  """Solves the smoothed problem on the device; its flow has a gradient.

      form "L2":  min_X <C, X> + l2_strength / 2 |X|^2
      form "QP":  min_X <C, X>^2 / 2 + 1e-4 / 2 |X|^2

  over the same plans X as `emd.solve`. With this solver `emd.solve(...).flow`
  has a gradient, and the gradient of `emd.distance`, which is sum_ij C_ij X_ij,
  passes through the flow. Choose it to compare with the paper. Where the
  gradient exists, `emd.distance` with an exact solver gives the same one
  without solving a linear system. Where plans tie, the true derivative of the
  flow is of the order 1 / l2_strength.

  float32 is enough for a training step; use float64 to compare derivatives.

  Attributes:
    form: "L2" or "QP".
    l2_strength: weight of the squared flow in form "L2", in units of cost per
      mass.
    max_steps: bound on the iterations.

  Raises:
    ValueError: form is neither "L2" nor "QP", l2_strength is not positive, or
      max_steps is below 1.
  """

  form: str = "L2"
  l2_strength: float = 1e-6
  max_steps: int = 60
  differentiable: ClassVar[bool] = True

  def __post_init__(self):
    if self.form not in FORMS:
      raise ValueError(f"form is {self.form!r}; use one of {FORMS}")
    if not self.l2_strength > 0:
      raise ValueError(f"l2_strength is {self.l2_strength}; it must be above 0")
    if self.max_steps < 1:
      raise ValueError(f"max_steps is {self.max_steps}; it must be 1 or more")

  def __call__(
    self,
    cost: Float[Array, "*batch n m"],
    a: Float[Array, "*batch n"],
    b: Float[Array, "*batch m"],
  ) -> problem.Plan:
    """Solves problems that `problem.prepare` has checked; see `emd.solve`.

    `Plan.gap` bounds how far the cost of the flow is from the exact optimum,
    including the effect of the smoothing. `Plan.converged` refers to the
    smoothed problem.

    Args:
      cost: [..., n, m].
      a: [..., n].
      b: [..., m].
    """
    # Imported here, because only this solver needs jaxopt.
    with problem.from_the_extra("RegularizedQP"):
      from jaxopt import implicit_diff

    batch, dtype = cost.shape[:-2], cost.dtype
    scaled = problem.scale_problem(*problem.batch_last(cost, a, b))
    swap = resistor_network.heaviest_last(scaled.b)
    program = self._program(scaled)
    program = program._replace(
      cost=swap(program.cost), b=swap(program.b), ridge=swap(program.ridge)
    )

    def run(_, program):
      return quadratic_program.solve(program, self.max_steps)

    differentiable = implicit_diff.custom_root(
      quadratic_program.optimality,
      has_aux=True,
      solve=quadratic_program.solve_kkt,
    )(run)
    solution, (steps, converged) = differentiable(None, program)
    flow, f, g = swap(solution.flow), solution.f, swap(solution.g)
    # The potentials of form "QP" belong to the square of the cost.
    f, g = lax.stop_gradient((f / solution.price, g / solution.price))
    plan = certificate.certify(scaled, flow, f, g, steps, dtype=dtype)
    evidence = lax.stop_gradient(
      # pyrefly: ignore[bad-argument-type]: the flow comes back below
      plan._replace(flow=None, converged=converged & scaled.valid)
    )
    return problem.batch_first(evidence._replace(flow=plan.flow), batch)

  def _program(
    self, scaled: problem.ScaledProblem
  ) -> quadratic_program.QuadraticProgram:
    """Returns the program in scaled units, where the objective is about 1 per
    unit of mass."""
    cost, a, b, moved_mass, cost_middle, cost_range, mass_unit = scaled[:7]
    cost_range = jnp.where(cost_range > 0, cost_range, 1)
    n, m, _ = cost.shape
    # Dummies represent inequalities; their cells are not smoothed.
    real = (jnp.arange(n) < n - 1)[:, None] & (jnp.arange(m) < m - 1)
    if self.form == "L2":
      base = scale = jnp.ones_like(moved_mass)
      strength = self.l2_strength * mass_unit / cost_range
      coupling = jnp.zeros_like(moved_mass)
    else:
      # <C, X> = cost_range mass_unit (base + <cost, flow>). Its square is
      # divided by its size. The middle of the costs adds the same to every
      # plan.
      base = cost_middle / cost_range * moved_mass
      scale = abs(base) + moved_mass / 2
      strength = _QP_RIDGE / (cost_range**2 * scale)
      coupling = jnp.ones_like(moved_mass)
    ridge, scale = lax.stop_gradient((real[:, :, None] * strength, scale))
    return quadratic_program.QuadraticProgram(
      cost, a, b, ridge, base, scale, coupling
    )
