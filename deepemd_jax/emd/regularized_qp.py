"""The paper's way: a quadratic program whose flow is differentiated implicitly.

The official code smooths the transport problem into a quadratic program and
differentiates its solution, the flow, through the KKT system. So does this, by
jaxopt's implicit differentiation; but the linear systems, forward and backward,
are solved as the resistor networks that they are (see `network`), in
O(n m^2 + m^3) instead of O(n^3 m^3) operations.

References:
  Zhang, Cai, Lin, Shen, "DeepEMD", CVPR 2020, section 3.3 and appendix;
  official `emd_utils.emd_inference_qpth`.
  Amos, Kolter, "OptNet: Differentiable Optimization as a Layer in Neural
  Networks", ICML 2017 (qpth).
  Blondel et al., "Efficient and Modular Implicit Differentiation", NeurIPS 2022
  (jaxopt).
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deepemd_jax.emd import problem, resistor_network

FORMS = ("L2", "QP")
_QP_RIDGE = 1e-4  # the official code's, whatever l2_strength is
_BACKOFF = 0.995  # of the step to the boundary
# Steps without progress before a problem is given up, if so little is left that
# rounding may be why; see `interior_point.Rules`.
_PATIENCE, _NEAR = 5, 1e-4


@dataclasses.dataclass(frozen=True)
class RegularizedQP:
  """Device solver of the smoothed problem; its flow can be differentiated.

      form "L2":  min_X <C, X> + l2_strength / 2 |X|^2
      form "QP":  min_X <C, X>^2 / 2 + 1e-4 / 2 |X|^2

  over the same X as `emd.solve`'s. With this solver `emd.solve(...).flow` has a
  gradient, and that of `emd.distance`, sum_ij C_ij X_ij, goes through it. It is
  there to compare with the paper: `emd.distance` with an exact solver gives the
  same gradient, where it exists, without solving a system. Where plans tie, the
  flow's true derivative is of the order 1 / l2_strength.

  float32 is enough for a training step; take float64 to compare derivatives.

  Attributes:
    form: "L2" or "QP".
    l2_strength: of form "L2"; in units of cost per mass.
    max_steps: bound on the iterations.

  Raises:
    ValueError: form is neither, l2_strength is not positive, or max_steps is
      below 1.
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

    `Plan.gap` bounds how far the flow is from the exact optimum, smoothing
    included; `Plan.converged` is about the smoothed problem.
    """
    # Here, not at the top: jaxopt is needed by this solver alone.
    from jaxopt import implicit_diff

    batch, dtype = cost.shape[:-2], cost.dtype
    standard = problem.standardize(*problem.batch_last(cost, a, b))
    swap = resistor_network.heaviest_last(standard.b)
    program = self._program(standard)._replace(
      cost=swap(standard.cost), b=swap(standard.b)
    )
    program = program._replace(ridge=swap(program.ridge))

    def run(_, program):
      solution, evidence = _solve(program, self.max_steps)
      return solution, evidence

    differentiable = implicit_diff.custom_root(
      _optimality, has_aux=True, solve=_solve_kkt
    )(run)
    solution, (steps, converged) = differentiable(None, program)
    flow, f, g = swap(solution.flow), solution.f, swap(solution.g)
    # The potentials of form "QP" price the square of the cost.
    f, g = lax.stop_gradient((f / solution.price, g / solution.price))
    plan = problem.finish(standard, flow, f, g, steps, dtype=dtype)
    evidence = lax.stop_gradient(
      plan._replace(flow=None, converged=converged & standard.good)
    )
    return problem.batch_first(evidence._replace(flow=plan.flow), batch)

  def _program(self, standard: problem.Standard) -> "_Program":
    """In standard units, where the objective is about 1 per unit of mass."""
    cost, a, b, moved, middle, span, unit = standard[:7]
    span = jnp.where(span > 0, span, 1)
    n, m, _ = cost.shape
    # Dummies stand for inequalities; their cells are not smoothed.
    real = (jnp.arange(n) < n - 1)[:, None] & (jnp.arange(m) < m - 1)
    if self.form == "L2":
      base = scale = jnp.ones_like(moved)
      strength = self.l2_strength * unit / span
      coupling = jnp.zeros_like(moved)
    else:
      # <C, X> = span unit (base + <cost, flow>); the square is divided by its
      # size. The middle of the costs is worth the same to every plan.
      base = middle / span * moved
      scale = abs(base) + moved / 2
      strength = _QP_RIDGE / (span**2 * scale)
      coupling = jnp.ones_like(moved)
    ridge, scale = lax.stop_gradient((real[:, :, None] * strength, scale))
    return _Program(cost, a, b, ridge, base, scale, coupling)


class _Program(NamedTuple):
  """min_X  ridge / 2 |X|^2 + <cost, X> price, given the sums of X.

  The price of a unit of cost is 1, or follows the cost itself: price =
  (base + coupling <cost, X>) / scale.

  Attributes:
    cost: [n, m, B].
    a: [n, B].
    b: [m, B].
    ridge: [n, m, B].
    base: [B].
    scale: [B].
    coupling: [B], 0 or 1.
  """

  cost: jax.Array
  a: jax.Array
  b: jax.Array
  ridge: jax.Array
  base: jax.Array
  scale: jax.Array
  coupling: jax.Array

  def price(self, flow):
    """[B]."""
    spent = (self.cost * flow).sum((0, 1))
    return (self.base + self.coupling * spent) / self.scale


class _Solution(NamedTuple):
  """flow [n, m, B], f [n, B], g [m, B] and the price of cost, [B]."""

  flow: jax.Array
  f: jax.Array
  g: jax.Array
  price: jax.Array


def _slack(solution: _Solution, program: _Program):
  flow, f, g, price = solution
  return program.cost * price + program.ridge * flow - f[:, None] - g


def _floor(dtype) -> float:
  """The least that a flow's derivative is resisted by; see `InteriorPoint`."""
  return 1e-12 if dtype == jnp.float64 else 1e-6


