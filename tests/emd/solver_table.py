"""The solvers whose promises are tested. A new solver gets a row here."""

import dataclasses
from typing import Any

import pytest

from deepemd_jax import emd
from deepemd_jax.emd import solvers


@dataclasses.dataclass(frozen=True)
class Row:
  """A solver and its promises.

  Attributes:
    solver: the solver.
    exact: whether it solves the problem itself, and not a smoothed one.
    float64: whether it accepts float64.
    widest: the largest cost with which it always converges, if the other costs
      are about 1. With larger ones it may not converge.
    derivative_error: the largest difference of its gradient from finite
      differences, in float64.
    passes_vma_check: whether it passes JAX's check of which values vary over
      the devices of a shard_map. Pallas's interpreter and ott do not.
  """

  solver: Any
  exact: bool = True
  float64: bool = True
  widest: float = 1e30
  derivative_error: float = 1e-6
  passes_vma_check: bool = True

  @property
  def x64(self) -> bool:
    """Whether tests use float64: they do for smoothed problems."""
    return not self.exact


TABLE = {
  "network_simplex": Row(solvers.make_solver("network_simplex")),
  "network_simplex by POT": Row(emd.NetworkSimplex(native=False), widest=1),
  "interior_point": Row(solvers.make_solver("interior_point")),
  "interior_point kernel": Row(
    emd.InteriorPoint(kernel=True),
    float64=False,
    passes_vma_check=False,
  ),
  "regularized_qp": Row(
    emd.RegularizedQP("L2", 0.05), exact=False, derivative_error=2e-4
  ),
  "regularized_qp QP": Row(
    emd.RegularizedQP("QP"), exact=False, derivative_error=2e-4
  ),
  "sinkhorn": Row(
    emd.Sinkhorn(0.05, threshold=1e-11, max_iterations=100_000),
    exact=False,
    derivative_error=2e-4,
    passes_vma_check=False,
  ),
}
# The form "QP" runs the same code as "L2" with other numbers.
SOAK = ("regularized_qp QP",)
EXACT = {name: row for name, row in TABLE.items() if row.exact}
FLOAT64 = {name: row for name, row in TABLE.items() if row.float64}


def each(table=TABLE, soak=()):
  """Runs a test for each solver of a table; for those in `soak`, only there.

  The test takes `solver`, and `x64` if the solver computes in float64.
  """
  cases = []
  for name, row in table.items():
    marks = [pytest.mark.soak] if name in (*SOAK, *soak) else []
    cases.append(pytest.param(row, row.x64, id=name, marks=marks))
  return pytest.mark.parametrize(("row", "x64"), cases, indirect=["x64"])
