"""What retrieval from a large gallery costs, part by part.

    python -m benchmarks.retrieval             # 100,000 items; table, plan
    python -m benchmarks.retrieval --smoke     # small, for CI

Items are synthetic: random nodes after a leaky ReLU, a third of each item's
shared with its class of ten. Nothing is encoded. Nodes lie in a file, as those
of a gallery that is larger than memory do; descriptors are in memory, or
streamed from a file too. Everything is timed in turns in one run; the median
counts. faiss-cpu's IndexFlatIP is timed beside our global search where it is
installed. From the measured terms the time and memory of a larger gallery are
worked out; those lines are marked as estimates.
"""

import argparse
import functools
import json
import resource
import tempfile
import time

import jax
import numpy as np

from deepemd_jax.evaluation import nearest

_CLASS = 10  # items of a class


def synthetic(items: int, n: int, channels: int, folder: str, seed: int = 0):
  """Nodes of a gallery, a float32 memory map [items, n, c]."""
  made = np.memmap(
    f"{folder}/nodes", np.float32, "w+", shape=(items, n, channels)
  )
  rng = np.random.default_rng(seed)
  for start in range(0, items, 10_000):
    count = min(10_000, items - start)
    of_class = rng.standard_normal((-(-count // _CLASS), 1, channels), "f4")
    own = rng.standard_normal((count, n, channels), "f4")
    shared = rng.random((count, n, 1), "f4") < 1 / 3
    mixed = own + shared * of_class.repeat(_CLASS, 0)[:count]
    made[start : start + count] = np.where(mixed > 0, mixed, 0.1 * mixed)
  made.flush()
  return made


def measure(work: dict, turns: int) -> dict[str, float]:
  """Median seconds of each, in turns, after one call that compiles."""
  for run in work.values():
    run()
  spent: dict[str, list] = {name: [] for name in work}
  for _ in range(turns):
    for name, run in work.items():
      began = time.perf_counter()
      run()
      spent[name].append(time.perf_counter() - began)
  return {name: float(np.median(seconds)) for name, seconds in spent.items()}


def resident_mib() -> float:
  """The most memory that this process has had, MiB, files mapped included."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def faiss_search(gallery, rows, k):
  """(function, the rows that it finds) of faiss's exact search, or None."""
  try:
    import faiss
  except ImportError:
    return None
  index = faiss.IndexFlatIP(gallery.shape[1])
  index.add(gallery)

  def search():
    # One more, since it finds the query itself.
    return index.search(gallery[rows], k + 1)[1]

  found = search()
  others = [
    [i for i in row if i != own][:k]
    for row, own in zip(found, rows, strict=True)
  ]
  return search, np.array(others)


def plan(found: dict, items: int) -> list[str]:
  """The lines about a gallery of `items`, from the measured terms."""
  n, channels = found["nodes"], found["channels"]
  growth = items / found["items"]
  lines = [
    f"descriptors, 4 N c bytes: {4 * items * channels / 2**30:.3g} GiB; nodes, "
    f"4 N n c bytes, in a file: {4 * items * n * channels / 2**30:.3g} GiB",
    f"describing: {growth * found['describe_s']:.1f} s, once, and reading that "
    "file",
  ]
  for name, value in found["global_ms"].items():
    lines.append(f"global, {name}: {growth * value:.3g} ms a query")
  for depth, row in found["emd_ms"].items():
    lines.append(
      f"EMD of {depth}: {row['from the file']:.3g} ms a query; where the file "
      f"is not in memory also {depth} random reads of "
      f"{4 * n * channels / 1024:.3g} KiB"
    )
  return [f"estimate: {line}" for line in lines]


def main() -> None:
  """Prints the table and the plan."""
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
    options.queries, options.depths, options.turns = 8, [3, 5], 1
  with tempfile.TemporaryDirectory() as folder:
    found = run(options, folder)
  print(
    f"{options.items:,} items of {options.nodes} nodes with {options.channels} "
    f"channels, {options.queries} queries; {jax.device_count()} x "
    f"{jax.devices()[0].device_kind}\n"
  )
  print(f"{'part':<46}{'ms a query':>12}")
  for name, value in found["global_ms"].items():
    print(f"{f'global, top {max(options.depths)}, {name}':<46}{value:>12.3f}")
  for depth, row in found["emd_ms"].items():
    for place, value in row.items():
      print(f"{f'EMD of {depth}, nodes {place}':<46}{value:>12.3f}")
  if "faiss_agrees" in found:
    print(f"\nfaiss finds the same: {100 * found['faiss_agrees']:.2f} %")
  print(f"describing all: {found['describe_s']:.1f} s, once")
  print(f"most memory: {found['memory_mib']:.0f} MiB, mapped files included")
  print(f"\n{options.planned:,} items")
  print("\n".join(plan(found, options.planned)))
  if options.json:
    with open(options.json, "w") as file:
      json.dump(found, file, indent=2)


def run(options, folder: str) -> dict:
  """Makes the gallery and times all parts; ms are of one query in a batch, but
  for those of a single one."""
  rng = np.random.default_rng(1)
  nodes = synthetic(options.items, options.nodes, options.channels, folder)
  shape = options.items, options.channels
  began = time.perf_counter()
  gallery = nearest.describe(nodes, np.empty(shape, np.float32))
  describing = time.perf_counter() - began
  filed = np.memmap(f"{folder}/descriptors", np.float32, "w+", shape=shape)
  filed[:] = gallery
  k = max(options.depths)
  rows = rng.permutation(options.items)[: options.queries]
  search = functools.partial(nearest.top, k=k)
  work = {
    "in memory": lambda: search(gallery, rows),
    "streamed": lambda: search(filed, rows),
    "one query, streamed": lambda: search(filed, rows[:1]),
  }
  candidates, _ = search(gallery, rows)
  agrees = {}
  peer = faiss_search(gallery, rows, k)
  if peer:
    work["faiss IndexFlatIP"] = peer[0]
    same = [
      len(set(a) & set(b)) / k
      for a, b in zip(candidates.tolist(), peer[1].tolist(), strict=True)
    ]
    agrees = {"faiss_agrees": float(np.mean(same))}
  seconds = measure(work, options.turns)
  global_ms = {
    name: 1e3 * value / (1 if name.startswith("one") else len(rows))
    for name, value in seconds.items()
  }
  rerank = nearest.reranker()
  kept = jax.device_put(np.asarray(nodes))
  asked = rows[:64]
  emd = {}
  for depth in options.depths:
    first = candidates[: len(asked), :depth]
    seconds = measure(
      {
        "on the device": functools.partial(rerank, kept, asked, first),
        "from the file": functools.partial(rerank, nodes, asked, first),
      },
      options.turns,
    )
    emd[depth] = {
      place: 1e3 * value / len(asked) for place, value in seconds.items()
    }
  return {
    "items": options.items,
    "nodes": options.nodes,
    "channels": options.channels,
    "describe_s": describing,
    "global_ms": global_ms,
    "emd_ms": emd,
    "memory_mib": resident_mib(),
    **agrees,
  }


if __name__ == "__main__":
  main()
