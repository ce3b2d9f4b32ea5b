"""The interior point method for problems of more than 63 nodes a side.

Each problem is a matrix of its own, and the backend's matrix products do most
of the work. The columns are eliminated by star-mesh transforms, as in
`resistor_network`, but panel by panel, and block by block within a panel.
Within a small block, the columns are eliminated one after another. The effect
of a block on its panel, or of a panel on the rest of the network, is one
product of two matrices without negative entries. So nothing is subtracted here,
either.
"""

import functools

import jax
import jax.numpy as jnp
from jax import export, lax

from deepemd_jax.emd import interior_point_single
from deepemd_jax.emd.interior_point_step import Options
from deepemd_jax.emd.resistor_network import Network, heaviest_last, or_one

_BLOCK = 8  # columns
_PANEL = 128  # columns, at least
_MOST_PANELS = 4  # the loop over panels is unrolled, so each must be compiled
_CELLS = 2**18  # cells of problems that advance together; they fit a CPU cache
_CORRECTORS = 2  # more correctors would save steps, but no time

_product = functools.partial(jnp.matmul, precision="highest")


def iterate(cost, a, b, moved_mass, leak, *, options: Options):
  """Does what `interior_point_step.iterate` does, with one block.

  Args:
    cost: [n, m, B], scaled.
    a: [n, B], row sums.
    b: [m, B], column sums.
    moved_mass: [B]; a negative value skips the problem.
    leak: [B], a factor of `options.leak`.
    options: tolerance, steps and the strengths of the proximal terms.

  Returns:
    Flow [n, m, B], potentials [n, B] and [m, B], and steps [B].
  """
  n, m, count = cost.shape
  if m > n:  # columns cost more time, so they become the shorter side
    transposed = cost.swapaxes(0, 1), b, a, moved_mass, leak
    flow, g, f, steps = iterate(*transposed, options=options)
    return flow.swapaxes(0, 1), f, g, steps
  swap = heaviest_last(b)
  first = lambda x: jnp.moveaxis(x, -1, 0)  # noqa: E731
  last = lambda x: jnp.moveaxis(x, 0, -1)  # noqa: E731
  arguments = tuple(map(first, (swap(cost), a, swap(b), moved_mass, leak)))
  one = functools.partial(
    interior_point_single.iterate,
    eliminate=eliminate,
    potentials=potentials,
    options=options,
    correctors=_CORRECTORS,
  )
  together = max(1, _CELLS // (n * m))
  if export.is_symbolic_dim(count) or count <= together:
    outputs = jax.vmap(one)(*arguments)
  else:
    outputs = lax.platform_dependent(
      *arguments,
      cpu=lambda *x: lax.map(lambda y: one(*y), x, batch_size=together),
      default=jax.vmap(one),
    )
  flow, f, g, steps = map(last, outputs)
  return swap(flow), f, swap(g), steps


def eliminate(conductance, leak_a, leak_b) -> Network:
  """Does what `resistor_network.eliminate` does, for one problem.

  Args:
    conductance: [n, m], >= 0.
    leak_a: [n], further conductance from each row to the ground.
    leak_b: [m], further conductance from each column to the ground.
  """
  m = conductance.shape[1]
  conductance = conductance.at[:, -1].add(leak_a)
  degree = or_one(conductance.sum(1))
  share = conductance / degree[:, None]
  # Columns without neighbors fill up the last block. Their elimination changes
  # nothing. Neither does that of the ground, which then has no neighbors left.
  spare = [(0, 0), (0, -m % _BLOCK)]
  leaks = jnp.zeros((m, m), share.dtype).at[:, -1].set(leak_b)
  spread, total = _eliminate_columns(
    jnp.pad(share, spare),
    jnp.pad(conductance, spare),
    jnp.pad(leaks, [spare[1], spare[1]]),
  )
  spread, total = spread[:m, :m], total[:m]
  row, column = jnp.arange(m)[:, None], jnp.arange(m)
  return Network(
    degree=degree,
    share=share,
    spread=jnp.where(row < m - 1, spread, 0),
    total=jnp.where((total > 0) & (column < m - 1), total, jnp.inf),
  )


def _eliminate_columns(share, conductance, leaks):
  """Eliminates all columns of the mesh share^T conductance + leaks.

  This is done panel by panel. A row of the mesh is computed when its column is
  about to be eliminated, from the rows of the columns before it.

  Args:
    share: [n, m].
    conductance: [n, m].
    leaks: [m, m], conductances between the columns and the ground.

  Returns:
    `Network.spread`, [m, m], and the totals, [m].
  """
  m = len(leaks)
  count = min(_MOST_PANELS, max(1, m // _PANEL))
  size = -(-m // (count * _BLOCK)) * _BLOCK
  spread, totals = leaks[:0, :0], []
  pairs = [(share, conductance)]  # the mesh of later columns is their product
  for first in range(0, m, size):
    own = slice(0, min(size, m - first))  # columns, counted from `first`
    shares = [x[:, own].T for x, _ in pairs]
    rows = leaks[first:, first:][own]
    for x, (_, y) in zip(shares, pairs, strict=True):
      rows = rows + _product(x, y)
    rows, total = _eliminate_panel(rows)
    within, later = jnp.tril(rows[:, own], -1), rows[:, own.stop :]
    # The shares that arrive from the columns of earlier panels, first directly,
    # then also through other columns.
    before = jnp.concatenate([leaks[own, :0], *shares[1:]], 1)
    before = before + _product(before, spread)
    before = before + _product(within, before)
    zeros = jnp.zeros((first, own.stop), leaks.dtype)
    spread = jnp.block([[spread, zeros], [before, within]])
    totals.append(total)
    pairs = [(x[:, own.stop :], y[:, own.stop :]) for x, y in pairs]
    pairs.append((later / or_one(total)[:, None], later))
  return spread, jnp.concatenate(totals)


def _eliminate_panel(rows):
  """Eliminates the first columns of a mesh, block by block.

  Args:
    rows: [k, m], the first rows of the mesh. Their columns are eliminated.

  Returns:
    The rows [k, m] and the totals [k]. Above its diagonal, each row has the
    values that it had before its elimination. Below its diagonal is
    `Network.spread`.
  """
  k, m = rows.shape
  column, row = jnp.arange(m), jnp.arange(k)[:, None]

  def eliminate(i, state):
    mesh, totals = state
    first = i * _BLOCK
    own = first + jnp.arange(_BLOCK)[:, None]
    rows = lax.dynamic_slice_in_dim(mesh, first, _BLOCK)
    block = lax.dynamic_slice_in_dim(rows, first, _BLOCK, 1)
    later = column >= first + _BLOCK
    beyond = jnp.where(later, rows, 0).sum(1)
    block, arriving, total = _eliminate_within(block, beyond)
    rows = _product(arriving, rows)
    rows = lax.dynamic_update_slice_in_dim(rows, block, first, 1)
    part = jnp.where(later[:k], rows[:, :k], 0) / or_one(total)[:, None]
    # This eliminates the block's columns from later rows. Conductances within
    # the block do not affect later rows.
    within = (column >= first) & ~later
    passed = jnp.where(within & (column > own), 0, rows)
    passed = jnp.where(column == own, 1, passed)
    mesh = jnp.where(within & (row >= first), 0, mesh)
    mesh = mesh + _product(part.T, passed)
    put = functools.partial(
      lax.dynamic_update_slice_in_dim, start_index=first, axis=0
    )
    return put(mesh, rows), put(totals, total)

  return lax.fori_loop(0, k // _BLOCK, eliminate, (rows, 0 * rows[:, 0]))


def _eliminate_within(block, beyond):
  """Eliminates the columns of a block, one after another.

  Args:
    block: [k, k], the conductances between its columns.
    beyond: [k], the sums of the conductances to later columns. One node can
      stand for all later columns.

  Returns:
    The block's part of the mesh, [k, k]; the share of each row's conductances
    that has arrived at each row before its elimination, [k, k], with ones on
    the diagonal; and the totals, [k].
  """
  k = len(block)
  column, row = jnp.arange(k), jnp.arange(k)[:, None]

  def eliminate(t, state):
    block, beyond, arriving, totals = state
    pick = functools.partial(lax.dynamic_index_in_dim, index=t, keepdims=False)
    own, far = pick(block), pick(beyond)
    to_later = jnp.where(column > t, own, 0)
    total = to_later.sum() + far
    part = to_later / or_one(total)
    block = block + part[:, None] * to_later
    beyond = beyond + part * far
    arriving = arriving + part[:, None] * pick(arriving)
    return block, beyond, arriving, jnp.where(column == t, total, totals)

  arriving = jnp.where(row == column, 1, 0 * block)
  state = block, beyond, arriving, 0 * beyond
  block, _, arriving, totals = lax.fori_loop(0, k, eliminate, state)
  return jnp.where(column < row, arriving, block), arriving, totals


def potentials(conductance, network: Network, into_rows, into_columns):
  """Does what `resistor_network.potentials` does, for one problem."""
  del conductance
  degree, share, spread, total = network
  load = _product(into_rows, share) - into_columns
  voltage = (load + _product(spread, load)) / total
  voltage = voltage + _product(voltage, spread)
  return into_rows / degree + _product(share, voltage), -voltage
