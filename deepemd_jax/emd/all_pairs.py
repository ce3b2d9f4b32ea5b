"""Distances between all pairs of two collections of measures."""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from deepemd_jax.emd import api, point_clouds, progress_line, ragged
from deepemd_jax.emd.ragged import Group, Measure

# The number of entries of cost matrices that a device solves at a time. On a
# CPU a tile takes some tenths of a second, so that Ctrl-C acts soon. An
# accelerator needs more work at a time.
_CPU_ENTRIES, _ENTRIES = 2**20, 2**23
# The approximate number of entries that are solved in the time of a
# compilation.
_CPU_PROGRAM, _PROGRAM = 10**7, 10**9
_AHEAD = 1  # tiles that are dispatched while another one is computed
_AXIS = "columns"

_Arrays = Sequence | Array | np.ndarray


def pairwise(
  xs: _Arrays,
  ys: _Arrays | None = None,
  a: _Arrays | None = None,
  b: _Arrays | None = None,
  *,
  p: float | int | None = None,
  cost: Array | np.ndarray | None = None,
  solver: api.Solver | None = None,
  progress: bool | Callable[[int, int], object] = False,
) -> Float[np.ndarray, "_ _"]:
  """Computes the distances between all pairs of two collections of measures.

  Without `cost`, the measures are clouds of weighted points, and `wasserstein`
  defines their distance. With `cost`, they are histograms over shared bins, and
  `distance` defines it: if the totals of a pair differ, the smaller one is
  moved. A document, for example, is a cloud of word vectors, or a histogram of
  words with a cost matrix for the vocabulary.

  Measures of similar sizes are padded to one size and solved together on all
  local devices, in blocks of bounded memory. A call cannot be traced and has no
  gradient. Ctrl-C stops it after the current block.

  Args:
    xs: clouds [n_i, d] in a list or an array [k, n, d]. With `cost`, histograms
      [n] in a list or an array [k, n]. Points and bins of weight 0 are skipped.
    ys: the other collection. None compares xs with itself; then each pair is
      solved once, and the diagonal is 0.
    a: weights [n_i] of each cloud in xs, >= 0; None gives all points the same
      weight. Weights count relative to their sum.
    b: weights of the clouds in ys; see a.
    p: the power for clouds, at least 1; see `wasserstein`. None is 2. The word
      mover's distance uses 1.
    cost: [n, m], the cost of moving a unit of mass from a bin of xs to a bin of
      ys. If ys is None, it must be symmetric and nonnegative, with a diagonal
      of 0.
    solver: see `solve`.
    progress: True shows a line on stderr. A function is called after each block
      with the number of solved pairs and the number of all pairs.

  Returns:
    [len(xs), len(ys)], the distances, in float32, or in float64 if an input is
    and JAX has it enabled. A distance is NaN if every plan needs a forbidden
    cost.

  Raises:
    ValueError: an argument is invalid; the message gives its place and value.

  References:
    Kusner et al., "From Word Embeddings To Document Distances", ICML 2015.
  """
  check = _check_clouds if cost is None else _check_histograms
  task = check(xs, ys, a, b, p, cost)
  solver = api.checked(solver)
  with progress_line.reporter(progress) as report:
    return _solve(task, solver, report)


class _Task(NamedTuple):
  """The input of a computation. Clouds have p; histograms have cost [n, m]."""

  rows: list[Measure]
  columns: list[Measure]
  symmetric: bool
  dtype: np.dtype
  p: float | int | None
  cost: np.ndarray | None


def _check_clouds(xs, ys, a, b, p, cost) -> _Task:
  del cost
  p = 2 if p is None else p
  point_clouds.check_power(p)
  if ys is None and b is not None:
    raise ValueError("b is given without ys; give ys, or weight xs by a")
  rows = ragged.clouds("xs", xs, "a", a)
  columns = rows if ys is None else ragged.clouds("ys", ys, "b", b)
  if rows and columns:
    dimensions = [x[0].support.shape[1] for x in (rows, columns)]
    if dimensions[0] != dimensions[1]:
      raise ValueError(
        f"xs has points of {dimensions[0]} coordinates and ys of "
        f"{dimensions[1]}; both numbers must be equal"
      )
  arrays = [x for m in (*rows, *columns) for x in (m.support, m.weights)]
  dtype = ragged.common_dtype(arrays)
  return _Task(rows, columns, ys is None, dtype, p, None)


