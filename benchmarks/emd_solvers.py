"""Every way to an Earth Mover's Distance, in one run: time, error, gradient.

    python -m benchmarks.emd_solvers                 # table, JSON, plot
    python -m benchmarks.emd_solvers --nodes 25 --batches 375
    python -m benchmarks.emd_solvers --only "InteriorPoint|cv2"
    python -m benchmarks.emd_solvers --smoke         # a minute's check, for CI

Problems are DeepEMD's: 1 - cosine between correlated features, masses by
cross-reference, many at the floor. All are given to every solver, in turns; the
median of the turns counts. In a turn a solver gets some calls, one after
another, and the last is waited for, as in a training loop: what an accelerator
takes to wake up and to report is not its arithmetic. Loops in Python over
OpenCV (`pip install opencv-python-headless`; a column is left out if it is
missing) and POT are what one would write without this library. Errors are
against POT in float64, relative to the moved mass (costs are about 1).
"""

import argparse
import functools
import importlib.util
import json
import math
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from ot.lp.emd_wrap import emd_c

from benchmarks import estimate
from deepemd_jax import emd
from deepemd_jax.emd import interior_point_gpu

SOLVERS = {
  "InteriorPoint": emd.InteriorPoint(),
  "InteriorPoint, no kernel": emd.InteriorPoint(kernel=False),
  "NetworkSimplex": emd.NetworkSimplex(),
  "NetworkSimplex, 1 thread": emd.NetworkSimplex(threads=1),
  "RegularizedQP L2 1e-6": emd.RegularizedQP(),
  "Sinkhorn (ott) 0.1": emd.Sinkhorn(0.1),
  "Sinkhorn (ott) 0.01": emd.Sinkhorn(0.01),
  "Sinkhorn (ott) 0.001": emd.Sinkhorn(0.001),
}
if not interior_point_gpu.is_available():
  del SOLVERS["InteriorPoint, no kernel"]  # is the same there
JUDGE, PEER = "POT, Python loop", "cv2.EMD, Python loop"
SLOW = 2.0  # seconds; what takes longer runs once
TURN, CALLS = 0.03, 50  # seconds of calls in a turn, if not more than so many


def problems(count: int, n: int, seed: int = 0):
  """cost [count, n, n] and raw weights [count, n], float32."""
  rng = np.random.default_rng([seed, n])
  parts = rng.standard_normal((count, 4, 64)) * 1.2

  def features():
    mix = rng.dirichlet(np.full(4, 0.4), (count, n))
    x = mix @ parts + 0.5 * rng.standard_normal((count, n, 64))
    return np.where(x > 0, x, 0.1 * x)

  def weights(x, y):
    """Cross-reference, with up to 70% of the nodes pushed to the floor."""
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
  """Scaled to one per node, as DeepEMD does."""
  return weights * (weights.shape[-1] / weights.sum(-1, keepdims=True))


def jitted(solver):
  """(plan, value and gradient of the values' sum) of cost and raw weights."""

  def plan(cost, w1, w2):
    return emd.solve(cost, masses(w1), masses(w2), solver)

  def value(cost, w1, w2):
    return emd.distance(cost, masses(w1), masses(w2), solver).sum()

  return jax.jit(plan), jax.jit(jax.value_and_grad(value, (0, 1, 2)))


def loop_over_pot(cost, a, b):
  """Values [count], in float64."""
  values = []
  for c, p, q in zip(
    *(x.astype(np.float64) for x in (cost, a, b)), strict=True
  ):
    flow = emd_c(p, q * (p.sum() / q.sum()), c, 1_000_000, 1)[0]
    values.append((flow * c).sum())
  return np.array(values)


def loop_over_opencv(cost, a, b):
  """Values [count]; the official code's way."""
  import cv2

  values = []
  for c, p, q in zip(cost, a, b, strict=True):
    flow = cv2.EMD(p[:, None], q[:, None], cv2.DIST_USER, c)[2]
    values.append((flow.astype(np.float64) * c).sum())
  return np.array(values)


def has_opencv() -> bool:
  """Whether its column can be there."""
  return importlib.util.find_spec("cv2") is not None


def timed(function, *arguments, calls: int = 1) -> float:
  """Seconds a call, the last of which is waited for."""
  began = time.perf_counter()
  for _ in range(calls):
    output = function(*arguments)
  jax.block_until_ready(output)
  return (time.perf_counter() - began) / calls


def take_turns(functions: dict, arguments: dict, repeats: int) -> dict:
  """Median seconds of a call of each; slow ones run once."""
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
  """Of whole gradients, a problem each."""
  join = lambda parts: np.concatenate(  # noqa: E731
    [np.asarray(x, np.float64).reshape(len(x), -1) for x in parts], 1
  )
  x, y = join(ours), join(exact)
  return (x * y).sum(1) / (
    np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
  )