def _optimality(solution: _Solution, program: _Program) -> _Solution:
  """The KKT residual, which is 0 at the solution.

  Complementarity is held at the products X S that the solver arrived at, as on
  the central path. Nodes without mass have no flow.
  """
  flow = solution.flow
  active = flow > 0
  safe = jnp.where(active, flow, 1)
  slack = _slack(solution, program)
  product = lax.stop_gradient(
    safe * jnp.maximum(slack, _floor(flow.dtype) * safe)
  )
  residual = jnp.where(active, slack - product / safe, flow)
  kept = jnp.where(active, flow, 0)
  return _Solution(
    residual,
    program.a - kept.sum(1),
    program.b - kept.sum(0),
    program.price(kept) - solution.price,
  )


def _solve_kkt(matvec, right: _Solution) -> _Solution:
  """Solves matvec(x) = right, matvec being the KKT Jacobian, transposed.

  It says itself what it is made of: with D the conductances, the answer to
  (w, y, z, h) is (w / D - y - z + h k, -w 1, -w^T 1, <c, w> - h).
  """
  zero = jax.tree.map(jnp.zeros_like, right)
  probe = lambda **one: matvec(zero._replace(**one)).flow  # noqa: E731
  active = probe(f=jnp.ones_like(right.f)) != 0
  resistance = probe(flow=jnp.ones_like(right.flow))
  k = probe(price=jnp.ones_like(right.price))
  spent = lambda w: matvec(zero._replace(flow=w)).price  # noqa: E731
  conductance = jnp.where(active, 1 / resistance, 0)
  leaks = (jnp.full_like(x, 1e-9) for x in (right.f, right.g))
  mesh = _Mesh.of(conductance, *leaks)

  first = mesh.respond(conductance * right.flow, -right.f, -right.g)
  second = mesh.respond(conductance * k, 0 * right.f, 0 * right.g)
  h = (spent(first[0]) - right.price) / (1 + spent(second[0]))
  w, y, z = (x - h * more for x, more in zip(first, second, strict=True))
  # Cells of nodes without mass are no part of the network.
  return _Solution(jnp.where(active, w, right.flow), y, z, h)


class _Mesh(NamedTuple):
  """A conductance matrix [n, m, B] and its elimination."""

  conductance: jax.Array
  network: resistor_network.Network
  ones: jax.Array

  @classmethod
  def of(cls, conductance, leak_a, leak_b):
    ones = resistor_network.ones(leak_a, len(leak_b))
    eliminated = resistor_network.eliminate(conductance, leak_a, leak_b, ones)
    return cls(conductance, eliminated, ones)

  def respond(self, target, into_rows, into_columns, solves: int = 3):
    """target + D (u + v) with the given sums, and u and v."""

    def refine(_, found):
      change, u, v = found
      more_u, more_v = resistor_network.potentials(
        self.network,
        resistor_network.stored(
          into_rows - resistor_network.summed(change, 1), self.ones
        ),
        resistor_network.stored(
          into_columns - resistor_network.summed(change, 0), self.ones
        ),
        self.ones,
      )
      change = change + self.conductance * (more_u[:, None] + more_v)
      return change, u + more_u, v + more_v

    # The first solve, and its refinements.
    nothing = target, 0 * into_rows, 0 * into_columns
    return lax.fori_loop(0, solves, refine, nothing)


class _State(NamedTuple):
  """As `InteriorPoint`'s; `best` holds flow, f and g."""

  flow: jax.Array
  slack: jax.Array
  f: jax.Array
  g: jax.Array
  left: jax.Array
  best: tuple[jax.Array, jax.Array, jax.Array]
  idle: jax.Array
  steps: jax.Array
  done: jax.Array