def _check_histograms(xs, ys, a, b, p, cost) -> _Task:
  if not (p is a is b is None):
    raise ValueError("p, a and b are for clouds; leave them out with cost")
  cost = np.asarray(cost)
  if cost.ndim != 2:
    raise ValueError(f"cost has shape {cost.shape}; it must be [n, m]")
  if np.isnan(cost).any() or (cost == -np.inf).any():
    raise ValueError(
      "cost has NaN or -inf; use finite numbers, or inf to forbid a pair"
    )
  rows = ragged.histograms("xs", xs, cost.shape[0])
  columns = rows
  if ys is not None:
    columns = ragged.histograms("ys", ys, cost.shape[1])
  arrays = [cost, *(m.weights for m in (*rows, *columns))]
  dtype = ragged.common_dtype(arrays)
  cost = cost.astype(dtype)
  if ys is None:
    _check_symmetric(cost)
  return _Task(rows, columns, ys is None, dtype, None, cost)


def _check_symmetric(cost) -> None:
  """Raises an error unless costs [n, n] are symmetric and nonnegative, with a
  diagonal of 0, up to rounding errors."""
  size = np.abs(cost[np.isfinite(cost)]).max(initial=0)
  rounding = 8 * np.finfo(cost.dtype).eps * size
  is_near = functools.partial(np.isclose, rtol=0, atol=rounding)
  square = cost.shape[0] == cost.shape[1]
  # The first comparison takes a tenth of the time of the second.
  if not (square and ((cost == cost.T).all() or is_near(cost, cost.T).all())):
    problem = "is not symmetric"
  elif not is_near(cost.diagonal(), 0).all():
    problem = "has a diagonal that is not 0"
  elif (cost < -rounding).any():
    problem = f"has the entry {cost.min()}, which is below 0"
  else:
    return
  raise ValueError(f"cost {problem}; give ys=xs to solve all pairs")


def _solve(task: _Task, solver, report) -> np.ndarray:
  """Computes the distances [rows, columns]; calls report(done, total)."""
  rows, columns, symmetric, dtype, p, cost = task
  on_cpu = jax.default_backend() == "cpu"
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (_AXIS,))
  program = _program(mesh, cost is None, p, solver)
  cost = np.zeros((1, 1), dtype) if cost is None else cost
  cost = jax.device_put(cost, NamedSharding(mesh, P()))
  left, right = ragged.group_by_size(
    (rows, columns), dtype, _CPU_PROGRAM if on_cpu else _PROGRAM
  )
  entries = _CPU_ENTRIES if on_cpu else _ENTRIES
  tiles = _tiles(left, right, symmetric, entries, mesh.size)
  out = np.zeros((len(rows), len(columns)), dtype)
  total = len(rows) * (len(rows) - 1) // 2 if symmetric else out.size
  done = 0
  for tile, values in _computed(tiles, functools.partial(program, cost)):
    done += _store(out, tile, values, symmetric)
    report(done, total)
  return out


class _Tile(NamedTuple):
  """Rows and columns that are solved together.

  Attributes:
    rows: [i], indices in xs.
    columns: [j], indices in ys.
    wanted: [I, J] bool, the pairs to solve; I >= i and J >= j.
    arguments: supports [I, n, ...] and weights [I, n] of the rows, then
      supports [J, m, ...] and weights [J, m] of the columns.
  """

  rows: np.ndarray
  columns: np.ndarray
  wanted: np.ndarray
  arguments: tuple[np.ndarray, ...]


