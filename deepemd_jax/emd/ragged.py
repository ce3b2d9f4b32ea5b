"""Collections of measures of different sizes: checks, and groups of one size.

A measure consists of a support and weights. The support is a cloud of points,
or the indices of bins that the measures share.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_REAL = (jnp.floating, jnp.integer, jnp.bool_)
# The candidates for the largest ratio of two sizes in a group. A group is
# padded to its largest size.
_RATIOS = (1.5, 2.0, 4.0, np.inf)


@dataclasses.dataclass(frozen=True)
class Measure:
  """A measure of finitely many points.

  Attributes:
    support: [n, d] points, or [n] indices of bins.
    weights: [n], above 0.
  """

  support: np.ndarray
  weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Group:
  """Measures padded to one size, with points of weight 0.

  Attributes:
    index: [k], the indices of the measures in their collection.
    supports: [k, n, ...]; the padding of a measure repeats its first point.
    weights: [k, n]; the padding is 0.
  """

  index: np.ndarray
  supports: np.ndarray
  weights: np.ndarray


def clouds(name, items, weights_name, weights) -> list[Measure]:
  """Checks weighted point clouds and drops points of weight 0.

  Args:
    name: the name of the argument `items`, for messages.
    items: clouds [n, d], each with its own n.
    weights_name: the name of the argument `weights`, for messages.
    weights: weights [n] of each cloud; None gives all points the same weight.

  Raises:
    ValueError: a cloud or its weights are invalid; the message names them.
  """
  if weights is not None and len(weights) != len(items):
    raise ValueError(
      f"{weights_name} has weights of {len(weights)} clouds, but {name} has "
      f"{len(items)} clouds; give weights for each cloud"
    )
  measures, dimension = [], None
  for i, item in enumerate(items):
    points, label = np.asarray(item), f"{name}[{i}]"
    if points.ndim != 2 or 0 in points.shape:
      raise ValueError(
        f"{label} has shape {points.shape}; a cloud must be [points, "
        "coordinates], at least one of each"
      )
    dimension = dimension or points.shape[1]
    if points.shape[1] != dimension:
      raise ValueError(
        f"{label} has points of {points.shape[1]} coordinates and {name}[0] of "
        f"{dimension}; both numbers must be equal"
      )
    if not np.isfinite(points).all():
      worst = points[~np.isfinite(points)][0]
      raise ValueError(
        f"{label} has the coordinate {worst}; use finite coordinates"
      )
    if weights is None:
      mass = np.ones(len(points), np.int8)
    else:
      label = f"{weights_name}[{i}]"
      mass = check_masses(label, weights[i], len(points))
    measures.append(Measure(points[mass > 0], mass[mass > 0]))
  return measures


def histograms(name, items, bins: int) -> list[Measure]:
  """Checks histograms [bins] and returns measures of their nonempty bins.

  Raises:
    ValueError: a histogram is invalid; the message names it.
  """
  measures = []
  for i, item in enumerate(items):
    mass = check_masses(f"{name}[{i}]", item, bins)
    support = np.flatnonzero(mass)
    measures.append(Measure(support.astype(np.int32), mass[support]))
  return measures


def check_masses(label: str, masses, size: int) -> np.ndarray:
  """Returns masses [size] as an array.

  Raises:
    ValueError: the number of masses is not `size`, a mass is negative or not
      finite, or all masses are 0.
  """
  masses = np.asarray(masses)
  if masses.shape != (size,):
    raise ValueError(f"{label} has shape {masses.shape}; it must be ({size},)")
  if not np.isfinite(masses).all() or (masses < 0).any():
    worst = masses[~(masses >= 0) | ~np.isfinite(masses)][0]
    raise ValueError(f"{label} has the weight {worst}; use finite weights >= 0")
  if not masses.any():
    raise ValueError(f"{label} has no weight above 0; leave that item out")
  return masses


def common_dtype(arrays) -> np.dtype:
  """Returns float64 if an array has it and JAX has it enabled, else float32.

  Raises:
    ValueError: an array does not contain real numbers.
  """
  kinds = {np.dtype(x.dtype) for x in arrays}
  for kind in kinds:
    if not any(jnp.issubdtype(kind, real) for real in _REAL):
      raise ValueError(f"all numbers must be real; some are {kind}")
  # pyrefly: ignore[missing-attribute]: JAX adds its settings when it is loaded
  wide = np.dtype(np.float64) in kinds and jax.config.jax_enable_x64
  return np.dtype(np.float64 if wide else np.float32)


def group_by_size(
  collections: Sequence[list[Measure]], dtype, program_entries: int
) -> list[list[Group]]:
  """Sorts collections into groups of similar sizes.

  Few groups waste work on padding. Many groups need many programs, because each
  pair of groups needs its own. The function compares a few groupings and takes
  the one that costs least.

  Args:
    collections: the two collections whose pairs are computed.
    dtype: the dtype of the weights, and of points.
    program_entries: the number of entries of cost matrices that can be solved
      in the time that a program takes to compile.

  Returns:
    The groups of each collection.
  """
  sizes = [[len(x.weights) for x in measures] for measures in collections]

  def total_cost(ratio):
    entries = programs = 1
    for each in sizes:
      groups = _split(each, ratio)
      programs *= len(groups)
      entries *= sum(len(i) * each[i[-1]] for i in groups)
    return entries + programs * program_entries

  ratio = min(_RATIOS, key=total_cost)
  return [
    [_pad(measures, index, dtype) for index in _split(each, ratio)]
    for measures, each in zip(collections, sizes, strict=True)
  ]


def _split(sizes, ratio) -> list[np.ndarray]:
  """Sorts indices by size and splits them into groups, in which the largest
  size is at most `ratio` times the smallest."""
  order = np.argsort(sizes, kind="stable")
  groups: list[list[int]] = []
  for i in order:
    if not groups or sizes[i] > ratio * sizes[groups[-1][0]]:
      groups.append([])
    groups[-1].append(i)
  return [np.array(group) for group in groups]


def _pad(measures, index, dtype) -> Group:
  chosen = [measures[i] for i in index]
  n, first = len(chosen[-1].weights), chosen[0].support
  kind = dtype if first.ndim == 2 else first.dtype
  supports = np.empty((len(index), n, *first.shape[1:]), kind)
  weights = np.zeros((len(index), n), dtype)
  for row, measure in enumerate(chosen):
    size = len(measure.weights)
    supports[row, :size] = measure.support
    # A padding of zeros could be a distant point, which would set the unit of
    # all costs.
    supports[row, size:] = measure.support[0]
    weights[row, :size] = measure.weights
  return Group(index, supports, weights)
