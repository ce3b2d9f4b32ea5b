"""Retrieval by regions: pooled descriptors find, the EMD puts in order.

Leave-one-out: the images of the test classes are gallery and queries at once.
Every other image is ranked by the cosine of pooled descriptors; the first K are
then put in order by EMD, and the rest follows as it was. Both rankings get the
trained stage's encoder that suits them best on the validation classes, by
MAP@R; the test classes are looked at with those.

References:
  Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020
  (protocol and metrics).
"""

import contextlib
import dataclasses
import functools
import pathlib
import time

import jax
import numpy as np

from deepemd_jax.config import resolve
from deepemd_jax.distributed import runtime
from deepemd_jax.evaluation import (
  fewshot,
  figures,
  nearest,
  statistics,
)
from deepemd_jax.utils.progress import Progress

CHOSEN_BY = "MAP@R"


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
  """What one encoder makes of an image set.

  Attributes:
    queries: int [q], the rows that ask.
    rows: int [q, L], what they get, by cosine, most similar first.
    emd: float32 [q, K], 1 - EMD / number of nodes, of the first K.
    seconds: what "encoding", "global" and "EMD" took.
    milliseconds: {k: of re-ranking k images, a query}; empty if not asked for.
  """

  queries: np.ndarray
  rows: np.ndarray
  emd: np.ndarray
  seconds: dict[str, float]
  milliseconds: dict[int, float]


def run(config, workdir: pathlib.Path) -> None:
  """Retrieves with the best encoders; writes retrieve.json, figures, a table.

  Raises:
    InputError: there is no trained encoder, or nothing to retrieve.
  """
  began = time.monotonic()
  encoders = fewshot.best_encoders(config, workdir)
  search = _Search(config)
  val = resolve.source(config).load("val")
  tried = {
    stage: search(val, found["variables"], f"val, {stage}")
    for stage, found in encoders.items()
  }
  chosen, validation = choose(config, val.labels, tried)
  split = config.retrieve.split
  images = resolve.source(config, split="test").load("test")
  if split == "val":
    images = val
  found = {
    stage: search(images, encoders[stage]["variables"], split, timed=True)
    for stage in dict.fromkeys(chosen.values())
  }
  results = measured(config, images.labels, chosen, found)
  results = {
    "split": split,
    "gallery": {
      "images": len(images.labels),
      "classes": len(set(images.labels.tolist())),
    },
    **results,
    "chosen": chosen | {"by": CHOSEN_BY, "on": validation},
    "encoders": {s: {"step": f["step"]} for s, f in encoders.items()},
  }
  results |= results.protocol(config, workdir)
  del results["episode"]
  results["timing"]["seconds"] = round(time.monotonic() - began, 1)
  if not runtime.is_main():
    return
  results.write(workdir / "retrieve.json", results)
  print(table(results), flush=True)
  figures.draw_retrieval(
    config, workdir, images, orders(chosen, found), results
  )


class _Search:
  """Encodes an image set and ranks it; compiles once."""

  def __init__(self, config) -> None:
    self._config = config
    self._encode = fewshot.encoder(config)
    self._rerank = nearest.reranker(resolve.solver(config))

  def __call__(self, images, variables, name: str, timed=False) -> Ranked:
    spec = self._config.retrieve
    queries = drawn(images.labels, spec.queries, self._config.seed)
    clock = _Clock()
    heed = functools.partial(runtime.raise_if_stopping, "retrieve")
    nodes = jax.block_until_ready(self._encode(variables, images, heed))
    clock("encoding")
    shape = len(nodes), nodes.shape[-1]
    limit = self._config.evaluate.memory * 2**30
    gallery = nearest.describe(nodes, fewshot.room(shape, limit))
    length, depth = _lengths(self._config, images.labels)
    find = functools.partial(
      nearest.top,
      gallery,
      k=length,
      batch_size=spec.search_batch_size,
      block=spec.block,
    )
    find(queries[: spec.search_batch_size])  # compiles

    def tell(what, done):
      heed()
      shown(what, done, len(queries))

    clock("")
    with contextlib.closing(Progress()) as shown:
      rows, _ = find(
        queries,
        progress=lambda n: tell(f"queries, {name}", n),
      )
    clock("global")
    rerank = functools.partial(self._rerank, batch_size=spec.batch_size)
    few = queries[: 4 * spec.batch_size]
    spent = {}
    for k in sorted({min(k, depth) for k in spec.depths}) if timed else ():
      first = rows[: len(few), :k]
      rerank(nodes, few[: spec.batch_size], first[: spec.batch_size])
      start = time.monotonic()
      rerank(nodes, few, first)
      spent[k] = 1e3 * (time.monotonic() - start) / len(few)
    clock("")
    with contextlib.closing(Progress()) as shown:
      scores = rerank(
        nodes,
        queries,
        rows[:, :depth],
        progress=lambda n: tell(f"queries, EMD, {name}", n),
      )
    clock("EMD")
    return Ranked(queries, rows, scores, clock.seconds, spent)