def _tiles(
  left: list[Group],
  right: list[Group],
  symmetric: bool,
  entries: int,
  devices: int,
) -> Iterator[_Tile]:
  """Yields tiles of all pairs, or of those above the diagonal if symmetric."""
  for p, first in enumerate(left):
    for q, second in enumerate(right):
      if symmetric and q < p:
        continue
      same = symmetric and p == q
      height, width = _shape(first, second, entries, devices)
      for i in range(0, len(first.index), height):
        for j in range(0, len(second.index), width):
          tile = _cut(first, second, i, j, height, width, same)
          if tile.wanted.any():
            yield tile


def _shape(first: Group, second: Group, entries: int, devices: int):
  """Returns the numbers of rows and columns of a tile, which are about equal
  and split the groups evenly."""
  problem = first.weights.shape[1] * second.weights.shape[1]
  pairs = max(1, entries // problem)
  height = _even_part(len(first.index), max(1, round(pairs**0.5)))
  width = _even_part(-(-len(second.index) // devices), max(1, pairs // height))
  height = _even_part(len(first.index), max(1, pairs // width))
  return height, width * devices


def _even_part(count: int, most: int) -> int:
  """Returns the size of equal parts of `count`, each at most `most`."""
  parts = -(-count // most)
  return -(-count // parts)


def _cut(first, second, i, j, height, width, same: bool) -> _Tile:
  rows, columns = first.index[i : i + height], second.index[j : j + width]
  wanted = np.zeros((height, width), bool)
  wanted[: len(rows), : len(columns)] = True
  if same:
    wanted &= (i + np.arange(height))[:, None] < j + np.arange(width)
  arguments = [
    _slice(x, start, count)
    for group, start, count in ((first, i, height), (second, j, width))
    for x in (group.supports, group.weights)
  ]
  return _Tile(rows, columns, wanted, tuple(arguments))


def _slice(x: np.ndarray, start: int, count: int) -> np.ndarray:
  """Returns `count` rows. Missing rows are 0, so all tiles have one shape."""
  x = x[start : start + count]
  return np.pad(x, [(0, count - len(x)), *[(0, 0)] * (x.ndim - 1)])


@functools.lru_cache(maxsize=64)
def _program(mesh, of_clouds: bool, p, solver):
  """Returns a function that computes the values [I, J] of a tile.

  Each device solves some columns. The function is compiled once for each shape,
  however often `pairwise` is called.
  """

  def values(cost, x, a, y, b, wanted):
    # Pairs that are not wanted get no mass, so that they take no time.
    a = jnp.where(wanted[..., None], a[:, None], 0)
    x, y, b = x[:, None], y[None], b[None]
    if of_clouds:
      return point_clouds.wasserstein(x, y, a, b, p, solver)
    return api.distance(cost[x[..., None], y[:, :, None]], a, b, solver)

  spread = P(_AXIS)
  return jax.jit(
    jax.shard_map(
      values,
      mesh=mesh,
      in_specs=(P(), P(), P(), spread, spread, P(None, _AXIS)),
      out_specs=P(None, _AXIS),
      check_vma=False,  # loops of third-party solvers do not pass it
    )
  )


def _computed(tiles, program):
  """Yields tiles with their values. The next tile is dispatched before this
  function waits for the values of the current one."""
  waiting: collections.deque = collections.deque()
  for tile in tiles:
    waiting.append((tile, program(*tile.arguments, tile.wanted)))
    if len(waiting) > _AHEAD:
      tile, values = waiting.popleft()
      yield tile, np.asarray(values)
  for tile, values in waiting:
    yield tile, np.asarray(values)


def _store(out: np.ndarray, tile: _Tile, values, symmetric: bool) -> int:
  """Writes the values of a tile and returns the number of its pairs."""
  i, j = np.nonzero(tile.wanted)
  rows, columns = tile.rows[i], tile.columns[j]
  out[rows, columns] = values[i, j]
  if symmetric:
    out[columns, rows] = values[i, j]
  return len(i)
