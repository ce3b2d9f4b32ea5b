"""Tests of the public functions, the registry of solvers, and the guide."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from paths import ROOT
from transport_problems import distance, problems, solve

from deepemd_jax import emd
from deepemd_jax.emd import api, problem, solvers


def test_the_names_of_solvers_load_neither_jax_nor_numpy():
  code = (
    "import sys, deepemd_jax; from deepemd_jax.emd import solvers; "
    "assert deepemd_jax.emd.solvers is solvers and solvers.SOLVERS; print("
    "[m for m in ('jax', 'numpy', 'jaxtyping', 'ot') if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
  )
  assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("wrong", ["sinkhorn", emd.NetworkSimplex])
def test_what_is_no_solver_is_told(wrong):
  with pytest.raises(
    TypeError, match="pass an object such as emd.InteriorPoint"
  ):
    api.checked(wrong)


@pytest.mark.parametrize(
  ("solver", "package"),
  [(emd.Sinkhorn(0.1), "ott"), (emd.RegularizedQP(), "jaxopt")],
)
def test_a_solver_without_its_package_says_what_to_install(
  solver, package, monkeypatch
):
  for name in [x for x in sys.modules if x.partition(".")[0] == package]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, package, None)
  message = f"needs the package {package}.*; run pip install"
  with pytest.raises(ModuleNotFoundError, match=message):
    emd.solve(*problems(), solver=solver)


def test_the_package_has_every_public_name():
  for name in emd.__all__:
    assert getattr(emd, name) and name in dir(emd)
  with pytest.raises(AttributeError, match="no attribute 'Simplex'"):
    _ = emd.Simplex


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("auto", None),
    ("interior_point", emd.InteriorPoint()),
    ("network_simplex", emd.NetworkSimplex()),
    ("regularized_qp", emd.RegularizedQP("QP", 0.5)),
    ("sinkhorn", emd.Sinkhorn(0.25)),
  ],
)
def test_a_solver_gets_the_settings_that_it_takes(name, expected):
  settings = {"form": "QP", "l2_strength": 0.5, "epsilon": 0.25}
  assert solvers.make_solver(name, **settings) == expected


def test_unknown_solvers_and_settings_are_told():
  with pytest.raises(ValueError, match="'sinkhorm'; did you mean sinkhorn?"):
    solvers.make_solver("sinkhorm")
  with pytest.raises(ValueError, match="'x'; use one of auto, interior_point"):
    solvers.make_solver("x")
  with pytest.raises(TypeError, match="no solver has the setting epsilom"):
    solvers.make_solver("sinkhorn", epsilom=1.0)


@pytest.mark.parametrize(
  ("make", "value"),
  [
    (lambda: emd.RegularizedQP("L1"), "L1"),
    (lambda: emd.RegularizedQP(l2_strength=0.0), "0"),
    (lambda: emd.Sinkhorn(-1.0), "-1"),
    (lambda: emd.Sinkhorn(epsilon_decay=2.0), "2"),
    (lambda: emd.InteriorPoint(tolerance=0.0), "0"),
    (lambda: emd.NetworkSimplex(threads=0), "0"),
    (lambda: emd.distance(*problems(), gradient="exakt"), "exact"),
  ],
)
def test_options_out_of_range_are_told(make, value):
  with pytest.raises(ValueError, match=value):
    make()


def test_shapes_that_do_not_fit_are_told():
  one = np.ones
  with pytest.raises(ValueError, match=r"\(4,\).*\(2, 3, 5\)"):
    problem.prepare(one((2, 3, 5)), one(4), one(5))
  with pytest.raises(ValueError, match="broadcast"):
    problem.prepare(one((2, 3, 5)), one((4, 3)), one(5))
  with pytest.raises(ValueError, match="must be"):
    problem.prepare(one(3), one(3), one(3))
  with pytest.raises(ValueError, match=r"start.*\(3, 4\).*\(2, 3, 5\)"):
    problem.prepare_start(one((3, 4)), one((2, 3, 5)))
  with pytest.raises(ValueError, match=r"start.*\(1,\).*\(2, 3, 5\)"):
    problem.prepare_start([1], one((2, 3, 5)))
  plan = emd.solve(one((3, 5)), one(3), one(5))
  with pytest.raises(ValueError, match="pass its flow, plan.flow"):
    problem.prepare_start(plan, one((3, 5)))


def test_batch_dimensions_are_broadcast():
  cost, a, b = problems()
  prepared = problem.prepare(cost[:, None], a[0], b[:3])
  assert [x.shape for x in prepared] == [(8, 3, 5, 7), (8, 3, 5), (8, 3, 7)]
  np.testing.assert_array_equal(prepared[0][:, 1], cost)
  np.testing.assert_array_equal(prepared[1][4, 2], a[0])
  np.testing.assert_array_equal(prepared[2][5], b[:3])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_other_types_are_computed_in_float32(dtype):
  cost = jnp.arange(12).reshape(3, 4).astype(dtype)
  masses = jnp.array([4, 4, 4], dtype), jnp.array([3, 3, 3, 3], dtype)
  value = distance(cost, *masses)
  assert value.dtype == jnp.float32
  expected = distance(*(x.astype(jnp.float32) for x in (cost, *masses)))
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_the_guides_example_runs(monkeypatch):
  """To take less time, it has fewer and smaller clouds and is compiled."""
  monkeypatch.setattr(emd, "solve", solve)
  monkeypatch.setattr(emd, "distance", distance)
  text = (ROOT / "docs" / "emd.md").read_text("utf-8")
  code = text.split("```python\n")[1].split("```")[0]
  assert "64" in code and "25" in code
  variables: dict = {}
  exec(code.replace("64", "4").replace("25", "3"), variables)
  cost, flow = variables["cost"], variables["plan"].flow
  spent = (cost * flow).sum((1, 2))
  np.testing.assert_allclose(variables["value"], spent, rtol=1e-4)
  np.testing.assert_allclose(variables["to_cost"].sum((1, 2)), 1, rtol=1e-5)
