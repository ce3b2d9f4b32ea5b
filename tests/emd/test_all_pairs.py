"""`pairwise` gives POT's values for any sizes, and can be interrupted."""

import io
import os
import signal
import subprocess
import sys
import types

import hypothesis
import numpy as np
import ot
import pytest
from hypothesis import strategies as st
from paths import ROOT
from solver_table import each
from transport_problems import linear_program

from deepemd_jax import emd
from deepemd_jax.emd import all_pairs, progress_line, ragged


def ragged_clouds(seed, sizes, dtype=np.float64):
  """Makes clouds [n, 3] and weights [n], some of which are 0."""
  rng = np.random.default_rng(seed)
  points = [rng.standard_normal((n, 3)).astype(dtype) for n in sizes]
  weights = [rng.random(n).astype(dtype) for n in sizes]
  for mass in weights:
    mass[1:3] = 0
  return points, weights


def by_pot(xs, ys, a, b, p):
  """Computes all pairs by a loop over POT in float64."""

  def one(x, y, r, s):
    r, s = (np.float64(w) / np.float64(w).sum() for w in (r, s))
    distances = np.linalg.norm(np.float64(x)[:, None] - y, axis=-1)
    return ot.emd2(r, s, distances**p) ** (1 / p)

  columns = list(zip(ys, b, strict=True))
  return np.array(
    [[one(x, y, r, s) for y, s in columns] for x, r in zip(xs, a, strict=True)]
  )


@pytest.mark.parametrize("x64", [True, False], indirect=True)
def test_all_pairs_are_those_of_pot(x64, monkeypatch):
  """There are several blocks of several sizes."""
  monkeypatch.setattr(all_pairs, "_CPU_ENTRIES", 100)
  monkeypatch.setattr(all_pairs, "_CPU_PROGRAM", 100)
  dtype = np.float64 if x64 else np.float32
  xs, a = ragged_clouds(0, [4, 1, 12, 6, 5], dtype)
  ys, b = ragged_clouds(1, [9, 3, 5, 5], dtype)
  tolerance = 1e-13 if x64 else 1e-6
  found = emd.pairwise(xs, ys, a, b, p=1)
  assert found.dtype == dtype
  np.testing.assert_allclose(found, by_pot(xs, ys, a, b, 1), rtol=tolerance)
  found = emd.pairwise(xs, a=a)
  expected = by_pot(xs, xs, a, a, 2)
  np.fill_diagonal(expected, 0)
  np.testing.assert_allclose(found, expected, rtol=tolerance)
  np.testing.assert_array_equal(found, found.T)


