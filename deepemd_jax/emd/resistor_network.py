"""The resistor network of a transport problem, and its elimination.

The matrix of the normal equations of an interior point step on the transport
polytope is the Laplacian of a bipartite network. Its nodes are the rows and
columns, and D_ij is the conductance between row i and column j. The rows are
eliminated in closed form, and the columns one after another, by star-mesh
transforms. Such a transform removes a node and ADDS a conductance between any
two of its neighbors. Degrees are summed from conductances, never updated. Since
nothing is subtracted, nothing cancels, and float32 suffices where a Cholesky
factorization breaks down.

All arrays have the batch last: [n, m, B], [n, B], [m, B].

References:
  Grassmann, Taksar, Heyman, "Regenerative Analysis and Steady State
  Distributions for Markov Chains", Operations Research 33(5), 1985 (elimination
  without subtraction).
"""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_COLUMNS_A_PASS = 4  # columns eliminated in one pass over the network
_LONGEST_UNROLLED = 64  # terms of a sum that is written out; see `_fold`


def heaviest_last(b) -> Callable:
  """Returns a function that swaps the heaviest column [..., m, B] and the last.

  The function is its own inverse. The last column is the network's ground. A
  heavy node is a good ground: with a ground that is weakly connected, a common
  offset would dominate all voltages.

  Args:
    b: [m, B], masses of the columns.
  """
  heaviest = jnp.arange(len(b))[:, None] == jnp.argmax(b, 0)

  def swap(x):  # [..., m, B]
    column = jnp.where(heaviest, x, 0).sum(-2)
    return jnp.where(heaviest, x[..., -1:, :], x).at[..., -1, :].set(column)

  return swap


class Network(NamedTuple):
  """The bipartite network with all nodes but the last column eliminated.

  Attributes:
    degree: [n, B], row sums of the conductances.
    share: [n, m, B], conductances / degree.
    spread: [m, m, B], below the diagonal: the share of a current into column c
      that arrives at column j > c when c is eliminated.
    total: [m, B], degree of a column when it is eliminated; infinite for the
      ground, and for a column without remaining neighbors.
  """

  degree: jax.Array
  share: jax.Array
  spread: jax.Array
  total: jax.Array


def eliminate(conductance, leak_a, leak_b, ones) -> Network:
  """Eliminates the rows, then the columns.

  Args:
    conductance: [n, m, B], >= 0.
    leak_a: [n, B], further conductance from each row to the ground.
    leak_b: [m, B], further conductance from each column to the ground.
    ones: [max(n, m), B]; see `ones`.
  """
  n, m, _ = conductance.shape
  conductance = conductance.at[:, -1].add(leak_a)
  degree = stored(or_one(summed(conductance, 1)), ones)
  share = conductance / degree[:, None]
  mesh = functools.reduce(
    operator.add, (share[i][:, None] * conductance[i] for i in range(n))
  )

  mesh = mesh.at[:, -1].add(leak_b)

  def eliminate(i, state):
    mesh, total = state
    start = i * _COLUMNS_A_PASS
    return _eliminate_columns(mesh, total, start, _COLUMNS_A_PASS, ones)

  passes, rest = divmod(m - 1, _COLUMNS_A_PASS)
  total = mesh[0] * 0
  if passes:
    mesh, total = lax.fori_loop(0, passes, eliminate, (mesh, total))
  mesh, total = _eliminate_columns(
    mesh, total, passes * _COLUMNS_A_PASS, rest, ones
  )
  row, column = jnp.arange(m)[:, None, None], jnp.arange(m)[:, None]
  return Network(
    degree=degree,
    share=share,
    spread=jnp.where((column < row) & (row < m - 1), mesh, 0),
    total=jnp.where(total > 0, total, jnp.inf),
  )


