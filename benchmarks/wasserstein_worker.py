"""Runs the package `wasserstein`, in an interpreter that has NumPy 1 and it.

`emd_peers.Wasserstein` starts it. For each line on stdin it solves its problems
once, writes the values to a file, and prints the seconds.
"""

import pathlib
import sys
import time

import numpy as np
import wasserstein


def each(given):
  """Costs [count, n, m], a [count, n] and b [count, m]: values [count]."""
  solver = wasserstein.EMD(norm=True, external_dists=True)
  cost, a, b = (given[name].astype(np.float64) for name in ("cost", "a", "b"))
  # With `norm` the masses are scaled to a total of 1.
  totals = a.sum(1)
  return lambda: np.array(
    [t * solver(p, q, c) for c, p, q, t in zip(cost, a, b, totals, strict=True)]
  )


def pairs(given):
  """Clouds, one after another: points [total, d], weights [total], sizes [k]:
  distances [k, k], on all cores by OpenMP."""
  ends = np.cumsum(given["sizes"])[:-1]
  events = np.column_stack([given["weights"], given["points"]])
  events = np.split(events.astype(np.float64), ends)

  def solve():
    solver = wasserstein.PairwiseEMD(norm=True, verbose=0)
    solver(events)
    return np.array(solver.emds())

  return solve


def main():
  """Takes the task and the folder from the command line."""
  task, folder = sys.argv[1], pathlib.Path(sys.argv[2])
  with np.load(folder / "given.npz") as given:
    solve = {"each": each, "pairs": pairs}[task](given)
  for _ in sys.stdin:
    began = time.perf_counter()
    values = solve()
    seconds = time.perf_counter() - began
    np.save(folder / "values.npy", values)
    print(seconds, flush=True)
