"""The network simplex in C++, and POT's code as its replacement."""

import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import ROOT
from transport_problems import distance, exact_values, solve

from deepemd_jax import emd
from deepemd_jax.emd import network_simplex
from deepemd_jax.emd.native import build, library

NATIVE = emd.NetworkSimplex()
POT = emd.NetworkSimplex(native=False)
HERE = pathlib.Path(__file__).parent
needs_compiler = pytest.mark.skipif(
  not build.find_compiler(), reason="there is no C++ compiler"
)


@needs_compiler
def test_where_there_is_a_compiler_the_native_code_is_taken():
  assert library.load()


def degenerate(rng, count, n, m):
  """Makes problems of integers, with very many ties."""
  cost = rng.integers(0, 4, (count, n, m)).astype(np.float64)
  cost[: count // 4] = cost[:, :1, :1][: count // 4]  # all costs are equal
  cost[count // 4 : count // 2] = cost[count // 4 : count // 2, :1]  # same rows
  a = rng.integers(0, 3, (count, n)).astype(np.float64)
  b = rng.integers(0, 3, (count, m)).astype(np.float64)
  a[:, 0], b[:, 0] = a[:, 0] + 1, b[:, 0] + 1
  b[::2] *= (a.sum(1) / b.sum(1))[::2, None]  # the others are partial
  return cost, a, b


@pytest.mark.parametrize("x64", [True], indirect=True)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 6), (4, 9), (25, 25)])
def test_degenerate_problems_end_and_are_right(x64, size):
  cost, a, b = degenerate(np.random.default_rng(size), 500, *size)
  plan, judge = (solve(cost, a, b, solver=x) for x in (NATIVE, POT))
  value, optimum = ((cost * x.flow).sum((1, 2)) for x in (plan, judge))
  scale = np.minimum(a.sum(1), b.sum(1)) * max(cost.max(), 1)
  np.testing.assert_allclose(value / scale, optimum / scale, atol=1e-12)
  assert plan.converged.all() and (plan.flow >= 0).all()
  slack = cost - plan.f[:, :, None] - plan.g[:, None]
  assert slack.min() > -1e-12 * max(cost.max(), 1)
  dual = (a * plan.f).sum(1) + (b * plan.g).sum(1)
  np.testing.assert_allclose(value / scale, dual / scale, atol=1e-12)
  assert (plan.steps <= 40 * sum(size)).all()


@needs_compiler
@pytest.mark.parametrize("x64", [False, True], indirect=True)
def test_costs_of_any_size_beside_each_other(x64):
  """Large costs are often used to mark pairs that must not be matched."""
  cost = np.array([[0.2, 0.3, 1], [0.5, 0.1, 0.9], [1, 0.4, 0.7]])
  mass = np.full((3, 3), 1 / 3)
  large = np.array([1e6, 1e15, 1e30])
  problems = np.repeat(cost[None], 3, 0)
  problems[:, 0, 2] = problems[:, 2, 0] = large
  plan = solve(problems, mass, mass, solver=NATIVE)
  value = (problems * plan.flow).sum((1, 2))
  np.testing.assert_allclose(value, 1 / 3, rtol=1e-12 if x64 else 1e-6)
  assert plan.converged.all()
  assert (plan.gap < (1e-9 if x64 else 1e-5)).all()


@needs_compiler
@pytest.mark.parametrize("x64", [True], indirect=True)
def test_tiny_costs_count_beside_huge_ones(x64):
  rng = np.random.default_rng(0)
  small = rng.random((20, 6, 6))
  mass = rng.random((20, 6)) + 0.1
  mass /= mass.sum(1, keepdims=True)
  expected = exact_values(small, mass, mass[:, ::-1])
  spread = small * 1e-30
  # With one huge cost in each row and column, some plans avoid all of them.
  spread[:, np.arange(6), np.arange(6)] = 1e30
  small[:, np.arange(6), np.arange(6)] = 100.0
  plan = solve(spread, mass, mass[:, ::-1], solver=NATIVE)
  free = exact_values(small, mass, mass[:, ::-1]) < 10
  assert free.sum() > 10
  value = (spread * plan.flow).sum((1, 2)) * 1e30
  expected = exact_values(small, mass, mass[:, ::-1])
  np.testing.assert_allclose(value[free], expected[free], rtol=1e-9)


@pytest.mark.parametrize("x64", [True], indirect=True)
@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("solver", [NATIVE, POT], ids=["native", "POT"])
def test_forbidden_pairs_are_not_used(solver, x64, share):
  rng = np.random.default_rng(int(10 * share))
  cost = rng.random((60, 5, 7))
  a, b = rng.random((60, 5)), rng.random((60, 7))
  a /= a.sum(1, keepdims=True)
  b /= b.sum(1, keepdims=True)
  b[::3] *= 2  # only a part of b moves
  forbidden = rng.random(cost.shape) < share
  costs = np.where(forbidden, np.inf, cost)
  plan = solve(costs, a, b, solver=solver)
  paid = distance(costs, a, b, solver=solver)
  penalty = exact_values(np.where(forbidden, 1e4, cost), a, b)
  possible = penalty < 2
  assert 0 < possible.sum() < 60 or share < 0.5
  np.testing.assert_array_equal(plan.converged, possible)
  assert np.isnan(plan.flow[~possible]).all()
  flow = plan.flow[possible]
  assert (flow[forbidden[possible]] == 0).all()
  value = (cost[possible] * flow).sum((1, 2))
  np.testing.assert_allclose(value, penalty[possible], atol=1e-6)
  np.testing.assert_allclose(paid[possible], value, rtol=1e-12)
  assert np.isnan(paid[~possible]).all()
  assert np.isfinite(plan.f[possible]).all()


