"""The exact, batched, differentiable Earth Mover's Distance."""

from deepemd_jax.emd.api import distance, solve
from deepemd_jax.emd.interior_point import InteriorPoint
from deepemd_jax.emd.network_simplex import NetworkSimplex
from deepemd_jax.emd.problem import Plan
from deepemd_jax.emd.regularized_qp import RegularizedQP
from deepemd_jax.emd.sinkhorn import Sinkhorn

__all__ = [
  "InteriorPoint",
  "NetworkSimplex",
  "Plan",
  "RegularizedQP",
  "Sinkhorn",
  "distance",
  "solve",
]
