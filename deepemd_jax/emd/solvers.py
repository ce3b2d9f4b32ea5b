"""The table of solvers, by the names that settings and help texts use.

To add a solver, write its file and add a line to `SOLVERS`. A setting that no
other solver has also needs a field of `config.emd` in `config/defaults.py`, and
a rule in `config/validate.py`. This module loads neither JAX nor NumPy.
"""

import dataclasses
import difflib
import importlib
from typing import Any

# The kinds of gradient of the EMD; see `emd.distance`.
GRADIENTS = ("exact", "flow")


@dataclasses.dataclass(frozen=True)
class Entry:
  """A solver in the table.

  Attributes:
    title: one plain line for help texts.
    path: "package.module:Class", or "" if `emd` chooses the solver.
    settings: the arguments of the class that a run can set.
  """

  title: str
  path: str
  settings: tuple[str, ...] = ()


SOLVERS: dict[str, Entry] = {
  "auto": Entry(
    "exact: network_simplex on a CPU, interior_point elsewhere", ""
  ),
  "interior_point": Entry(
    "exact, on the device: the choice for a GPU or TPU",
    "deepemd_jax.emd.interior_point:InteriorPoint",
  ),
  "network_simplex": Entry(
    "exact, on the host: the choice for a CPU",
    "deepemd_jax.emd.network_simplex:NetworkSimplex",
  ),
  "regularized_qp": Entry(
    "the paper's smoothed problem, to compare with it",
    "deepemd_jax.emd.regularized_qp:RegularizedQP",
    ("form", "l2_strength"),
  ),
  "sinkhorn": Entry(
    "the entropic problem, by ott-jax, to compare with it",
    "deepemd_jax.emd.sinkhorn:Sinkhorn",
    ("epsilon",),
  ),
}


def make_solver(name: str, **settings: Any) -> Any:
  """Makes a solver from its name.

  Args:
    name: a key of `SOLVERS`.
    **settings: any of the settings in `SOLVERS`. The solver gets those that it
      takes. The others are ignored, so that a run can pass all its settings.

  Returns:
    The solver; None for "auto", which lets `emd.solve` and `emd.distance`
    choose.

  Raises:
    ValueError: no solver has this name, or a setting is out of range.
    TypeError: no solver takes a setting with this name.
  """
  if name not in SOLVERS:
    near = difflib.get_close_matches(name, SOLVERS, 2)
    advice = f"use one of {', '.join(SOLVERS)}"
    if near:
      advice = f"did you mean {' or '.join(near)}?"
    raise ValueError(f"there is no solver {name!r}; {advice}")
  known_settings = {x for entry in SOLVERS.values() for x in entry.settings}
  if unknown := settings.keys() - known_settings:
    raise TypeError(f"no solver has the setting {', '.join(sorted(unknown))}")
  entry = SOLVERS[name]
  if not entry.path:
    return None
  module, _, class_name = entry.path.partition(":")
  solver_class = getattr(importlib.import_module(module), class_name)
  return solver_class(
    **{key: value for key, value in settings.items() if key in entry.settings}
  )