@pytest.mark.soak
@each()
def test_every_solver_solves_all_pairs(row, x64):
  """The blocks give the values of single calls of `wasserstein`."""
  xs, a = ragged_clouds(0, [4, 7, 5])
  found = emd.pairwise(xs, a=a, p=1, solver=row.solver)
  for i, j in [(0, 1), (0, 2), (1, 2)]:
    alone = emd.wasserstein(xs[i], xs[j], a[i], a[j], 1, row.solver)
    np.testing.assert_allclose(found[j, i], alone, rtol=1e-3)
  if row.exact:
    expected = by_pot(xs, xs, a, a, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_is_where_the_points_are():
  """Padding at the origin would be far away from the points.

  The costs that are paid would then be too small a part of all costs.
  """
  xs, a = ragged_clouds(0, [4, 7, 9], np.float32)
  xs = [x + np.float32(1000) for x in xs]
  found = emd.pairwise(xs, xs, a, a, solver=emd.InteriorPoint())
  expected = by_pot(xs, xs, a, a, 2)
  np.testing.assert_allclose(found, expected, atol=3e-3)


def test_histograms_are_partial_and_may_forbid():
  rng = np.random.default_rng(0)
  cost = rng.random((6, 8))
  cost[0, :6] = np.inf
  xs, ys = rng.random((5, 6)), rng.random((4, 8))
  xs *= rng.random(xs.shape) < 0.7
  ys[3, 6:] = 0
  xs[0, :], xs[0, 0] = 0, 0.1
  found = emd.pairwise(xs, ys, cost=cost)
  cost[0, :6] = 1e3
  expected = np.array([[linear_program(cost, x, y) for y in ys] for x in xs])
  expected[expected > 10] = np.nan
  assert np.isnan(expected[0, 3]) and np.isfinite(expected[0, 0])
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_histograms_against_themselves():
  rng = np.random.default_rng(0)
  points = rng.random((6, 2))
  cost = np.linalg.norm(points[:, None] - points, axis=-1)
  xs = rng.random((5, 6)) * (rng.random((5, 6)) < 0.6) + 1e-3
  found, each = emd.pairwise(xs, cost=cost), emd.pairwise(xs, xs, cost=cost)
  np.testing.assert_allclose(found, each, atol=1e-6)
  assert found[1, 2] > 0.01


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(
  sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30),
  others=st.none() | st.lists(st.integers(1, 40), min_size=1, max_size=30),
  entries=st.integers(1, 5000),
  devices=st.integers(1, 3),
  program=st.sampled_from([1, 1000, 10**9]),
)
def test_blocks_have_each_pair_once(sizes, others, entries, devices, program):
  def measures(sizes):
    return [ragged.Measure(np.arange(n), np.ones(n)) for n in sizes]

  symmetric = others is None
  columns = sizes if symmetric else others
  left, right = ragged.group_by_size(
    (measures(sizes), measures(columns)), np.float32, program
  )
  count = np.zeros((len(sizes), len(columns)), int)
  for tile in all_pairs._tiles(left, right, symmetric, entries, devices):
    supports, weights, _, other_weights = tile.arguments
    assert tile.wanted.shape[1] % devices == 0
    held = supports.size * other_weights.size // devices
    alone = weights.shape[0] == 1 and other_weights.shape[0] == devices
    assert held <= entries or alone
    i, j = np.nonzero(tile.wanted)
    count[tile.rows[i], tile.columns[j]] += 1
    for row, number in enumerate(tile.rows):
      assert weights[row].sum() == sizes[number]
  if symmetric:
    count += count.T + np.eye(len(sizes), dtype=int)
  assert (count == 1).all()


def test_padding_wastes_little_where_there_is_much_to_solve():
  sizes = np.random.default_rng(0).integers(5, 200, 1000)
  measures = [ragged.Measure(np.arange(n), np.ones(n)) for n in sizes]
  groups, _ = ragged.group_by_size((measures, measures), np.float32, 10**7)
  padded = sum(group.weights.size for group in groups)
  assert padded <= 1.3 * sizes.sum()
  groups, _ = ragged.group_by_size((measures[:9],) * 2, np.float32, 10**7)
  assert len(groups) == 1


def test_ctrl_c_ends_it_after_a_block(monkeypatch):
  monkeypatch.setattr(all_pairs, "_CPU_ENTRIES", 64)
  xs, calls = np.random.default_rng(0).random((9, 4, 2)), []

  def progress(done, total):
    calls.append((done, total))
    if len(calls) == 3:
      signal.raise_signal(signal.SIGINT)

  with pytest.raises(KeyboardInterrupt):
    emd.pairwise(xs, progress=progress)
  assert len(calls) == 3 and calls[2][0] < calls[2][1] == 36
  calls.clear()
  emd.pairwise(xs, xs, progress=lambda *call: calls.append(call))
  done = [done for done, _ in calls]
  assert done == sorted(set(done)) and calls[-1] == (81, 81)


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_the_line_says_how_far_it_is(kind, monkeypatch):
  ticks = iter([0.0, 0.1, 60.0, 60.1, 3600.0])
  clock = types.SimpleNamespace(monotonic=lambda: next(ticks))
  monkeypatch.setattr(progress_line, "time", clock)
  monkeypatch.setattr(sys, "stderr", kind())
  with progress_line.reporter(True) as report:
    for done in (1, 25_000, 25_001, 100_000):
      report(done, 100_000)
  shown = sys.stderr.getvalue()
  assert shown.endswith("\n")
  plain = shown.replace("\x1b[K", "").replace("\r", "\n")
  assert [line for line in plain.split("\n") if line] == [
    "25,000/100,000 pairs, 1:00, 3:00 left",
    "100,000/100,000 pairs, 1:00:00, 0:00 left",
  ]


