"""The GPU kernel is used where it can be.

On a GPU, it agrees with the other implementation. `test_solvers` tests its
results in Pallas's interpreter.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transport_problems import distance

from benchmarks import emd_solvers
from deepemd_jax import emd
from deepemd_jax.emd import interior_point_gpu

TARGET = "__gpu$xla.gpu.triton"
needs_gpu = pytest.mark.skipif(
  not interior_point_gpu.is_available(),
  reason="needs an NVIDIA GPU, and JAX_PLATFORMS=cuda,cpu",
)


def traced(function, n, m, dtype=jnp.float32):
  """Traces a solver, or a function, with 8 problems."""
  if isinstance(function, emd.InteriorPoint):
    function = functools.partial(emd.solve, solver=function)
  shapes = (8, n, m), (8, n), (8, m)
  arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
  return jax.jit(function).trace(*arguments)


def lowered(solver, n, m, dtype=jnp.float32, platform="cuda"):
  """Returns the text of the program for a machine with a GPU."""
  device = jax.sharding.AbstractDevice(
    device_kind="NVIDIA H100", num_cores=None, platform="gpu"
  )
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    program = traced(solver, n, m, dtype)
    return program.lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture
def a_gpu(monkeypatch):
  monkeypatch.setattr(interior_point_gpu, "is_available", lambda: True)


@pytest.mark.parametrize(
  ("n", "m"),
  [
    *((1, 1), (9, 13), (63, 63)),
    *(pytest.param(n, 25, marks=pytest.mark.soak) for n in (25, 38)),
  ],
)
def test_a_gpu_gets_the_kernel(n, m, a_gpu):
  """All operations of the kernel can be lowered."""
  assert TARGET in lowered(emd.InteriorPoint(), n, m)


@pytest.mark.parametrize("alike", [True, False])
def test_so_does_each_of_several(alike, a_gpu):
  """It passes JAX's check of which arguments vary over the devices."""
  mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
  split, whole = jax.P("data"), jax.P()
  function = jax.shard_map(
    functools.partial(emd.distance, solver=emd.InteriorPoint()),
    mesh=mesh,
    in_specs=(split, split, split) if alike else (whole, whole, split),
    out_specs=split,
  )
  assert "pallas_call" in str(traced(function, 9, 9).jaxpr)


def test_others_do_not(a_gpu):
  assert TARGET not in lowered(emd.InteriorPoint(kernel=False), 9, 9)
  assert TARGET not in lowered(emd.InteriorPoint(), 9, 9, platform="cpu")
  assert TARGET not in lowered(emd.InteriorPoint(), 9, 64)
  with jax.enable_x64(True):
    assert TARGET not in lowered(emd.InteriorPoint(), 9, 9, jnp.float64)
    with pytest.raises(ValueError, match="float32 and at most 63.*float64"):
      lowered(emd.InteriorPoint(kernel=True), 9, 9, jnp.float64)
  with pytest.raises(ValueError, match=r"at most 63 nodes.*\(8, 9, 64\)"):
    lowered(emd.InteriorPoint(kernel=True), 9, 64)


@pytest.mark.parametrize(
  ("platform", "capability", "expected"),
  [
    ("gpu", "9.0", True),
    ("gpu", "12.0", True),
    ("gpu", "8.0", True),
    ("gpu", "7.5", False),  # a T4
    ("gpu", "gfx942", False),  # an AMD GPU
    ("tpu", None, False),
    ("cpu", None, False),
  ],
)
def test_where_it_is_available(platform, capability, expected, monkeypatch):
  device = types.SimpleNamespace(platform=platform)
  if capability:
    device.compute_capability = capability
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  assert interior_point_gpu.is_available.__wrapped__() is expected


def test_many_mapped_dimensions_are_one_grid():
  """The grid of a GPU has only three dimensions, and two of them are short."""
  cost, a, b = emd_solvers.problems(16, 5)
  a, b = emd_solvers.masses(a), emd_solvers.masses(b)

  def value(cost, a, b):
    return emd.distance(cost, a, b, emd.InteriorPoint(kernel=True))

  many = value
  for _ in range(4):
    many = jax.vmap(many)
  shaped = [x.reshape(2, 2, 2, 2, *x.shape[1:]) for x in (cost, a, b)]
  values = jax.jit(many)(*shaped).ravel()
  expected = distance(cost, a, b, solver=emd.NetworkSimplex())
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  # Here one argument is the same for all problems.
  shared = jax.jit(jax.vmap(value, (0, None, 0)))(cost, a[0], b)
  repeated = np.repeat(a[:1], 16, 0)
  expected = distance(cost, repeated, b, solver=emd.NetworkSimplex())
  np.testing.assert_allclose(shared, expected, rtol=1e-5)


@needs_gpu
@pytest.mark.parametrize("n", [1, 9, 25, 38, 63])
def test_on_a_gpu_it_agrees_with_the_other_implementation(n):
  cost, a, b = emd_solvers.problems(375, n)
  a, b = emd_solvers.masses(a), emd_solvers.masses(b)
  ours, other = (
    jax.jit(emd.solve, static_argnames="solver")(
      *(cost, a, b), solver=emd.InteriorPoint(kernel=choice)
    )
    for choice in (None, False)
  )
  assert ours.converged.all() and other.converged.all()
  value, expected = ((cost * x.flow).sum((1, 2)) for x in (ours, other))
  np.testing.assert_allclose(value / n, expected / n, atol=1e-5)
  assert (abs(value - expected) <= ours.gap + other.gap).all()
  np.testing.assert_allclose(ours.flow.sum(2), a, atol=1e-5 * n)