@needs_compiler
@pytest.mark.parametrize("x64", [True], indirect=True)
@pytest.mark.parametrize("unit", [1e-290, 1.0, 1e300])
def test_masses_of_any_size(x64, unit):
  rng = np.random.default_rng(0)
  cost = rng.random((10, 12, 12))
  a, b = rng.random((10, 12)) + 0.1, rng.random((10, 12)) + 0.1
  b *= (a.sum(1) / b.sum(1))[:, None]
  expected = solve(cost, a, b, solver=NATIVE)
  plan = solve(cost, a * unit, b * unit, solver=NATIVE)
  np.testing.assert_allclose(plan.flow / unit, expected.flow, atol=1e-12)
  np.testing.assert_allclose(plan.f, expected.f, rtol=1e-12, atol=1e-12)
  assert plan.converged.all()


@needs_compiler
@pytest.mark.parametrize("x64", [True], indirect=True)
def test_a_tiny_mass_pays_its_huge_cost(x64):
  cost = np.ones((3, 3))
  cost[0], cost[1, 0] = 1e30, 0.5
  a, b = np.array([1e-30, 1, 1]), np.full(3, 2 / 3)
  np.testing.assert_allclose(distance(cost, a, b, solver=NATIVE), 8 / 3)


@pytest.mark.parametrize("solver", [NATIVE, POT], ids=["native", "POT"])
def test_a_small_node_without_a_partner_is_not_forgotten(solver):
  cost = np.random.default_rng(0).random((4, 4), np.float32)
  cost[0] = np.inf
  mass = np.array([5e-7, 1, 1, 1], np.float32)
  assert not solve(cost, mass, mass, solver=solver).converged
  cost = np.ones((1, 3000), np.float32)
  cost[0, 7] = np.inf
  b = np.full(3000, 1 / 3000, np.float32)
  assert not solve(cost, np.ones(1, np.float32), b, solver=solver).converged


@needs_compiler
def test_equal_columns_take_no_time():
  """In an earlier version they took n cubed steps, which was 12 s."""
  mass = np.full(1500, 1 / 1500, np.float32)
  cost = np.ones((1500, 1500), np.float32)
  began = time.monotonic()
  assert solve(cost, mass, mass, solver=NATIVE).converged
  assert time.monotonic() - began < 5


@needs_compiler
def test_a_limit_of_pivots_leaves_an_honest_gap(monkeypatch):
  monkeypatch.setattr(network_simplex, "_MAX_PIVOTS", 3)
  cost = np.random.default_rng(0).random((20, 12, 12), np.float32)
  mass = np.full((20, 12), 1 / 12, np.float32)
  plan = emd.solve(cost, mass, mass, NATIVE)
  assert (plan.steps == 3).all() and not plan.converged.any()
  np.testing.assert_allclose(plan.flow.sum(2), mass, atol=1e-6)
  error = (cost * plan.flow).sum((1, 2)) - exact_values(cost, mass, mass)
  assert (error >= -1e-6).all() and (error <= plan.gap).all()
  assert error.max() > 1e-3


@needs_compiler
@pytest.mark.parametrize("x64", [False, True], indirect=True)
def test_a_start_saves_pivots_and_changes_no_value(x64):
  """This holds for the flow of a similar or of an unrelated problem.

  It also holds for invalid numbers.
  """
  rng = np.random.default_rng(7)
  dtype = np.float64 if x64 else np.float32
  cost = rng.random((40, 12, 15)).astype(dtype)
  a, b = rng.random((40, 12)).astype(dtype), rng.random((40, 15)).astype(dtype)
  a[::3, :4], b[1::3, 2:5] = 0, 0
  b[::2] *= (a.sum(1) / b.sum(1))[::2, None]
  before = solve(cost, a, b, solver=NATIVE)
  again = solve(cost, a, b, solver=NATIVE, start=before.flow)
  assert not again.steps[::2].any()
  cost += 1e-2 * rng.random(cost.shape).astype(dtype)
  a *= 1 + 1e-2 * rng.random(a.shape).astype(dtype)
  cold = solve(cost, a, b, solver=NATIVE)
  warm = solve(cost, a, b, solver=NATIVE, start=before.flow)
  assert warm.steps.sum() < 0.5 * cold.steps.sum()
  odd = rng.choice([np.nan, -1, 0, np.inf], cost.shape).astype(dtype)
  mixed = np.roll(before.flow, 1, 0)
  for start in (before.flow, odd, mixed, np.zeros_like(cost)):
    plan = solve(cost, a, b, solver=NATIVE, start=start)
    assert plan.converged.all()
    values = [(cost * x.flow).sum((1, 2)) for x in (plan, cold)]
    np.testing.assert_allclose(*values, rtol=1e-12 if x64 else 2e-6)