def test_without_progress_nothing_is_shown(capsys):
  emd.pairwise(np.ones((2, 4, 2)))
  assert capsys.readouterr() == ("", "")


def test_devices_share_the_pairs():
  code = """
import jax, numpy as np
from deepemd_jax import emd
xs = np.random.default_rng(0).random((7, 4, 2), np.float32)
distance = jax.jit(emd.wasserstein)
alone = [[distance(x, y) for y in xs] for x in xs]
found = emd.pairwise(xs)
np.testing.assert_allclose(found, alone, atol=1e-6)
print(len(jax.devices()))
"""
  flags = os.environ.get("XLA_FLAGS", "")
  flags += " --xla_force_host_platform_device_count=3"
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": flags},
  )
  assert done.stdout == "3\n", done.stderr[-3000:]


def test_nothing_with_nothing_is_empty():
  assert emd.pairwise([]).shape == (0, 0)
  assert emd.pairwise([], [np.ones((2, 3))]).shape == (0, 1)


CLOUD = np.ones((3, 2))
COST = np.array([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"xs": [CLOUD, np.ones(3)]}, r"xs\[1\] has shape \(3,\); a cloud must be"),
    ({"xs": [CLOUD[:0]]}, r"xs\[0\] has shape \(0, 2\)"),
    ({"xs": [CLOUD, CLOUD[:, :1]]}, r"xs\[1\] has points of 1 .* of 2"),
    ({"xs": [CLOUD], "ys": [CLOUD[:, :1]]}, "of 2 coordinates and ys of 1"),
    ({"xs": [CLOUD * np.inf]}, r"xs\[0\] has the coordinate inf"),
    ({"xs": [CLOUD * 1j]}, "must be real"),
    ({"xs": [CLOUD], "a": []}, "a has weights of 0 clouds, but xs has 1"),
    ({"xs": [CLOUD], "a": [[1, 2]]}, r"a\[0\] has shape \(2,\).*\(3,\)"),
    ({"xs": [CLOUD], "a": [[1, 2, -3]]}, r"a\[0\] has the weight -3"),
    ({"xs": [CLOUD], "a": [[1, 2, np.nan]]}, r"a\[0\] has the weight nan"),
    ({"xs": [CLOUD], "a": [[0, 0, 0]]}, r"a\[0\] has no weight above 0"),
    ({"xs": [CLOUD], "b": [[1, 1, 1]]}, "b is given without ys"),
    ({"xs": [CLOUD], "p": 0.5}, "p is 0.5"),
    ({"xs": [[1, 1]], "cost": COST, "p": 1}, "leave them out with cost"),
    ({"xs": [[1, 1]], "cost": COST[0]}, r"cost has shape \(2,\)"),
    ({"xs": [[1, 1]], "cost": COST * np.nan}, "cost has NaN"),
    ({"xs": [[1, 1, 1]], "cost": COST}, r"xs\[0\] has shape \(3,\)"),
    (
      {"xs": [[1, 1]], "cost": COST[:, ::-1]},
      "diagonal that is not 0; give",
    ),
    ({"xs": [[1, 1]], "cost": -COST}, "has the entry -1.0, which is below 0"),
    ({"xs": [[1, 1]], "cost": COST * [[1], [2]]}, "cost is not symmetric"),
    ({"xs": [[1, 1]], "cost": COST[:, :1]}, "cost is not symmetric"),
  ],
)
def test_what_has_no_meaning_is_told(arguments, message):
  with pytest.raises(ValueError, match=message) as told:
    emd.pairwise(**arguments)
  assert "\n" not in str(told.value)
