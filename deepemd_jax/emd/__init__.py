"""The exact, batched, differentiable Earth Mover's Distance.

Functions: `distance` returns the value, with its gradient. `distance_and_flow`
also returns the optimal flow. `solve` returns a `Plan`, which says how exact it
is. `wasserstein` compares point clouds, and `pairwise` compares all pairs of a
collection.

Solvers: `NetworkSimplex` and `InteriorPoint` are exact. `RegularizedQP` and
`Sinkhorn` are for comparison.

Importing this package does not load JAX. The first use of a name does.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from deepemd_jax.emd.all_pairs import pairwise
  from deepemd_jax.emd.api import distance, distance_and_flow, solve
  from deepemd_jax.emd.interior_point import InteriorPoint
  from deepemd_jax.emd.network_simplex import NetworkSimplex
  from deepemd_jax.emd.point_clouds import wasserstein
  from deepemd_jax.emd.problem import Plan
  from deepemd_jax.emd.regularized_qp import RegularizedQP
  from deepemd_jax.emd.sinkhorn import Sinkhorn

_SUBMODULES = ("api", "solvers")
_MODULES = {
  "InteriorPoint": "interior_point",
  "NetworkSimplex": "network_simplex",
  "Plan": "problem",
  "RegularizedQP": "regularized_qp",
  "Sinkhorn": "sinkhorn",
  "distance": "api",
  "distance_and_flow": "api",
  "pairwise": "all_pairs",
  "solve": "api",
  "wasserstein": "point_clouds",
}
__all__ = [
  "InteriorPoint",
  "NetworkSimplex",
  "Plan",
  "RegularizedQP",
  "Sinkhorn",
  "distance",
  "distance_and_flow",
  "pairwise",
  "solve",
  "wasserstein",
]


def __getattr__(name: str):
  if name in _SUBMODULES:
    return importlib.import_module(f"{__name__}.{name}")
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
  globals()[name] = value = getattr(module, name)  # so this runs only once
  return value


def __dir__():
  return sorted({*globals(), *__all__, *_SUBMODULES})