def _solve(program: _Program, max_steps: int):
  """The solution, and the evidence: steps [B] and converged [B]."""
  dtype = program.cost.dtype
  tolerance = 1e-12 if dtype == jnp.float64 else 1e-7
  state = _start(program)

  def unfinished(carry):
    count, state = carry
    return (count < max_steps) & ~state.done.all()

  def advance(carry):
    count, state = carry
    return count + 1, _step(state, program, tolerance)

  _, state = lax.while_loop(unfinished, advance, (0, state))
  flow, f, g = state.best
  mass = program.b.sum(0)
  close = 1e-9 if dtype == jnp.float64 else 2e-5
  converged = state.left <= close * mass
  return _Solution(flow, f, g, program.price(flow)), (state.steps, converged)


def _start(program: _Program) -> _State:
  flow = program.a[:, None] * program.b / program.a.sum(0)
  gradient = program.cost * program.price(flow) + program.ridge * flow
  f = gradient.min(1) - 0.1
  g = (gradient - f[:, None]).min(0) - 0.1
  none = jnp.where(program.scale > 0, 0, 0)
  return _State(
    flow=flow,
    slack=gradient - f[:, None] - g,
    f=f,
    g=g,
    left=jnp.where(program.scale > 0, jnp.inf, program.scale),
    best=(flow, f, g),
    idle=none,
    steps=none,
    done=none > 0,
  )


def _step(state: _State, program: _Program, tolerance: float) -> _State:
  """One predictor-corrector step; f, g and the flow move equally far, since the
  slack depends on all three."""
  flow, slack = state.flow, state.slack
  cost, a, b, ridge, _, scale, coupling = program
  floor = _floor(flow.dtype)
  conductance = 1 / (slack / flow + jnp.maximum(ridge, floor))
  leak = 1e-9 if flow.dtype == jnp.float64 else 1e-3
  mesh = _Mesh.of(conductance, leak * a, leak * b)
  wrong_a, wrong_b = a - flow.sum(1), b - flow.sum(0)
  # What one more unit of price does.
  dearer = mesh.respond(conductance * cost, 0 * a, 0 * b)

  def direction(target):
    found = mesh.respond(target, wrong_a, wrong_b)
    spent, more = ((cost * x[0]).sum((0, 1)) for x in (found, dearer))
    rise = coupling * spent / (scale + coupling * more)
    change, u, v = (x - rise * y for x, y in zip(found, dearer, strict=True))
    lift = cost * rise + ridge * change - u[:, None] - v
    return change, jnp.where(flow > 0, lift, 0), u, v

  def reach(change, lift):
    return jnp.minimum(
      resistor_network.reach(flow, change), resistor_network.reach(slack, lift)
    )

  gap = (flow * slack).sum((0, 1))
  change, lift, _, _ = direction(-conductance * slack)
  ahead = reach(change, lift)
  left = ((flow + ahead * change) * (slack + ahead * lift)).sum((0, 1))
  weight = jnp.sqrt(a[:, None] * b)
  weight = weight / weight.sum((0, 1))
  aim = (left / gap) ** 3 * gap * weight - ahead**2 * change * lift
  target = jnp.where(flow > 0, conductance * (aim / flow - slack), 0)
  change, lift, u, v = direction(target)
  far = jnp.minimum(1, _BACKOFF * reach(change, lift))
  now = flow + far * change, state.f + far * u, state.g + far * v
  flow, slack = now[0], slack + far * lift

  gap = (flow * slack).sum((0, 1))
  wrong = abs(a - flow.sum(1)).sum(0) + abs(b - flow.sum(0)).sum(0)
  left = gap + wrong
  healthy = jnp.isfinite(left + now[1].sum(0) + now[2].sum(0))
  moves = healthy & ~state.done
  better = moves & (left < state.left)
  rests = (left > 0.9 * state.left) & (left < _NEAR * b.sum(0))
  idle = jnp.where(rests, state.idle + 1, 0)
  rounding = 4 * float(jnp.finfo(flow.dtype).eps) * b.sum(0)
  close = left <= tolerance * b.sum(0) + rounding
  pick = lambda which, new, old: jax.tree.map(  # noqa: E731
    lambda x, y: jnp.where(which, x, y), new, old
  )
  flow, slack, f, g = pick(
    moves,
    (flow, slack, *now[1:]),
    (state.flow, state.slack, state.f, state.g),
  )
  return _State(
    flow=flow,
    slack=slack,
    f=f,
    g=g,
    left=jnp.where(better, left, state.left),
    best=pick(better, now, state.best),
    idle=idle,
    steps=state.steps + moves,
    done=state.done | ~healthy | close | (idle >= _PATIENCE),
  )
