"""The solvers by name (to be replaced at the merge)."""

import dataclasses
import importlib


@dataclasses.dataclass(frozen=True)
class Entry:
  title: str
  path: str = ""
  settings: tuple[str, ...] = ()


SOLVERS = {
  "auto": Entry("the best exact one for this platform"),
  "interior_point": Entry("", "deepemd_jax.emd.interior_point:InteriorPoint"),
  "network_simplex": Entry(
    "", "deepemd_jax.emd.network_simplex:NetworkSimplex"
  ),
  "regularized_qp": Entry(
    "", "deepemd_jax.emd.regularized_qp:RegularizedQP", ("form", "l2_strength")
  ),
  "sinkhorn": Entry("", "deepemd_jax.emd.sinkhorn:Sinkhorn", ("epsilon",)),
}


def make_solver(name, **settings):
  entry = SOLVERS[name]
  if not entry.path:
    return None
  module, _, attribute = entry.path.partition(":")
  solver = getattr(importlib.import_module(module), attribute)
  return solver(**{k: settings[k] for k in entry.settings if k in settings})
