"""Compares all solvers of the Earth Mover's Distance: time, error, gradient.

    python -m benchmarks.emd_solvers                 # table, JSON, plot
    python -m benchmarks.emd_solvers --nodes 25 --batches 375
    python -m benchmarks.emd_solvers --only "InteriorPoint|cv2"
    python -m benchmarks.emd_solvers --smoke         # a minute's check, for CI

The problems are those of DeepEMD. Costs are 1 - cosine between correlated
features, and masses come from cross-reference, with many at the floor. Every
solver gets all problems, in turns, and the table has medians over the turns. In
a turn a solver is called several times, and only the last call is waited for,
as in a training loop. So the time that an accelerator takes to start and to
report does not count.

Loops in Python over POT, OpenCV (`pip install opencv-python-headless`; omitted
if it is missing) and the package `wasserstein` (see `emd_peers`) are the code
that one would write without this library. Errors are differences from POT in
float64, relative to the moved mass (costs are about 1). A solver that would
take longer than `--limit` seconds is left out, as estimated from smaller
problems. So `--nodes 1024 --batches 8` finishes, too.
"""

import argparse
import functools
import json
import math
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import emd_peers, emd_plot, estimate
from deepemd_jax import emd
from deepemd_jax.emd import interior_point_gpu
from deepemd_jax.emd.native import library

SOLVERS = {
  "InteriorPoint": emd.InteriorPoint(),
  "InteriorPoint, no kernel": emd.InteriorPoint(kernel=False),
  "NetworkSimplex": emd.NetworkSimplex(),
  "NetworkSimplex, 1 thread": emd.NetworkSimplex(threads=1),
  "NetworkSimplex, POT's code": emd.NetworkSimplex(native=False),
  "RegularizedQP L2 1e-6": emd.RegularizedQP(),
  "Sinkhorn (ott) 0.1": emd.Sinkhorn(0.1),
  "Sinkhorn (ott) 0.01": emd.Sinkhorn(0.01),
  "Sinkhorn (ott) 0.001": emd.Sinkhorn(0.001),
}
if not interior_point_gpu.is_available():
  del SOLVERS["InteriorPoint, no kernel"]  # it is the same as InteriorPoint
if not library.load():
  del SOLVERS["NetworkSimplex, POT's code"]  # it is the same as NetworkSimplex
JUDGE, PEER = "POT, Python loop", "cv2.EMD, Python loop"
WASSERSTEIN = "wasserstein, Python loop"
SLOW = 2.0  # seconds; a slower solver runs only once
FEW = 32  # number of nodes for which the time of a problem is negligible
TURN, CALLS = 0.03, 50  # seconds of calls in a turn, and their largest number


def problems(count: int, n: int, seed: int = 0):
  """Returns cost [count, n, n] and two raw weights [count, n], float32."""
  rng = np.random.default_rng([seed, n])
  parts = rng.standard_normal((count, 4, 64)) * 1.2

  def features():
    mix = rng.dirichlet(np.full(4, 0.4), (count, n))
    x = mix @ parts + 0.5 * rng.standard_normal((count, n, 64))
    return np.where(x > 0, x, 0.1 * x)

  def weights(x, y):
    """Returns cross-reference weights with up to 70% of nodes at the floor."""
    dots = (x * y.mean(1, keepdims=True)).sum(-1)
    share = rng.uniform(0, 0.7, count)
    cut = [np.quantile(d, q) for d, q in zip(dots, share, strict=True)]
    return np.maximum(dots - np.array(cut)[:, None], 0) + 1e-3

  x, y = features(), features()
  w1, w2 = weights(x, y), weights(y, x)
  x, y = (z - z.mean(-1, keepdims=True) for z in (x, y))
  x, y = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
  cost = 1 - x @ y.swapaxes(1, 2)
  return [z.astype(np.float32) for z in (cost, w1, w2)]


def masses(weights):
  """Scales weights [..., n] to a mean of 1, as DeepEMD does."""
  return weights * (weights.shape[-1] / weights.sum(-1, keepdims=True))


def jitted(solver):
  """Returns two functions of cost and raw weights.

  The first returns the plan. The second returns the sum of the values and its
  gradient.
  """

  def plan(cost, w1, w2):
    return emd.solve(cost, masses(w1), masses(w2), solver)

  def value(cost, w1, w2):
    return emd.distance(cost, masses(w1), masses(w2), solver).sum()

  return jax.jit(plan), jax.jit(jax.value_and_grad(value, (0, 1, 2)))


