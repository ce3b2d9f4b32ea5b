"""Entropic transport by ott-jax, which most JAX users would try first.

References:
  Cuturi, "Sinkhorn Distances", NeurIPS 2013.
  Cuturi et al., "Optimal Transport Tools (OTT)", 2022, https://ott-jax.readthedocs.io.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy import special
from jaxtyping import Array, Float

from deepemd_jax.emd import certificate, problem


@dataclasses.dataclass(frozen=True)
class Sinkhorn:
  """Solves the entropic problem on the device, for comparison.

      min_X <C, X> + epsilon sum_ij X_ij log(X_ij M / (a_i b_j))

  over the same plans X as `emd.solve`, where M is the larger total.
  `emd.distance` returns this objective, entropy included, and its exact
  gradient.

  Attributes:
    epsilon: weight of the entropy, in units of cost. Accuracy needs a small
      epsilon, and time grows as 1 / epsilon.
    threshold: ott stops when the sum of a marginal's errors, as a share of the
      mass, is below this.
    max_iterations: bound on ott's iterations.
    epsilon_start: ott's first epsilon, as a multiple of `epsilon`.
    epsilon_decay: ott multiplies its epsilon by this after each iteration,
      until it is `epsilon`.

  Raises:
    ValueError: a value is out of range.
  """

  epsilon: float = 0.01
  threshold: float = 1e-4
  max_iterations: int = 10_000
  epsilon_start: float = 1.0
  epsilon_decay: float = 1.0

  def __post_init__(self):
    for name in ("epsilon", "threshold", "max_iterations", "epsilon_start"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
    if not 0 < self.epsilon_decay <= 1:
      raise ValueError(
        f"epsilon_decay is {self.epsilon_decay}; it must be in (0, 1]"
      )

  def __call__(
    self,
    cost: Float[Array, "*batch n m"],
    a: Float[Array, "*batch n"],
    b: Float[Array, "*batch m"],
    start: tuple[Array, Array] | None = None,
  ) -> problem.Plan:
    """Solves problems that `problem.prepare` has checked; see `emd.solve`.

    Args:
      cost: [..., n, m]; see `emd.solve`.
      a: [..., n].
      b: [..., m].
      start: potentials f [..., n] and g [..., m] of a similar problem, for a
        warm start.

    Returns:
      The plan. `gap` bounds the difference between <cost, flow> and the exact
      value, including the effect of the entropy. `converged` tells whether ott
      met its threshold.
    """
    batch, dtype = cost.shape[:-2], cost.dtype
    scaled = problem.scale_problem(*problem.batch_last(cost, a, b))
    mass = scaled.a.sum(0)

    if start is None:
      f, g = jnp.zeros_like(scaled.a), jnp.zeros_like(scaled.b)
    else:
      flat = (x.reshape(-1, x.shape[-1]).T for x in start)
      f, g = problem.scale_potentials(scaled, *flat)
    cost_range = jnp.where(scaled.cost_range > 0, scaled.cost_range, 1)
    masses = scaled.a / mass, scaled.b / mass
    solve = jax.vmap(self._solve_one, in_axes=-1, out_axes=-1)
    flow, f, g, steps, done = solve(
      scaled.cost, *masses, self.epsilon / cost_range, f, g
    )
    plan = certificate.certify(scaled, flow * mass, f, g, steps, dtype=dtype)
    f, g = (
      jnp.where(scaled.valid, x, jnp.nan)
      for x in problem.unscale_potentials(scaled, f, g)
    )
    plan = plan._replace(f=f, g=g, converged=scaled.valid & done)
    return problem.batch_first(plan, batch)

  def value(self, cost, a, b, plan: problem.Plan) -> Float[Array, "..."]:
    """Computes the objective, [...], as the dual objective, which equals it."""
    del cost
    total_a, total_b = a.sum(-1), b.sum(-1)
    larger = jnp.maximum(total_a, total_b)
    even = abs(total_a - total_b) <= problem.BALANCED * larger
    b = b * jnp.where(even, total_a / total_b, 1)[..., None]
    return (a * plan.f).sum(-1) + (b * plan.g).sum(-1)

  def _solve_one(self, cost, a, b, epsilon, f, g):
    """Solves one problem [n, m], [n], [m] with ott.

    Returns:
      Flow [n, m], potentials [n] and [m] relative to a_i b_j, iterations, and
      whether ott met its threshold.
    """
    # Imported here, because ott takes a second to import.
    with problem.from_the_extra("Sinkhorn"):
      from ott.geometry import epsilon_scheduler, geometry
      from ott.problems.linear import linear_problem
      from ott.solvers.linear import sinkhorn

    schedule = epsilon_scheduler.Epsilon(
      epsilon, init=self.epsilon_start, decay=self.epsilon_decay
    )
    solver = sinkhorn.Sinkhorn(
      threshold=self.threshold, max_iterations=self.max_iterations
    )
    log_a = jnp.log(jnp.where(a > 0, a, 1))
    log_b = jnp.log(jnp.where(b > 0, b, 1))
    # ott's potentials contain the logarithms of the masses.
    output = solver(
      linear_problem.LinearProblem(
        geometry.Geometry(cost, epsilon=schedule), a=a, b=b
      ),
      init=(
        jnp.where(a > 0, f + epsilon * log_a, -jnp.inf),
        jnp.where(b > 0, g + epsilon * log_b, -jnp.inf),
      ),
    )
    g = jnp.where(b > 0, output.g - epsilon * log_b, 0)
    f = -epsilon * special.logsumexp((g - cost) / epsilon, 1, b)
    completed = -epsilon * special.logsumexp(
      (f[:, None] - cost) / epsilon, 0, a[:, None]
    )
    g = jnp.where(b > 0, g, completed)
    return output.matrix, f, g, output.n_iters, output.converged
