"""Runs the package `wasserstein` in an interpreter with NumPy 1.

`emd_peers.Wasserstein` starts this program. For each line on stdin, the program
solves its problems once, writes the values to a file, and prints the seconds.
"""

import pathlib
import sys
import time

import numpy as np
import wasserstein


def each(given):
  """Returns a function that computes the values [count] of the problems.

  `given` has cost [count, n, m], a [count, n] and b [count, m].
  """
  solver = wasserstein.EMD(norm=True, external_dists=True)
  cost, a, b = (given[name].astype(np.float64) for name in ("cost", "a", "b"))
  # `norm` scales the masses to a total of 1.
  totals = a.sum(1)
  return lambda: np.array(
    [t * solver(p, q, c) for c, p, q, t in zip(cost, a, b, totals, strict=True)]
  )


def pairs(given):
  """Returns a function that computes the distances [k, k] of all clouds.

  `given` has the clouds one after another: points [total, d], weights [total]
  and sizes [k]. The function uses all cores by OpenMP.
  """
  ends = np.cumsum(given["sizes"])[:-1]
  events = np.column_stack([given["weights"], given["points"]])
  events = np.split(events.astype(np.float64), ends)

  def solve():
    solver = wasserstein.PairwiseEMD(norm=True, verbose=0)
    solver(events)
    return np.array(solver.emds())

  return solve


def main():
  """Runs the task in the folder that the command line gives."""
  task, folder = sys.argv[1], pathlib.Path(sys.argv[2])
  with np.load(folder / "given.npz") as given:
    solve = {"each": each, "pairs": pairs}[task](given)
  for _ in sys.stdin:
    began = time.perf_counter()
    values = solve()
    seconds = time.perf_counter() - began
    np.save(folder / "values.npy", values)
    print(seconds, flush=True)