def timed(function, *arguments, calls: int = 1) -> float:
  """Returns the seconds per call; only the last call is waited for."""
  began = time.perf_counter()
  for _ in range(calls):
    output = function(*arguments)
  jax.block_until_ready(output)
  if isinstance(function, emd_peers.Wasserstein):
    return function.seconds  # without the transfer to its process and back
  return (time.perf_counter() - began) / calls


def take_turns(functions: dict, arguments: dict, repeats: int) -> dict:
  """Returns the median seconds per call; slow functions run only once."""
  first = {name: timed(f, *arguments[name]) for name, f in functions.items()}
  seconds = {name: [spent] for name, spent in first.items() if spent > SLOW}
  turns: dict[str, list[float]] = {}
  for _ in range(repeats):
    for name in (x for x in functions if x not in seconds):
      calls = min(CALLS, 1 + int(TURN / first[name]))
      spent = timed(functions[name], *arguments[name], calls=calls)
      turns.setdefault(name, []).append(spent)
  seconds |= turns
  return {name: float(np.median(spent)) for name, spent in seconds.items()}


def cosine(ours, exact) -> np.ndarray:
  """Returns the cosine of the whole gradients of each problem, [count]."""
  join = lambda parts: np.concatenate(  # noqa: E731
    [np.asarray(x, np.float64).reshape(len(x), -1) for x in parts], 1
  )
  x, y = join(ours), join(exact)
  return (x * y).sum(1) / (
    np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
  )


