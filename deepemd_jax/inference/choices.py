"""The user's choices for a trained encoder: view and solver."""

import dataclasses
from typing import Any

from deepemd_jax.config.settings import Settings
from deepemd_jax.data.registry import NODE_KINDS
from deepemd_jax.data.views import View
from deepemd_jax.emd.solvers import SOLVERS, make_solver
from deepemd_jax.errors import InputError


def choose_view(settings: Settings, variant: str | None) -> View:
  """Returns the view of a variant.

  Args:
    settings: settings of the run that trained the encoder.
    variant: "fcn", "grid" or "sampling"; None means that of the run.

  Raises:
    InputError: there is no such variant.
  """
  if variant is None:
    return settings.view
  if variant not in NODE_KINDS:
    raise InputError(
      f"variant is {variant!r}; use one of {', '.join(NODE_KINDS)}"
    )
  return dataclasses.replace(settings.view, kind=variant)


def choose_solver(settings: Settings, solver: Any):
  """Returns the EMD solver, or None to let `emd` choose.

  Args:
    settings: settings of the run that trained the encoder.
    solver: a name, a solver, or None for that of the run.

  Raises:
    InputError: there is no solver of this name, or the object is no solver.
  """
  if solver is None:
    return settings.heads.solver
  return as_solver(solver, **settings.solver_settings)


def as_solver(solver: Any, **settings):
  """Returns a solver, given itself, its name, or None to let `emd` choose.

  Args:
    solver: a name, a solver, or None.
    settings: the settings of a solver that is given by its name; see
      `make_solver`.

  Raises:
    InputError: there is no solver of this name, or the object is no solver.
  """
  if solver is None:
    return None
  if isinstance(solver, str):
    if solver not in SOLVERS:
      raise InputError(f"solver is {solver!r}; use one of {', '.join(SOLVERS)}")
    return make_solver(solver, **settings)
  if not callable(solver) or isinstance(solver, type):
    raise InputError(
      f"solver is {solver!r}; give an object such as emd.InteriorPoint(), or a "
      "name"
    )
  return solver