def run_solver(name: str, on_device, limit: float):
  """Columns of a solver's row, its plan, and what `jitted` returns, compiled;
  None if it would take too long."""
  plan, gradient = jitted(SOLVERS[name])
  began = time.perf_counter()
  plan = plan.lower(*on_device).compile()
  compiling = time.perf_counter() - began
  # How long would all take? Eight problems tell, if roughly.
  few = [x[:8] for x in on_device]
  quick = jitted(SOLVERS[name])[0].lower(*few).compile()
  timed(quick, *few)
  if timed(quick, *few) * len(on_device[0]) / 8 > limit:
    print(f"  {name}: left out, would take more than {limit:.0f} s", flush=True)
    return None
  scratch = plan.memory_analysis()
  plans = jax.tree.map(np.asarray, plan(*on_device))
  columns = {
    "compile_s": compiling,
    "scratch_mb": scratch.temp_size_in_bytes / 1e6 if scratch else None,
    "converged": float(plans.converged.mean()),
    "steps": float(plans.steps.mean()),
  }
  return columns, plans, plan, gradient.lower(*on_device).compile()


def measure(
  count: int, n: int, repeats: int, names, limit: float
) -> list[dict]:
  """One row for each column of the benchmark."""
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
  loops = {JUDGE: loop_over_pot}
  loops |= {PEER: loop_over_opencv} if has_opencv() else {}
  for name, loop in loops.items():
    rows[name] = {}
    forward[name], arguments[name] = loop, (cost, a, b)
    values[name] = loop(cost, a, b)

  exact_gradient = jitted(emd.NetworkSimplex())[1](*on_device)[1]
  seconds = take_turns(forward, arguments, repeats)
  seconds_both = take_turns(both, arguments, repeats)
  peer = seconds.get(PEER, seconds[JUDGE])
  for name, row in rows.items():
    row |= {"solver": name, "nodes": n, "batch": count}
    error = np.abs(values[name] - values[JUDGE]) / n
    row |= {"error_max": float(error.max()), "error_mean": float(error.mean())}
    row["microseconds"] = 1e6 * seconds[name] / count
    row["ratio"] = seconds[name] / peer
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
  """Three of them, none in an exponent: a GPU has ratios far below 1."""
  return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def line(row: dict) -> str:
  """A row of the table."""

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


def plot(rows: list[dict], path: pathlib.Path) -> None:
  """Error against time at one size."""
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
  # The judge's own error is nothing: only its time is drawn.
  judge = next(row for row in rows if row["solver"] == JUDGE)
  axes.axvline(
    judge["microseconds"], color="0.6", ls="--", label=judge["solver"]
  )
  rest = [row for row in rows if row is not judge]
  for row, marker in zip(rest, "osD^v<>pP", strict=False):
    axes.loglog(
      row["microseconds"],
      max(row["error_max"], 1e-9),
      marker,
      ms=7,
      alpha=0.85,
      label=row["solver"],
    )
  figure.legend(loc="outside right center", fontsize=8, frameon=False)
  axes.set_xlabel("microseconds per problem")
  axes.set_ylabel("worst error of the value / mass")
  axes.set_title(
    f"{rows[0]['nodes']} x {rows[0]['nodes']} nodes, batch {rows[0]['batch']}, "
    f"{jax.devices()[0].device_kind}",
    fontsize=10,
  )
  axes.grid(alpha=0.3)
  figure.savefig(path, dpi=150)


def main() -> None:
  """Prints the table; writes JSON and a plot."""
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
  parser.add_argument("--out", type=pathlib.Path, help="folder: JSON and plot")
  parser.add_argument("--smoke", action="store_true")
  options = parser.parse_args()
  names = [name for name in SOLVERS if re.search(options.only, name)]
  if options.smoke:
    options.nodes, options.batches, options.repeats = [5], [8], 2
    names = ["InteriorPoint", "NetworkSimplex"]
  if not has_opencv():
    print("OpenCV is not installed: ratios are against the loop over POT")
  rows = []
  for n in options.nodes:
    for count in options.batches:
      print(f"\n{n} x {n} nodes, batch {count}\n{HEAD}", flush=True)
      measured = measure(count, n, options.repeats, names, options.limit)
      rows += measured
      for row in measured:
        print(line(row), flush=True)
      for row in measured:
        if "gflop_per_s" in row:
          print(
            f"{row['solver']}: {figures(1 / row['ratio'])} times as fast as "
            f"{PEER if has_opencv() else JUDGE}; {row['steps']:.1f} steps a "
            "problem, by the formula of estimate.py "
            f"{row['gflop_per_s']:.0f} GFLOP/s"
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
    plot(chosen, options.out / "emd_solvers.png")


if __name__ == "__main__":
  main()