def takes_too_long(name: str, function, arguments, limit: float) -> bool:
  """Returns whether a function of the problems would exceed `limit` seconds.

  It measures 8 smaller problems, first with few nodes and then with 4 times as
  many. The time grows at least with the square of the number of nodes.
  """
  count, n = arguments[1].shape
  nodes = [n]
  while nodes[0] > 4 * FEW:
    nodes.insert(0, nodes[0] // 4)
  for k in nodes:
    few = [x[:8, :k] for x in arguments]
    few[0] = few[0][:, :, :k]
    timed(function, *few)
    if timed(function, *few) * max(1, count / 8) * (n / k) ** 2 > limit:
      print(f"  {name}: left out, would take more than {limit:.0f} s")
      return True
  return False


def run_solver(name: str, on_device, limit: float):
  """Runs a solver, or returns None if it would take too long.

  Returns:
    The columns of its row, its plan, and both compiled functions of `jitted`.
  """
  plan, gradient = jitted(SOLVERS[name])
  if takes_too_long(name, jitted(SOLVERS[name])[0], on_device, limit):
    return None
  began = time.perf_counter()
  plan = plan.lower(*on_device).compile()
  compiling = time.perf_counter() - began
  scratch = plan.memory_analysis()
  plans = jax.tree.map(np.asarray, plan(*on_device))
  columns = {
    "compile_s": compiling,
    "scratch_mb": scratch.temp_size_in_bytes / 1e6 if scratch else None,
    "converged": float(plans.converged.mean()),
    "steps": float(plans.steps.mean()),
  }
  return columns, plans, plan, gradient.lower(*on_device).compile()


def loops(arguments, python: str | None, limit: float) -> dict:
  """Returns the loops in Python that are available and fast enough."""
  found = {JUDGE: emd_peers.loop_over_pot}
  if emd_peers.has_opencv():
    found[PEER] = emd_peers.loop_over_opencv
  found = {
    name: loop
    for name, loop in found.items()
    if name == JUDGE or not takes_too_long(name, loop, arguments, limit)
  }
  if python:
    names = ("cost", "a", "b")
    given = dict(zip(names, arguments, strict=True))
    found[WASSERSTEIN] = emd_peers.Wasserstein(python, "each", **given)
  return found


def measure(
  count: int, n: int, repeats: int, names, limit: float, python=None
) -> list[dict]:
  """Returns one row for each solver and each Python loop."""
  cost, w1, w2 = problems(count, n)
  a, b = np.asarray(masses(w1)), np.asarray(masses(w2))
  on_device = [jnp.asarray(x) for x in (cost, w1, w2)]
  rows, values = {}, {}
  forward, both, arguments = {}, {}, {}
  for name in names:
    outcome = run_solver(name, on_device, limit)
    if outcome is None:
      continue
    columns, plan, forward[name], both[name] = outcome
    arguments[name] = on_device
    values[name] = (cost.astype(np.float64) * plan.flow).sum((1, 2))
    wrong = np.abs(plan.flow.sum(2) - a), np.abs(plan.flow.sum(1) - b)
    marginal = float(max(x.max() for x in wrong) / n)
    rows[name] = {**columns, "marginal": marginal}
  for name, loop in loops((cost, a, b), python, limit).items():
    rows[name] = {}
    forward[name], arguments[name] = loop, (cost, a, b)
    values[name] = loop(cost, a, b)

  exact_gradient = jitted(emd.NetworkSimplex())[1](*on_device)[1]
  seconds = take_turns(forward, arguments, repeats)
  seconds_both = take_turns(both, arguments, repeats)
  if WASSERSTEIN in forward:
    forward[WASSERSTEIN].close()
  peer = PEER if PEER in seconds else JUDGE
  for name, row in rows.items():
    row |= {"solver": name, "nodes": n, "batch": count}
    error = np.abs(values[name] - values[JUDGE]) / n
    row |= {"error_max": float(error.max()), "error_mean": float(error.mean())}
    row["microseconds"] = 1e6 * seconds[name] / count
    row["ratio"] = seconds[name] / seconds[peer]
    row["peer"] = peer
    if name in both:
      row["microseconds_gradient"] = 1e6 * seconds_both[name] / count
      angles = cosine(both[name](*on_device)[1], exact_gradient)
      row["cosine_mean"] = float(angles.mean())
      row["cosine_min"] = float(angles.min())
    if name.startswith("InteriorPoint"):
      flops = count * estimate.emd_flops(n, row["steps"])
      row["gflop_per_s"] = flops / seconds[name] / 1e9
  return list(rows.values())


HEAD = (
  f"{'solver':<26}{'us':>9}{'ratio':>9}{'us +grad':>10}{'compile':>9}"
  f"{'scratch':>9}{'err max':>9}{'err mean':>10}{'marginal':>10}"
  f"{'converged':>10}{'cosine':>9}"
)


def figures(value: float) -> str:
  """Returns a number with three digits and no exponent.

  Ratios on a GPU can be far below 1.
  """
  return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def line(row: dict) -> str:
  """Returns a row of the table as text."""

  def cell(key, form, width):
    value = row.get(key)
    if value is None:
      return "-".rjust(width)
    return (form(value) if callable(form) else f"{value:{form}}").rjust(width)

  return (
    f"{row['solver']:<26}"
    + cell("microseconds", figures, 9)
    + cell("ratio", figures, 9)
    + cell("microseconds_gradient", figures, 10)
    + cell("compile_s", ".1f", 9)
    + cell("scratch_mb", ".1f", 9)
    + cell("error_max", ".0e", 9)
    + cell("error_mean", ".0e", 10)
    + cell("marginal", ".0e", 10)
    + cell("converged", ".3f", 10)
    + cell("cosine_mean", ".4f", 9)
  )


def main() -> None:
  """Prints the table, and writes JSON and a plot if a folder is given."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  numbers = functools.partial(parser.add_argument, type=int, nargs="+")
  numbers("--nodes", default=[9, 13, 25, 30, 38])
  numbers("--batches", default=[375, 3750])
  parser.add_argument(
    "--only", default="", help="solvers whose name has this (a pattern)"
  )
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument(
    "--limit", type=float, default=60.0, help="leave out what takes longer, s"
  )
  parser.add_argument(
    "--wasserstein", help="an interpreter that has this package"
  )
  parser.add_argument("--out", type=pathlib.Path, help="folder: JSON and plot")
  parser.add_argument("--smoke", action="store_true")
  options = parser.parse_args()
  names = [name for name in SOLVERS if re.search(options.only, name)]
  if options.smoke:
    options.nodes, options.batches, options.repeats = [5], [8], 2
    names = ["InteriorPoint", "NetworkSimplex"]
  rows = []
  for n in options.nodes:
    for count in options.batches:
      print(f"\n{n} x {n} nodes, batch {count}\n{HEAD}", flush=True)
      measured = measure(
        count, n, options.repeats, names, options.limit, options.wasserstein
      )
      rows += measured
      for row in measured:
        print(line(row), flush=True)
      print(f"ratio: against {measured[0]['peer']}")
      for row in measured:
        if "gflop_per_s" in row:
          print(
            f"{row['solver']}: {figures(1 / row['ratio'])} times as fast as "
            f"{row['peer']}; {row['steps']:.1f} steps a problem, by the "
            f"formula of estimate.py {row['gflop_per_s']:.0f} GFLOP/s"
          )
  if options.out:
    options.out.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0].device_kind
    report = {"device": device, "jax": jax.__version__, "rows": rows}
    (options.out / "emd_solvers.json").write_text(json.dumps(report, indent=1))
    size = 25 if 25 in options.nodes else options.nodes[0]
    chosen = [
      r for r in rows if r["nodes"] == size and r["batch"] == options.batches[0]
    ]
    emd_plot.error_against_time(chosen, JUDGE, options.out / "emd_solvers.png")


if __name__ == "__main__":
  main()