def _eliminate_columns(mesh, totals, start, count, ones):
  """Eliminates columns start, ..., start + count - 1 by star-mesh transforms.

  Above its diagonal the mesh [m, m, B] holds conductances between columns.
  Below its diagonal, `Network.spread` replaces the conductances of eliminated
  columns.
  """
  if not count:
    return mesh, totals
  column = jnp.arange(len(mesh))[:, None]
  block = (column >= start) & (column < start + count)
  rows = [
    stored(lax.dynamic_index_in_dim(mesh, start + t, 0, False), ones)
    for t in range(count)
  ]
  mesh = jnp.where(block, 0, mesh)
  for t in range(count):
    k = start + t
    to_later = jnp.where(column > k, rows[t], 0)
    total = stored(summed(to_later, 0), ones)
    part = to_later / or_one(total)
    row = jnp.where(column == k, 1, rows[t])
    for s in range(t + 1, count):
      arriving = lax.dynamic_index_in_dim(part, start + s, 0)
      rows[s] = jnp.where(column == k, 0, rows[s]) + arriving * row
      rows[s] = stored(rows[s], ones)
    row = stored(jnp.where(block & (column > k), 0, row), ones)
    mesh = mesh + part[:, None] * row
    totals = lax.dynamic_update_index_in_dim(totals, total, k, 0)
  mesh = lax.dynamic_update_slice_in_dim(mesh, jnp.stack(rows), start, 0)
  return mesh, totals


def potentials(network, into_rows, into_columns, ones):
  """Computes potentials u [n, B] and v [m, B] whose currents D_ij (u_i + v_j)
  have the given row sums [n, B] and column sums [m, B]."""
  degree, share, spread, total = network
  load = stored(summed(share * into_rows[:, None], 0) - into_columns, ones)
  voltage = (load + summed(spread * load, 1)) / total
  voltage = stored(voltage + summed(spread * voltage[:, None], 0), ones)
  u = stored(into_rows / degree + summed(share * voltage, 1), ones)
  return u, -voltage


def refine(network, conductance, currents, into_rows, into_columns, ones):
  """Corrects currents, so that they have the given sums.

  Args:
    network: the elimination of `conductance`.
    conductance: [n, m, B], D.
    currents: x [n, m, B], u [n, B] and v [m, B].
    into_rows: [n, B], the row sums that x should have.
    into_columns: [m, B], the column sums that x should have.
    ones: [max(n, m), B]; see `ones`.

  Returns:
    x + D (u' + v'), u + u' and v + v'. The first has these sums up to rounding.
    A second call with this result is a step of iterative refinement.
  """
  x, u, v = currents
  more_u, more_v = potentials(
    network,
    stored(into_rows - summed(x, 1), ones),
    stored(into_columns - summed(x, 0), ones),
    ones,
  )
  x = x + conductance * (more_u[:, None] + more_v)
  return x, u + more_u, v + more_v


def ones(a, m: int):
  """Returns ones [max(n, m), B] for `stored`, computed from data, so that the
  compiler does not know their value."""
  shape = max(len(a), m), *a.shape[1:]
  return jnp.broadcast_to(jnp.where(a[:1] >= 0, 1, a[:1]), shape)


def stored(x, ones):
  """Returns x, [k, B] or [B], and makes XLA compute it only once.

  A vector that is combined with a matrix is needed once per row. XLA for CPUs
  does not store such a vector: it computes it again for each row, with all its
  inputs. A division prevents this, because XLA considers divisions expensive.
  Without it, a step takes ten times as long. (`optimization_barrier` does not
  help: XLA removes it too early.)
  """
  return x / (ones[: len(x)] if x.ndim == 2 else ones[0])


def summed(x, axis):
  """Sums along an axis that is not the last."""
  return _fold(operator.add, x, axis)


def _fold(operation, x, axis):
  """Reduces an axis that is not the last.

  XLA for CPUs compiles a reduction that is written out into one vectorized
  pass, which is several times faster than its own reductions. The program
  becomes longer, hence the limit.
  """
  if x.shape[axis] > _LONGEST_UNROLLED:
    reductions = {operator.add: jnp.sum, jnp.maximum: jnp.max}
    return reductions[operation](x, axis)
  parts = (lax.index_in_dim(x, i, axis, False) for i in range(x.shape[axis]))
  return functools.reduce(operation, parts)


def reach(x, change):
  """Returns the largest step, [B], up to 1, that keeps x + step * change >= 0.

  x and change are [n, m, B].
  """
  fall = -change / jnp.maximum(x, 1e-30)
  return 1 / jnp.maximum(_fold(jnp.maximum, _fold(jnp.maximum, fall, 0), 0), 1)


def or_one(degree):
  """Returns `degree`, or 1 where it is 0, a harmless divisor for isolated
  nodes."""
  return jnp.where(degree > 0, degree, 1)
