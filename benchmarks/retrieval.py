"""Measures the parts of retrieval from a large gallery.

    python -m benchmarks.retrieval             # 100,000 items; table, plan
    python -m benchmarks.retrieval --smoke     # small, for CI

Items are synthetic. They have random nodes after a leaky ReLU, and a third of
the nodes share a part with their class of ten items. Nothing is encoded. Nodes
are in a file, as for a gallery that is larger than memory. Descriptors are in
memory or streamed from a file. All parts take turns in one run, and the table
has medians. If faiss-cpu is installed, its IndexFlatIP is compared with our
global search. The time and memory of a larger gallery are computed from the
measurements, and those lines are marked as estimates.
"""

import argparse
import functools
import resource
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import measuring
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation import nearest
from deepemd_jax.evaluation.features import DeviceNodes, HostNodes

_CLASS = 10  # items per class
_EMD_QUERIES = 64


def synthetic_gallery(items: int, n: int, channels: int, folder: str):
  """Writes the nodes of a gallery, float32 [items, n, channels], to a file.

  It returns their memory map.
  """
  nodes = np.memmap(
    f"{folder}/nodes", np.float32, "w+", shape=(items, n, channels)
  )
  rng = np.random.default_rng(0)
  for start in range(0, items, 10_000):
    count = min(10_000, items - start)
    of_class = rng.standard_normal((-(-count // _CLASS), 1, channels), "f4")
    own = rng.standard_normal((count, n, channels), "f4")
    shared = rng.random((count, n, 1), "f4") < 1 / 3
    mixed = own + shared * of_class.repeat(_CLASS, 0)[:count]
    nodes[start : start + count] = np.where(mixed > 0, mixed, 0.1 * mixed)
  nodes.flush()
  return nodes


def resident_mib() -> float:
  """Returns this process's peak memory in MiB, with mapped files."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def faiss_search(
  gallery: np.ndarray, rows: np.ndarray, k: int
) -> tuple[Callable, np.ndarray] | None:
  """Returns faiss's exact search and the rows it finds; None without faiss."""
  try:
    import faiss
  except ImportError:
    return None
  index = faiss.IndexFlatIP(gallery.shape[1])
  index.add(gallery)

  def search():
    # One more than k, because the query itself is found.
    return index.search(gallery[rows], k + 1)[1]

  others = [
    [i for i in row if i != own][:k]
    for row, own in zip(search(), rows, strict=True)
  ]
  return search, np.array(others)


def measure_global(
  gallery: np.ndarray, rows: np.ndarray, k: int, folder: str, turns: int
) -> tuple[dict, np.ndarray]:
  """Times the search among all descriptors.

  Args:
    gallery: [N, c], the descriptors.
    rows: int [q], the rows of the queries.
    k: number of items to find for each query.
    folder: the folder for a copy of the descriptors that is streamed.
    turns: number of turns of all parts.

  Returns:
    "global_ms", the milliseconds per query in a batch or, if its name says so,
    of a single query; with faiss also "faiss_agrees", the share of items that
    both find; and the rows that our search finds, int [q, k].
  """
  streamed = np.memmap(
    f"{folder}/descriptors", np.float32, "w+", shape=gallery.shape
  )
  streamed[:] = gallery
  search = functools.partial(nearest.top, k=k)
  work = {
    "in memory": lambda: search(gallery, rows),
    "streamed": lambda: search(streamed, rows),
    "one query, streamed": lambda: search(streamed, rows[:1]),
  }
  candidates, _ = search(gallery, rows)
  columns = {}
  peer = faiss_search(gallery, rows, k)
  if peer:
    work["faiss IndexFlatIP"] = peer[0]
    same = [
      len(set(a) & set(b)) / k
      for a, b in zip(candidates.tolist(), peer[1].tolist(), strict=True)
    ]
    columns["faiss_agrees"] = float(np.mean(same))
  seconds = measuring.median_seconds(work, turns)
  columns["global_ms"] = {
    name: 1e3 * value / (1 if name.startswith("one") else len(rows))
    for name, value in seconds.items()
  }
  return columns, candidates


def measure_emd(
  nodes: np.ndarray, rows: np.ndarray, candidates, depths, turns: int
) -> dict[int, dict[str, float]]:
  """Times the re-ranking of the first candidates by EMD.

  Args:
    nodes: [N, n, c], a memory map of the nodes.
    rows: int [q], the rows of the queries.
    candidates: int [q, k], the rows that the global search found.
    depths: numbers of candidates to re-rank, at most k.
    turns: number of turns of both places of the nodes.

  Returns:
    {depth: {place of the nodes: milliseconds per query}}.
  """
  rerank = nearest.Reranker()
  places = {
    "on the device": DeviceNodes(sharding.replicate(nodes)),
    "from the file": HostNodes(nodes),
  }
  milliseconds = {}
  for depth in depths:
    first = candidates[:, :depth]
    seconds = measuring.median_seconds(
      {
        place: functools.partial(rerank, stored, rows, first)
        for place, stored in places.items()
      },
      turns,
    )
    milliseconds[depth] = {
      place: 1e3 * value / len(rows) for place, value in seconds.items()
    }
  return milliseconds


def measure(options: argparse.Namespace, folder: str) -> dict:
  """Makes the gallery in `folder` and times all parts."""
  rng = np.random.default_rng(1)
  nodes = synthetic_gallery(
    options.items, options.nodes, options.channels, folder
  )
  start = time.perf_counter()
  gallery = np.empty((options.items, options.channels), np.float32)
  nearest.describe(nodes, gallery)
  describe_s = time.perf_counter() - start
  rows = rng.permutation(options.items)[: options.queries]
  columns, candidates = measure_global(
    gallery, rows, max(options.depths), folder, options.turns
  )
  first = slice(_EMD_QUERIES)
  return {
    "items": options.items,
    "nodes": options.nodes,
    "channels": options.channels,
    "describe_s": describe_s,
    "emd_ms": measure_emd(
      nodes, rows[first], candidates[first], options.depths, options.turns
    ),
    "memory_mib": resident_mib(),
    **columns,
  }


def plan(measured: dict, items: int) -> list[str]:
  """Returns estimates for a gallery of `items` from the measurements."""
  n, channels = measured["nodes"], measured["channels"]
  growth = items / measured["items"]
  lines = [
    f"descriptors, 4 N c bytes: {4 * items * channels / 2**30:.3g} GiB; nodes, "
    f"4 N n c bytes, in a file: {4 * items * n * channels / 2**30:.3g} GiB",
    f"describing: {growth * measured['describe_s']:.1f} s, once, and reading "
    "that file",
  ]
  for name, value in measured["global_ms"].items():
    lines.append(f"global, {name}: {growth * value:.3g} ms a query")
  for depth, row in measured["emd_ms"].items():
    lines.append(
      f"EMD of {depth}: {row['from the file']:.3g} ms a query; where the file "
      f"is not in memory also {depth} random reads of "
      f"{4 * n * channels / 1024:.3g} KiB"
    )
  return [f"estimate: {line}" for line in lines]


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--items", type=int, default=100_000)
  parser.add_argument("--nodes", type=int, default=25)
  parser.add_argument("--channels", type=int, default=80)
  parser.add_argument("--queries", type=int, default=256)
  parser.add_argument(
    "--depths", type=int, nargs="+", default=[10, 50, 100, 200]
  )
  parser.add_argument("--planned", type=int, default=1_000_000)
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--json", help="also write the figures to this file")
  parser.add_argument("--smoke", action="store_true")
  options = parser.parse_args()
  if options.smoke:
    options.items, options.nodes, options.channels = 300, 4, 8
    options.queries, options.depths, options.turns = 8, [3], 1
  return options


def main() -> None:
  """Prints the table and the plan."""
  options = _parse()
  with tempfile.TemporaryDirectory() as folder:
    measured = measure(options, folder)
  print(
    f"{options.items:,} items of {options.nodes} nodes with {options.channels} "
    f"channels, {options.queries} queries; {jax.device_count()} x "
    f"{jax.devices()[0].device_kind}\n"
  )
  print(f"{'part':<46}{'ms a query':>12}")
  for name, value in measured["global_ms"].items():
    print(f"{f'global, top {max(options.depths)}, {name}':<46}{value:>12.3f}")
  for depth, row in measured["emd_ms"].items():
    for place, value in row.items():
      print(f"{f'EMD of {depth}, nodes {place}':<46}{value:>12.3f}")
  if "faiss_agrees" in measured:
    print(f"\nfaiss finds the same: {100 * measured['faiss_agrees']:.2f} %")
  print(f"describing all: {measured['describe_s']:.1f} s, once")
  memory = measured["memory_mib"]
  print(f"most memory: {memory:.0f} MiB, mapped files included")
  print(f"\n{options.planned:,} items")
  print("\n".join(plan(measured, options.planned)))
  measuring.write_json(options.json, measured)


if __name__ == "__main__":
  main()