@pytest.mark.parametrize("solver", [NATIVE, POT], ids=["native", "POT"])
def test_threads_change_nothing(solver):
  rng = np.random.default_rng(0)
  cost = rng.random((40, 9, 9), np.float32)
  mass = np.full((40, 9), 1 / 9, np.float32)
  alone = emd.NetworkSimplex(threads=1, native=solver.native)
  for x, y in zip(
    solve(cost, mass, mass, solver=solver),
    solve(cost, mass, mass, solver=alone),
    strict=True,
  ):
    np.testing.assert_array_equal(x, y)


def run(*arguments, **variables):
  """Returns the output of a Python process, which must succeed."""
  variables |= {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, **variables},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def test_several_devices_of_a_process():
  """A callback that waits for a device would wait forever here."""
  code = """
import jax, numpy as np
from deepemd_jax import emd
from deepemd_jax.distributed import sharding
cost = np.random.default_rng(0).random((8, 9, 9), np.float32)
mass = np.full(9, 1 / 9, np.float32)
batch = sharding.shard_batch(cost)
for native in (None, False):
  solver = emd.NetworkSimplex(native=native)
  alone = jax.vmap(lambda c: emd.distance(c, mass, mass, solver=solver))
  expected = np.asarray(jax.jit(alone)(cost))
  for call in (jax.jit(alone), jax.jit(sharding.shard_map_batch(alone))):
    for _ in range(20):
      found = call(batch)
    np.testing.assert_array_equal(np.asarray(found), expected)
print(len(jax.devices()))
"""
  flags = os.environ.get("XLA_FLAGS", "")
  flags += " --xla_force_host_platform_device_count=4"
  assert run("-c", code, XLA_FLAGS=flags) == "4\n"


@pytest.mark.parametrize(
  "count", [2, pytest.param(200, marks=pytest.mark.soak)]
)
def test_one_core_is_enough(count):
  """With one core, XLA has no second thread while a callback waits."""
  assert run(str(HERE / "one_core.py"), str(count)) == "0\n"


@needs_compiler
def test_a_second_start_compiles_nothing(tmp_path):
  """JAX's cache could not keep a program with a Python callback."""
  code = f"""
import jax, numpy as np
from deepemd_jax import emd
jax.config.update("jax_compilation_cache_dir", {str(tmp_path)!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
solver = emd.NetworkSimplex()
cost, mass = np.ones((8, 5, 5), np.float32), np.ones((8, 5), np.float32)
jax.jit(lambda c, m: emd.solve(c, m, m, solver))(cost, mass)
count = lambda word: sum(name.endswith(word) for name in seen)
print(count("/cache_hits"), count("/cache_misses"))
"""
  first, second = (run("-c", code).split() for _ in range(2))
  assert first == ["0", "1"]
  assert second == ["1", "0"]


def test_where_there_is_no_compiler_one_line_says_so(tmp_path, monkeypatch):
  monkeypatch.setenv("CXX", "no-such-compiler")
  target = tmp_path / "x.so"
  assert build.build(target) == "there is no C++ compiler"
  assert run("-m", "deepemd_jax.emd.native.build", CXX="false").endswith(
    "POT's network simplex is used instead\n"
  )
  assert list(tmp_path.iterdir()) == []


def test_without_the_native_code_pot_serves(monkeypatch):
  monkeypatch.setattr(library, "load", lambda: False)
  cost, mass = jnp.ones((3, 3)), jnp.ones(3)
  assert emd.distance(cost, mass, mass) == 3
  text = str(jax.make_jaxpr(emd.NetworkSimplex())(cost, mass, mass))
  assert "host_call" in text and "ffi_call" not in text
  with pytest.raises(ValueError, match="native.build"):
    emd.NetworkSimplex(native=True)


@needs_compiler
@pytest.mark.parametrize(
  "count, flags",
  [
    (20_000, ["-O2"]),
    pytest.param(
      200_000,
      ["-O1", "-g", "-fsanitize=address,undefined"],
      marks=pytest.mark.soak,
    ),
  ],
)
def test_no_problem_does_harm(count, flags, tmp_path):
  """Many kinds of random problems are solved; `make soak` adds sanitizers."""
  compiler = build.find_compiler()
  program = tmp_path / "check"
  native = pathlib.Path(build.__file__).parent
  sources = [HERE / "native_check.cc", *native.glob("transport_*.cc")]
  line = [compiler, "-std=c++17", *flags, f"-I{native}", *map(str, sources)]
  subprocess.run([*line, "-o", str(program)], check=True)
  done = subprocess.run(
    [program, str(count), "0"], capture_output=True, text=True
  )
  assert done.stdout == f"{count} problems\n", done.stdout + done.stderr[-3000:]
  assert done.returncode == 0 and not done.stderr