class _Clock:
  """Seconds since it was last asked, under a name; "" forgets them."""

  def __init__(self) -> None:
    self.seconds: dict[str, float] = {}
    self._last = time.monotonic()

  def __call__(self, name: str) -> None:
    now = time.monotonic()
    if name:
      self.seconds[name] = now - self._last
    self._last = now


def drawn(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """The rows that ask, in order: all images, or `count` of them by the seed,
  whose class has another image."""
  able = np.flatnonzero(np.bincount(labels)[labels] > 1)
  if not count or count >= len(able):
    return able
  return np.sort(np.random.default_rng([seed, 5]).permutation(able)[:count])


def _lengths(config, labels) -> tuple[int, int]:
  """How many are ranked, so that every metric is exact, and re-ranked."""
  spec = config.retrieve
  others = len(labels) - 1
  depth = max(spec.depths)
  # R-Precision and MAP@R look at as many as the class has.
  wanted = max(depth, *spec.recalls, np.bincount(labels).max() - 1)
  return min(int(wanted), others), min(depth, others)


def ordered(found: Ranked, method: str, depth: int) -> np.ndarray:
  """The ranking, int [q, L]; with "EMD" its first `depth` are put in order."""
  if method != "EMD":
    return found.rows
  return statistics.reordered(found.rows, found.emd[:, :depth])


def metrics(config, labels, found: Ranked, rows) -> dict[str, np.ndarray]:
  """{"Recall@1": [q], ..., "R-Precision": [q], "MAP@R": [q]}, percent."""
  own = labels[found.queries]
  relevant = labels[rows] == own[:, None]
  others = np.bincount(labels)[own] - 1
  length = relevant.shape[1]
  return {
    **{
      f"Recall@{k}": statistics.recall(relevant, min(k, length))
      for k in config.retrieve.recalls
    },
    "R-Precision": statistics.r_precision(relevant, others),
    "MAP@R": statistics.map_at_r(relevant, others),
  }


def choose(config, labels, tried: dict[str, Ranked]) -> tuple[dict, dict]:
  """The stage whose encoder suits each ranking best, by MAP@R.

  Args:
    labels: of the validation images.
    tried: the stages' rankings of them.

  Returns:
    {"global": stage, "EMD": stage}; and all that was looked at, mean percent by
    method, stage and metric.
  """
  depth = max(config.retrieve.depths)
  seen = {
    method: {
      stage: _means(
        metrics(config, labels, found, ordered(found, method, depth))
      )
      for stage, found in tried.items()
    }
    for method in ("global", "EMD")
  }
  best = {
    method: max(means, key=lambda stage: means[stage][CHOSEN_BY])
    for method, means in seen.items()
  }
  return best, seen


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
  return {name: float(np.mean(v)) for name, v in values.items()}


def _methods(chosen: dict[str, str]) -> dict[str, str]:
  """name -> stage of its encoder, the EMD's last."""
  methods = {"global": chosen["global"]}
  if chosen["EMD"] != chosen["global"]:
    methods["global, EMD's encoder"] = chosen["EMD"]
  return methods | {"EMD": chosen["EMD"]}


def orders(chosen: dict, found: dict[str, Ranked]) -> dict[str, np.ndarray]:
  """For a picture: the queries' rows [q], and the rankings [q, L] by the global
  descriptor and by EMD."""
  last = found[chosen["EMD"]]
  return {
    "queries": last.queries,
    "global": found[chosen["global"]].rows,
    "EMD": ordered(last, "EMD", last.emd.shape[1]),
  }


def measured(config, labels, chosen, found: dict[str, Ranked]) -> dict:
  """The numbers of retrieve.json that follow from the rankings.

  Args:
    labels: of the gallery.
    chosen: as `choose` says.
    found: the chosen stages' rankings.
  """
  methods, last = _methods(chosen), found[chosen["EMD"]]
  curve = []
  for depth, milliseconds in last.milliseconds.items():
    values = {
      name: metrics(
        config, labels, found[stage], ordered(found[stage], name, depth)
      )
      for name, stage in methods.items()
    }
    means = {name: _means(v) for name, v in values.items()}
    curve.append(
      {
        "depth": depth,
        "methods": means,
        "ms_per_query": round(milliseconds, 3),
      }
    )
  # What follows is of the largest depth, which came last.
  count, own = len(last.queries), labels[last.queries]
  return {
    "queries": count,
    "of": int((np.bincount(labels)[labels] > 1).sum()),
    "depth": depth,
    "methods": {
      name: {
        "stage": stage,
        **{
          metric: {"mean": float(np.mean(v)), "ci95": statistics.ci95(v)}
          for metric, v in values[name].items()
        },
      }
      for name, stage in methods.items()
    },
    "paired": {
      f"EMD - {name}": {
        metric: _difference(values["EMD"][metric] - v, own)
        for metric, v in values[name].items()
      }
      for name in methods
      if name != "EMD"
    },
    "curve": curve,
    "timing": {
      "encoding_seconds": round(last.seconds["encoding"], 2),
      "global_ms_per_query": round(1e3 * last.seconds["global"] / count, 3),
      "emd_ms_per_query": round(1e3 * last.seconds["EMD"] / count, 3),
    },
  }


def _difference(values, labels) -> dict[str, float]:
  return {
    "mean": float(np.mean(values)),
    "ci95": statistics.ci95(values),
    "ci95_classes": statistics.ci95_of_classes(values, labels),
  }


def table(results: dict) -> str:
  """The results as text, for the terminal."""
  names = [x for x in next(iter(results["paired"].values()))]
  gallery, depth = results["gallery"], results["depth"]
  asked = f"{results['queries']:,} of {results['of']:,} images are queries"
  if results["queries"] == results["of"]:
    asked = f"each of {results['of']:,} images a query"
  spec = ", ".join(f"{k} {v}" for k, v in results["nodes"].items() if v)
  data = results["protocol"]["tested on"]["name"]
  trained = results["protocol"]["trained on"]["name"]
  lines = [
    f"{data if data == trained else f'{trained} to {data}'}, "
    f"{results['split']} classes: {gallery['images']:,} images of "
    f"{gallery['classes']:,} classes, {asked}, seed {results['seed']}; "
    f"nodes: {spec.removeprefix('kind ')}; EMD re-ranks {depth}",
    "",
    f"{'percent':<30}{'encoder':>15}{''.join(f'{n:>13}' for n in names)}",
  ]
  for method, row in results["methods"].items():
    step = results["encoders"][row["stage"]]["step"]
    where = f"{row['stage']} {step}"
    cells = [f"{row[n]['mean']:.2f}" for n in names]
    lines.append(f"{method:<30}{where:>15}{''.join(f'{c:>13}' for c in cells)}")
  lines += [
    "",
    "paired differences over queries, +- 95% as if these were independent",
  ]
  for pair, row in results["paired"].items():
    cells = [f"{row[n]['mean']:+.2f}+-{row[n]['ci95']:.2f}" for n in names]
    lines.append(f"{pair:<45}{''.join(f'{c:>13}' for c in cells)}")
    cells = [f"+-{row[n]['ci95_classes']:.2f}" for n in names]
    title = "    if only classes are"
    lines.append(f"{title:<45}{''.join(f'{c:>13}' for c in cells)}")
  timing = results["timing"]
  lines += [
    "",
    f"ms a query: global {timing['global_ms_per_query']:g}; EMD of "
    + ", ".join(
      f"{row['depth']}: {row['ms_per_query']:g}" for row in results["curve"]
    ),
  ]
  return "\n".join(lines)
