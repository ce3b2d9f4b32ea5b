"""Retrieval by regions: pooled descriptors find, the EMD puts in order.

Leave-one-out: the images of the test classes are gallery and queries at once.
Every other image is ranked by the cosine of pooled descriptors; the first K are
then put in order by EMD, or by EMD and cosine together, and the rest follows as
it was. Which trained stage's encoder, and how much of the cosine, is chosen on
the validation classes by MAP@R; the test classes are looked at with that.

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

from deepemd_jax import (
  build,
  evaluate,
  figures,
  mesh,
  nearest,
  ranking,
  scoreboard,
  training,
)
from deepemd_jax.data.progress import Progress
from deepemd_jax.models import resnet

CHOSEN_BY = "MAP@R"


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
  """What one encoder makes of an image set.

  Attributes:
    queries: int [q], the rows that ask.
    rows: int [q, L], what they get, by cosine, most similar first.
    cosine: float32 [q, L], of pooled descriptors.
    emd: float32 [q, K], 1 - EMD / number of nodes, of the first K.
    seconds: what "encoding", "global" and "emd" took.
    milliseconds: {k: of re-ranking k images, a query}; empty if not asked for.
  """

  queries: np.ndarray
  rows: np.ndarray
  cosine: np.ndarray
  emd: np.ndarray
  seconds: dict[str, float]
  milliseconds: dict[int, float]


def run(config, workdir: pathlib.Path) -> None:
  """Retrieves with the best encoders; writes retrieve.json, figures, a table.

  Raises:
    InputError: there is no trained encoder, or nothing to retrieve.
  """
  began = time.monotonic()
  encoders = _encoders(config, workdir)
  search = _Search(config)
  val = build.source(config).load("val")
  tried = {
    stage: search(val, found["variables"], f"val, {stage}")
    for stage, found in encoders.items()
  }
  chosen, validation = choose(config, val.labels, tried)
  split = config.retrieve.split
  images = build.source(config, split="test").load("test")
  if split == "val":
    images = val
  found = {
    stage: search(images, encoders[stage]["variables"], split, timed=True)
    for stage in {chosen["global"], chosen["emd"]}
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
  results |= scoreboard.protocol(config, workdir)
  del results["episode"]
  results["timing"]["seconds"] = round(time.monotonic() - began, 1)
  if jax.process_index() != 0:
    return
  scoreboard.write(workdir / "retrieve.json", results)
  print(table(results), flush=True)
  figures.draw_retrieval(
    config, workdir, images, orders(chosen, found), results
  )


def _encoders(config, workdir) -> dict[str, dict]:
  """The best encoder of each trained stage, by its name."""
  abstract = jax.eval_shape(
    lambda: resnet.init(jax.random.key(0), width=config.model.width)
  )
  stages = [s for s in ("pretrain", "metatrain") if (workdir / s).exists()]
  if not stages:
    raise training.nothing_trained(workdir)
  found = {}
  for stage in stages:
    variables, step, _ = training.best_variables(workdir / stage, abstract)
    found[stage] = {"step": step, "variables": variables}
  return found


class _Search:
  """Encodes an image set and ranks it; compiles once."""

  def __init__(self, config) -> None:
    self._config = config
    self._encode = evaluate.encoder(config)
    self._rerank = nearest.reranker(build.solver(config))

  def __call__(self, images, variables, name: str, timed=False) -> Ranked:
    spec = self._config.retrieve
    queries = drawn(images.labels, spec.queries, self._config.seed)
    clock = _Clock()
    nodes = jax.block_until_ready(self._encode(variables, images))
    clock("encoding")
    shape = len(nodes), nodes.shape[-1]
    limit = self._config.evaluate.memory * 2**30
    gallery = nearest.describe(nodes, evaluate.room(shape, limit))
    length, depth = _lengths(self._config, images.labels)
    find = functools.partial(
      nearest.top,
      gallery,
      k=length,
      batch_size=spec.search_batch_size,
      block=spec.block,
    )
    find(queries[: spec.search_batch_size])  # compiles
    clock("")
    with contextlib.closing(Progress()) as shown:
      rows, cosine = find(
        queries,
        progress=lambda n: shown(f"queries, {name}", n, len(queries)),
      )
    clock("global")
    rerank = functools.partial(self._rerank, batch_size=spec.batch_size)
    if not isinstance(nodes, np.ndarray):
      nodes = mesh.put_everywhere(nodes)
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
        progress=lambda n: shown(f"queries, EMD, {name}", n, len(queries)),
      )
    clock("emd")
    return Ranked(queries, rows, cosine, scores, clock.seconds, spent)


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


def ordered(found: Ranked, weight: float | None, depth: int) -> np.ndarray:
  """The ranking, int [q, L], its first `depth` by EMD + weight * cosine; by
  cosine alone if the weight is None."""
  if weight is None:
    return found.rows
  scores = found.emd[:, :depth] + weight * found.cosine[:, :depth]
  return ranking.reordered(found.rows, scores)


def metrics(config, labels, found: Ranked, rows) -> dict[str, np.ndarray]:
  """{"recall@1": [q], ..., "R-Precision": [q], "MAP@R": [q]}, percent."""
  own = labels[found.queries]
  relevant = labels[rows] == own[:, None]
  others = np.bincount(labels)[own] - 1
  length = relevant.shape[1]
  return {
    **{
      f"recall@{k}": ranking.recall(relevant, min(k, length))
      for k in config.retrieve.recalls
    },
    "R-Precision": ranking.r_precision(relevant, others),
    "MAP@R": ranking.map_at_r(relevant, others),
  }


def choose(config, labels, tried: dict[str, Ranked]) -> tuple[dict, dict]:
  """Which encoders, and the weight of the cosine beside the EMD.

  Args:
    labels: of the validation images.
    tried: the stages' rankings of them.

  Returns:
    {"global": stage, "emd": stage, "weight": of the cosine}: the best by MAP@R,
    each encoder with what it is for, then the weight with the EMD's encoder;
    and all that was looked at, mean percent by stage and name.
  """
  depth = max(config.retrieve.depths)
  weights = {"global": None, "emd": 0.0}
  weights |= {f"emd + {w:g} global": w for w in config.retrieve.global_weights}
  seen = {
    stage: {
      name: _means(
        metrics(config, labels, found, ordered(found, weight, depth))
      )
      for name, weight in weights.items()
    }
    for stage, found in tried.items()
  }

  def best(name):
    return max(seen, key=lambda stage: seen[stage][name][CHOSEN_BY])

  stage = best("emd")
  mixed = max(
    config.retrieve.global_weights,
    key=lambda w: seen[stage][f"emd + {w:g} global"][CHOSEN_BY],
  )
  return {"global": best("global"), "emd": stage, "weight": mixed}, seen


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
  return {name: float(np.mean(v)) for name, v in values.items()}


def _methods(chosen: dict) -> dict[str, tuple[str, float | None]]:
  """name -> (stage of its encoder, weight as `ordered` takes it)."""
  methods = {"global": (chosen["global"], None)}
  if chosen["emd"] != chosen["global"]:
    methods["global, EMD's encoder"] = (chosen["emd"], None)
  methods["EMD"] = (chosen["emd"], 0.0)
  if chosen["weight"]:
    methods["EMD + global"] = (chosen["emd"], chosen["weight"])
  return methods


def orders(chosen: dict, found: dict[str, Ranked]) -> dict[str, np.ndarray]:
  """For a picture: the queries' rows [q], and the rankings [q, L] by the global
  descriptor and by EMD."""
  emd = found[chosen["emd"]]
  return {
    "queries": emd.queries,
    "global": found[chosen["global"]].rows,
    "EMD": ordered(emd, 0.0, emd.emd.shape[1]),
  }


def measured(config, labels, chosen, found: dict[str, Ranked]) -> dict:
  """The numbers of retrieve.json that follow from the rankings."""
  depths = next(iter(found.values())).milliseconds
  queries = found[chosen["emd"]].queries
  own = labels[queries]
  rows, curve = {}, []
  for depth in depths:
    values = {
      name: metrics(
        config, labels, found[stage], ordered(found[stage], weight, depth)
      )
      for name, (stage, weight) in _methods(chosen).items()
    }
    curve.append(
      {
        "depth": depth,
        "methods": {name: _means(v) for name, v in values.items()},
        "ms_per_query": round(found[chosen["emd"]].milliseconds[depth], 3),
      }
    )
  for name, (stage, weight) in _methods(chosen).items():
    rows[name] = {
      "stage": stage,
      "global_weight": weight,
      **{
        metric: {"mean": float(np.mean(v)), "ci95": ranking.ci95(v)}
        for metric, v in values[name].items()
      },
    }
  pairs = [(a, b) for a in rows for b in rows if _compared(a, b)]
  last = found[chosen["emd"]]
  return {
    "queries": len(queries),
    "of": int((np.bincount(labels)[labels] > 1).sum()),
    "depth": max(depths),
    "methods": rows,
    "paired": {
      f"{a} - {b}": {
        metric: _difference(values[a][metric] - values[b][metric], own)
        for metric in values[a]
      }
      for a, b in pairs
    },
    "curve": curve,
    "timing": {
      "encoding_seconds": round(last.seconds["encoding"], 2),
      "global_ms_per_query": round(
        1e3 * last.seconds["global"] / len(queries), 3
      ),
      "emd_ms_per_query": round(1e3 * last.seconds["emd"] / len(queries), 3),
    },
  }


def _compared(a: str, b: str) -> bool:
  """What re-ranks against what does not."""
  return a.startswith("EMD") and b.startswith("global")


def _difference(values, labels) -> dict[str, float]:
  return {
    "mean": float(np.mean(values)),
    "ci95": ranking.ci95(values),
    "ci95_classes": ranking.ci95_of_classes(values, labels),
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
    title = method
    if row["global_weight"]:
      title = f"EMD + {row['global_weight']:g} x global"
    step = results["encoders"][row["stage"]]["step"]
    where = f"{row['stage']} {step}"
    cells = [f"{row[n]['mean']:.2f}" for n in names]
    lines.append(f"{title:<30}{where:>15}{''.join(f'{c:>13}' for c in cells)}")
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
