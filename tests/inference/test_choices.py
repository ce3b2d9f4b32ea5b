"""A user may choose a view or a solver; the default is that of the run."""

import dataclasses

import pytest

from deepemd_jax import emd
from deepemd_jax.config import defaults, resolve
from deepemd_jax.errors import InputError
from deepemd_jax.inference.choices import choose_solver, choose_view


@pytest.fixture(scope="module")
def settings():
  config = defaults.get_config()
  config.nodes.patches = 4
  config.emd.epsilon = 0.5
  return resolve.resolve(config)


def test_views(settings):
  assert choose_view(settings, None) == settings.view
  for kind, crops in (("fcn", 1), ("grid", 13), ("sampling", 4)):
    view = choose_view(settings, kind)
    assert view == dataclasses.replace(settings.view, kind=kind)
    assert view.crops_per_image == crops
  with pytest.raises(InputError, match="variant is 'voc'; use one of fcn"):
    choose_view(settings, "voc")


def test_solvers(settings):
  assert choose_solver(settings, None) is settings.heads.solver is None
  assert choose_solver(settings, "auto") is None
  assert choose_solver(settings, "sinkhorn") == emd.Sinkhorn(0.5)
  assert choose_solver(settings, emd.InteriorPoint()) == emd.InteriorPoint()
  heads = dataclasses.replace(settings.heads, solver=emd.NetworkSimplex())
  own = dataclasses.replace(settings, heads=heads)
  assert choose_solver(own, None) == emd.NetworkSimplex()


@pytest.mark.parametrize("wrong", ["simplex", 3, emd.Sinkhorn])
def test_what_solves_nothing_is_refused(settings, wrong):
  with pytest.raises(InputError, match="solver is"):
    choose_solver(settings, wrong)
