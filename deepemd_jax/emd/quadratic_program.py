"""Quadratic programs over transport plans: their solution and KKT system.

    min_X  ridge / 2 |X|^2 + <cost, X> price
    s.t.   X 1 = a,  X^T 1 = b,  X >= 0

`solve` is the interior point method of `interior_point_step`, with two more
terms. jaxopt needs `optimality` and `solve_kkt` to differentiate the solution.
The linear systems, forward and backward, are resistor networks. They are solved
as such, in O(n m^2 + m^3) instead of O(n^3 m^3) operations.

All arrays have the batch last.

References:
  Amos, Kolter, "OptNet: Differentiable Optimization as a Layer in Neural
  Networks", ICML 2017.
  Blondel et al., "Efficient and Modular Implicit Differentiation", NeurIPS 2022
  (jaxopt).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deepemd_jax.emd import resistor_network
from deepemd_jax.emd.interior_point_step import State, accept

_BACKOFF = 0.995  # share of the way to the boundary that a step goes
_PATIENCE, _NEAR = 5, 1e-4  # see `interior_point_step.Options`


class QuadraticProgram(NamedTuple):
  """The program min_X ridge / 2 |X|^2 + <cost, X> price, given the sums of X.

  The price of a unit of cost is 1, or it depends on the cost itself:

      price = (base + coupling <cost, X>) / scale

  Attributes:
    cost: [n, m, B], scaled.
    a: [n, B], row sums.
    b: [m, B], column sums, the heaviest last.
    ridge: [n, m, B], weights of the squared flow.
    base: [B], see the price.
    scale: [B], see the price.
    coupling: [B], 1 if the price depends on the cost, else 0.
  """

  cost: jax.Array
  a: jax.Array
  b: jax.Array
  ridge: jax.Array
  base: jax.Array
  scale: jax.Array
  coupling: jax.Array

  def price(self, flow):
    """Returns the price [B] of a unit of cost at a flow [n, m, B]."""
    spent = (self.cost * flow).sum((0, 1))
    return (self.base + self.coupling * spent) / self.scale


class Solution(NamedTuple):
  """A solution, or a vector of the same shape.

  Attributes:
    flow: [n, m, B].
    f: [n, B], row potentials.
    g: [m, B], column potentials.
    price: [B], the price of a unit of cost.
  """

  flow: jax.Array
  f: jax.Array
  g: jax.Array
  price: jax.Array


def _slack(solution: Solution, program: QuadraticProgram):
  flow, f, g, price = solution
  return program.cost * price + program.ridge * flow - f[:, None] - g


def _least_ridge(dtype) -> float:
  """Returns the least ridge, which bounds the conductances, as
  `interior_point_step.Options.proximal` does."""
  return 1e-12 if dtype == jnp.float64 else 1e-6


def optimality(solution: Solution, program: QuadraticProgram) -> Solution:
  """Returns the KKT residual, which is 0 at the solution.

  As on the central path, complementarity is X S = mu, with the products mu at
  which the solver ended. Nodes without mass have no flow.
  """
  flow = solution.flow
  active = flow > 0
  safe = jnp.where(active, flow, 1)
  slack = _slack(solution, program)
  product = lax.stop_gradient(
    safe * jnp.maximum(slack, _least_ridge(flow.dtype) * safe)
  )
  residual = jnp.where(active, slack - product / safe, flow)
  active_flow = jnp.where(active, flow, 0)
  return Solution(
    residual,
    program.a - active_flow.sum(1),
    program.b - active_flow.sum(0),
    program.price(active_flow) - solution.price,
  )


def solve_kkt(matvec, right: Solution) -> Solution:
  """Solves matvec(x) = right, where matvec is the transposed KKT Jacobian.

  Calls of matvec determine the parts of the Jacobian. With the conductances D,
  matvec maps (w, y, z, h) to

      (w / D - y - z + h k, -w 1, -w^T 1, <cost, w> - h)
  """
  zero = jax.tree.map(jnp.zeros_like, right)
  probe = lambda **one: matvec(zero._replace(**one)).flow  # noqa: E731
  active = probe(f=jnp.ones_like(right.f)) != 0
  resistance = probe(flow=jnp.ones_like(right.flow))
  k = probe(price=jnp.ones_like(right.price))
  spent = lambda w: matvec(zero._replace(flow=w)).price  # noqa: E731
  conductance = jnp.where(active, 1 / resistance, 0)
  leaks = (jnp.full_like(x, 1e-9) for x in (right.f, right.g))
  network = _Network.of(conductance, *leaks)

  first = network.respond(conductance * right.flow, -right.f, -right.g)
  second = network.respond(conductance * k, 0 * right.f, 0 * right.g)
  h = (spent(first[0]) - right.price) / (1 + spent(second[0]))
  w, y, z = (x - h * more for x, more in zip(first, second, strict=True))
  # Cells of nodes without mass are not part of the network.
  return Solution(jnp.where(active, w, right.flow), y, z, h)


class _Network(NamedTuple):
  """A conductance matrix [n, m, B] and its elimination."""

  conductance: jax.Array
  eliminated: resistor_network.Network
  ones: jax.Array

  @classmethod
  def of(cls, conductance, leak_a, leak_b):
    ones = resistor_network.ones(leak_a, len(leak_b))
    eliminated = resistor_network.eliminate(conductance, leak_a, leak_b, ones)
    return cls(conductance, eliminated, ones)

  def respond(self, target, into_rows, into_columns):
    """Returns target + D (u + v) with the given sums, and u and v."""

    def refine(_, currents):
      return resistor_network.refine(
        *(self.eliminated, self.conductance, currents),
        *(into_rows, into_columns, self.ones),
      )

    start = target, 0 * into_rows, 0 * into_columns
    # One solve and two refinements of it.
    return lax.fori_loop(0, 3, refine, start)


def solve(program: QuadraticProgram, max_steps: int):
  """Solves the program.

  Args:
    program: the problems.
    max_steps: bound on the iterations.

  Returns:
    The `Solution`, and a pair: the steps [B], and whether the problems
    converged, [B] bool.
  """
  dtype = program.cost.dtype
  tolerance = 1e-12 if dtype == jnp.float64 else 1e-7

  def unfinished(carry):
    count, state = carry
    return (count < max_steps) & ~state.done.all()

  def advance(carry):
    count, state = carry
    return count + 1, _step(state, program, tolerance)

  _, state = lax.while_loop(unfinished, advance, (0, _start(program)))
  flow, f, g = state.best
  mass = program.b.sum(0)
  close = 1e-9 if dtype == jnp.float64 else 2e-5
  converged = state.left <= close * mass
  return Solution(flow, f, g, program.price(flow)), (state.steps, converged)


def _start(program: QuadraticProgram) -> State:
  """Returns a strictly feasible point."""
  flow = program.a[:, None] * program.b / program.a.sum(0)
  gradient = program.cost * program.price(flow) + program.ridge * flow
  f = gradient.min(1) - 0.1
  g = (gradient - f[:, None]).min(0) - 0.1
  zero = jnp.where(program.scale > 0, 0, 0)
  return State(
    flow=flow,
    slack=gradient - f[:, None] - g,
    f=f,
    g=g,
    left=jnp.where(program.scale > 0, jnp.inf, program.scale),
    best=(flow, f, g),
    idle=zero,
    steps=zero,
    done=zero > 0,
  )


def _step(state: State, program: QuadraticProgram, tolerance: float) -> State:
  """Takes one predictor-corrector step.

  f, g and the flow have one step length, because the slack depends on all
  three.
  """
  flow, slack = state.flow, state.slack
  cost, a, b, ridge, _, scale, coupling = program
  least = _least_ridge(flow.dtype)
  conductance = 1 / (slack / flow + jnp.maximum(ridge, least))
  leak = 1e-9 if flow.dtype == jnp.float64 else 1e-3
  network = _Network.of(conductance, leak * a, leak * b)
  lacks = a - flow.sum(1), b - flow.sum(0)
  # The changes that one more unit of price would cause.
  dearer = network.respond(conductance * cost, 0 * a, 0 * b)

  def direction(target):
    """Returns changes of flow, slack, f, g for `target` and the marginals."""
    response = network.respond(target, *lacks)
    spent, more = ((cost * x[0]).sum((0, 1)) for x in (response, dearer))
    rise = coupling * spent / (scale + coupling * more)
    change, u, v = (x - rise * y for x, y in zip(response, dearer, strict=True))
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
  point = (
    flow + far * change,
    slack + far * lift,
    state.f + far * u,
    state.g + far * v,
  )
  return _judge(state, point, program, tolerance)


def _judge(state: State, point, program: QuadraticProgram, tolerance: float):
  """Returns the next state, given the next flow, slack, f and g."""
  flow, slack = point[:2]
  mass = program.b.sum(0)
  gap = (flow * slack).sum((0, 1))
  wrong_a = abs(program.a - flow.sum(1)).sum(0)
  wrong_b = abs(program.b - flow.sum(0)).sum(0)
  left = gap + (wrong_a + wrong_b)
  rounding = 4 * float(jnp.finfo(flow.dtype).eps) * mass
  return accept(
    state,
    point,
    left=left,
    near=_NEAR * mass,
    close=left <= tolerance * mass + rounding,
    patience=_PATIENCE,
  )
