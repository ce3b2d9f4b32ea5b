"""The resistor network of a transport problem, and its elimination.

The normal equations of an interior point step on the transport polytope are the
Laplacian of a bipartite network: nodes are rows and columns, D_ij conducts. Its
nodes are eliminated, rows in closed form, columns in turn, by star-mesh
transforms, which ADD a conductance between any two neighbors of a node that
goes. Degrees are summed up from conductances, never updated: nothing is
subtracted, so nothing cancels, and float32 suffices where a Cholesky
factorisation breaks down.

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

_PIVOTS = 4  # columns eliminated per pass over the network
_UNROLLED = 64  # longest sum that is written out; see `_fold`


def heaviest_last(b) -> Callable:
  """A function that swaps the heaviest column and the last; its own inverse.

  The last column is the network's ground, and a heavy node is a good one: with
  one that is hardly connected a common offset would drown all voltages.
  """
  heaviest = jnp.arange(len(b))[:, None] == jnp.argmax(b, 0)

  def swap(x):  # [..., m, B]
    chosen = jnp.where(heaviest, x, 0).sum(-2)
    return jnp.where(heaviest, x[..., -1:, :], x).at[..., -1, :].set(chosen)

  return swap


class Network(NamedTuple):
  """The bipartite network with all nodes but the last column eliminated.

  Attributes:
    degree: [n, B], row sums of the conductances.
    share: [n, m, B], conductances / degree.
    spread: [m, m, B], below the diagonal: how much of a current into column c
      arrives at column j > c when c is eliminated.
    total: [m, B], degree of a column when its turn came; infinite for the
      ground, and for who else has no neighbor left.
  """

  degree: jax.Array
  share: jax.Array
  spread: jax.Array
  total: jax.Array


def eliminate(conductance, leak_a, leak_b, ones) -> Network:
  """Eliminates the rows, then the columns; leaks go into the ground."""
  n, m, _ = conductance.shape
  conductance = conductance.at[:, -1].add(leak_a)
  degree = stored(or_one(summed(conductance, 1)), ones)
  share = conductance / degree[:, None]
  mesh = functools.reduce(
    operator.add, (share[i][:, None] * conductance[i] for i in range(n))
  )

  mesh = mesh.at[:, -1].add(leak_b)

  def eliminate(i, state):
    return _eliminate_columns(*state, i * _PIVOTS, _PIVOTS, ones)

  passes, rest = divmod(m - 1, _PIVOTS)
  state = mesh, mesh[0] * 0
  if passes:
    state = lax.fori_loop(0, passes, eliminate, state)
  mesh, total = _eliminate_columns(*state, passes * _PIVOTS, rest, ones)
  row, column = jnp.arange(m)[:, None, None], jnp.arange(m)[:, None]
  return Network(
    degree=degree,
    share=share,
    spread=jnp.where((column < row) & (row < m - 1), mesh, 0),
    total=jnp.where(total > 0, total, jnp.inf),
  )


def _eliminate_columns(mesh, totals, start, count, ones):
  """Star-mesh transforms of columns start, ..., start + count - 1.

  Above its diagonal the mesh holds conductances between columns; below it, in
  place of those of columns that are gone, what `Network.spread` says.
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
  """Potentials u, v whose currents D_ij (u_i + v_j) have the given sums."""
  degree, share, spread, total = network
  load = stored(summed(share * into_rows[:, None], 0) - into_columns, ones)
  voltage = (load + summed(spread * load, 1)) / total
  voltage = stored(voltage + summed(spread * voltage[:, None], 0), ones)
  u = stored(into_rows / degree + summed(share * voltage, 1), ones)
  return u, -voltage


def ones(a, m: int):
  """[max(n, m), B] ones for `stored`, which the compiler takes for data."""
  shape = max(len(a), m), *a.shape[1:]
  return jnp.broadcast_to(jnp.where(a[:1] >= 0, 1, a[:1]), shape)


def stored(x, ones):
  """x, [k, B] or [B], computed once.

  A vector that meets a matrix is wanted once per row. Rather than store it, XLA
  for CPUs computes it each time, and what it is made of, unless it ends in a
  division, which passes for expensive. Without this, steps take ten times as
  long; optimization_barrier is gone before it could help.
  """
  return x / (ones[: len(x)] if x.ndim == 2 else ones[0])


def summed(x, axis):
  return _fold(operator.add, x, axis)


def _fold(operation, x, axis):
  """Reduces an axis that is not the last.

  Written out, XLA for CPUs makes one vectorized pass of it, several times
  faster than of its own reductions. It grows the program, hence the limit.
  """
  if x.shape[axis] > _UNROLLED:
    whole = {operator.add: jnp.sum, jnp.maximum: jnp.max}
    return whole[operation](x, axis)
  parts = (lax.index_in_dim(x, i, axis, False) for i in range(x.shape[axis]))
  return functools.reduce(operation, parts)


def reach(x, change):
  """[B], the largest step, up to 1, that keeps x + step * change >= 0."""
  fall = -change / jnp.maximum(x, 1e-30)
  return 1 / jnp.maximum(_fold(jnp.maximum, _fold(jnp.maximum, fall, 0), 0), 1)


def or_one(degree):
  """Nodes without a connection keep a harmless divisor."""
  return jnp.where(degree > 0, degree, 1)
