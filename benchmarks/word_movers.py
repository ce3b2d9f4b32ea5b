"""Measures word mover's distances of all pairs of documents, in one run.

    python -m benchmarks.word_movers             # 1,000 documents of 20 words
    python -m benchmarks.word_movers --wasserstein peers/bin/python
    python -m benchmarks.word_movers --smoke     # small, for CI

Documents are synthetic. Their words are drawn from a vocabulary, most of them
from the document's own topic. The word vectors of a topic are close to each
other. A word that is drawn twice has twice the weight, so documents have
different numbers of distinct words.

`pairwise` gets the documents in two forms: as clouds of vectors, and as counts
over the vocabulary with its cost matrix. It is compared with loops in Python
over `ot.emd2`, which take the costs from that matrix or compute them, and with
the package `wasserstein` (see `emd_peers`), which computes them. All take turns
on a sample of the documents, and the table has medians. Then `pairwise` solves
all documents. The second number of these lines is the first call, which
compiles.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import ot
from scipy.spatial.distance import cdist

from benchmarks import emd_peers
from deepemd_jax import emd

_TOPICS = 20
_OWN = 0.7  # share of a document's words that belong to its own topic


def documents(count: int, words: int, vocabulary: int, dimension: int):
  """Returns counts [count, vocabulary] and vectors [vocabulary, dimension]."""
  rng = np.random.default_rng(0)
  topics = rng.standard_normal((_TOPICS, dimension))
  topic_of = rng.integers(_TOPICS, size=vocabulary)
  vectors = topics[topic_of] + rng.standard_normal((vocabulary, dimension))
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  counts = np.zeros((count, vocabulary))
  common = 1 / np.arange(10, vocabulary + 10)  # some words are frequent
  for row in counts:
    own = common * (topic_of == topic_of[rng.integers(vocabulary)])
    chance = _OWN * own / own.sum() + (1 - _OWN) * common / common.sum()
    np.add.at(row, rng.choice(vocabulary, words, p=chance), 1)
  return counts.astype(np.float32), vectors.astype(np.float32)


def clouds(counts: np.ndarray, vectors: np.ndarray):
  """Returns the points [n_i, d] and weights [n_i] of each document."""
  kept = [np.flatnonzero(row) for row in counts]
  weights = [row[i] for row, i in zip(counts, kept, strict=True)]
  return [vectors[i] for i in kept], weights


def loop_over_pot(points, weights, cost_of: Callable) -> np.ndarray:
  """Returns distances [k, k] in float64; cost_of(i, j) is a cost matrix."""
  values = np.zeros((len(points), len(points)))
  masses = [w.astype(np.float64) / w.sum() for w in weights]
  for i in range(len(points)):
    for j in range(i):
      cost = cost_of(i, j).astype(np.float64)
      values[i, j] = values[j, i] = ot.emd2(masses[i], masses[j], cost)
  return values


def peers(counts, vectors, cost, python: str | None) -> dict[str, Callable]:
  """Returns loops over POT and, with `python`, the package `wasserstein`."""
  points, weights = clouds(counts, vectors)
  kept = [np.flatnonzero(row) for row in counts]

  def look_up(i, j):
    return cost[np.ix_(kept[i], kept[j])]

  def compute(i, j):
    return ot.dist(points[i], points[j], "euclidean")

  calls: dict[str, Callable] = {
    "POT, loop, costs of a vocabulary": lambda: loop_over_pot(
      points, weights, look_up
    ),
    "POT, loop, clouds": lambda: loop_over_pot(points, weights, compute),
  }
  if python:
    calls["wasserstein, OpenMP, clouds"] = emd_peers.Wasserstein(
      python,
      "pairs",
      points=np.concatenate(points),
      weights=np.concatenate(weights),
      sizes=np.array([len(w) for w in weights]),
    )
  return calls


def ours(counts, vectors, cost, progress: bool = False) -> dict[str, Callable]:
  """Returns `pairwise` in both of its forms."""
  points, weights = clouds(counts, vectors)
  shares = counts / counts.sum(1, keepdims=True)
  return {
    "pairwise, costs of a vocabulary": lambda: emd.pairwise(
      shares, cost=cost, progress=progress
    ),
    "pairwise, clouds": lambda: emd.pairwise(
      points, a=weights, p=1, progress=progress
    ),
  }


def timed(call: Callable) -> float:
  """Returns the seconds of a call."""
  began = time.perf_counter()
  call()
  if isinstance(call, emd_peers.Wasserstein):
    return call.seconds  # without the transfer to its process and back
  return time.perf_counter() - began


def take_turns(calls: dict[str, Callable], turns: int):
  """Returns the median seconds and the distances of each call."""
  values = {name: call() for name, call in calls.items()}  # compiles
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(turns):
    for name, call in calls.items():
      seconds[name].append(timed(call))
  return {
    name: float(np.median(each)) for name, each in seconds.items()
  }, values


def report(calls, pairs: int, turns: int) -> None:
  """Prints a table that compares each call with the first one."""
  seconds, values = take_turns(calls, turns)
  first = next(iter(calls))
  print(f"{'':<34}{'us a pair':>10}{'ratio':>8}{'worst error':>13}")
  for name, spent in seconds.items():
    error = np.abs(values[name] - values[first]).max() / values[first].max()
    print(
      f"{name:<34}{1e6 * spent / pairs:>10.1f}{spent / seconds[first]:>8.3f}"
      f"{error:>13.0e}"
    )


def main() -> None:
  """Prints the table of the sample, and the time for all documents."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  number = lambda name, default: parser.add_argument(  # noqa: E731
    name, type=int, default=default
  )
  number("--documents", 1000)
  number("--words", 20)
  number("--vocabulary", 2000)
  number("--dimension", 300)
  number("--sample", 100)
  number("--turns", 5)
  parser.add_argument(
    "--wasserstein", help="an interpreter that has this package"
  )
  parser.add_argument("--smoke", action="store_true")
  options = parser.parse_args()
  if options.smoke:
    options.documents, options.words, options.vocabulary = 12, 5, 50
    options.dimension, options.sample, options.turns = 4, 6, 1
  counts, vectors = documents(
    options.documents, options.words, options.vocabulary, options.dimension
  )
  began = time.perf_counter()
  cost = cdist(vectors, vectors).astype(np.float32)
  print(f"the vocabulary's costs: {time.perf_counter() - began:.1f} s")
  few = counts[: options.sample]
  pairs = len(few) * (len(few) - 1) // 2
  print(f"{len(few)} documents, {pairs:,} pairs, {options.turns} turns")
  calls = peers(few, vectors, cost, options.wasserstein)
  calls |= ours(few, vectors, cost)
  report(calls, pairs, options.turns)
  for call in calls.values():
    if isinstance(call, emd_peers.Wasserstein):
      call.close()
  pairs = len(counts) * (len(counts) - 1) // 2
  print(f"all {len(counts):,} documents, {pairs:,} pairs")
  for name, call in ours(counts, vectors, cost, progress=True).items():
    first, second = timed(call), timed(call)
    print(f"{name:<34}{second:>8.1f} s, at first {first:.1f} s")


if __name__ == "__main__":
  main()
