"""Measures a test episode and its structured FC layer: time, FLOPs, memory.

    python -m benchmarks.evaluation_step               # table, JSON on request
    python -m benchmarks.evaluation_step --only emd    # the solvers' rows
    python -m benchmarks.evaluation_step --smoke       # small, for CI

Images are already encoded. Each row changes one setting: way, shot, query,
nodes or width of an episode, the shots of the structured FC layer, or the nodes
of the two exact EMD solvers. `stage_costs` explains the columns.
"""

import functools
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks import estimate, measuring, stage_costs
from benchmarks.stage_costs import Base, Case
from deepemd_jax import emd
from deepemd_jax.config.settings import Settings
from deepemd_jax.data import episodes
from deepemd_jax.evaluation.episodes import episode_sampler
from deepemd_jax.models import heads, matching, sfc

_SFC_BATCH = 4  # support images per step


def measure_episode(settings: Settings, base: Base) -> dict:
  """Returns the columns of an episode with DeepEMD on the mean of the shots."""
  shape = settings.episode
  n, c = estimate.nodes(settings.view.size), settings.backbone.channels
  support = measuring.synthetic_nodes(shape.way, shape.shot, n, c)[None]
  query = measuring.synthetic_nodes(shape.way, shape.query, n, c)[None]
  head = heads.bind("deepemd_mean", settings.heads)
  key = jax.random.key(0)

  def score(query, support):
    flat = query.reshape(1, shape.way * shape.query, n, c)
    return jax.vmap(lambda q, s: head(q, s, key))(flat, support)

  score, counts = measuring.compile_and_count(jax.jit(score), query, support)
  sampler = episode_sampler(
    settings, stage_costs.random_images(*base.pool), "test"
  )
  flops = estimate.head_flops(shape.way * shape.query, shape.way, n, c)
  parts = stage_costs.head_seconds(
    settings, shape.way, shape.query, training=False, repeats=base.repeats
  )
  return {
    "step_s": measuring.least_seconds(
      lambda: score(query, support), base.repeats
    ),
    **counts,
    "formula_gflop": flops / 1e9,
    **parts,
    "input_cpu_s": measuring.cpu_seconds(
      lambda i: episodes.batch(sampler, [i]), 10 * base.repeats
    ),
  }


def measure_sfc(settings: Settings, base: Base) -> dict:
  """Returns the columns of training the structured FC layer of one episode."""
  way, shot = settings.episode.way, settings.episode.shot
  n, c = estimate.nodes(settings.view.size), settings.backbone.channels
  support = measuring.synthetic_nodes(way, shot, n, c)
  order = sfc.random_order(jax.random.key(0), way * shot, base.epochs)
  fit, counts = measuring.compile_and_count(
    jax.jit(lambda nodes: sfc.fit(nodes, order=order)), support
  )
  steps = base.epochs * -(-way * shot // _SFC_BATCH)
  flops = 3 * steps * estimate.head_flops(_SFC_BATCH, way, n, c)
  return {
    "step_s": measuring.least_seconds(lambda: fit(support), base.repeats),
    **counts,
    "formula_gflop": flops / 1e9,
  }


def measure_emd(n: int, base: Base) -> dict:
  """Returns the columns of 375 problems of n x n nodes, by both solvers."""
  query = measuring.synthetic_nodes(5, 15, n, 64).reshape(75, n, 64)
  classes = measuring.synthetic_nodes(5, 1, n, 64)[:, 0]
  problem = jax.jit(matching.match)(query, classes)
  arguments = 1 - problem.similarity, *problem[1:]
  columns: dict = {}
  for name, solver in (
    ("network_simplex_s", emd.NetworkSimplex()),
    ("interior_point_s", emd.InteriorPoint()),
  ):
    solve = jax.jit(functools.partial(emd.solve, solver=solver))
    call = functools.partial(solve, *arguments)
    columns[name] = measuring.least_seconds(call, base.repeats)
  steps = np.asarray(call().steps)
  flops = steps.size * estimate.emd_flops(n, steps.mean())
  return columns | {
    "steps_mean": float(steps.mean()),
    "steps_most": int(steps.max()),
    "formula_gflop": flops / 1e9,
  }


def cases(base: Base, smoke: bool) -> Iterator[Case]:
  """Yields the rows."""
  for name, change in stage_costs.changes(smoke):
    if "model.precision" not in change:  # nodes are float32 in any case
      settings = stage_costs.make_settings(base, change)
      measure = functools.partial(measure_episode, settings, base)
      yield Case("evaluate", name, measure)
  for shot in [2] if smoke else [5, 10]:
    settings = stage_costs.make_settings(base, {"episode.shot": shot})
    measure = functools.partial(measure_sfc, settings, base)
    yield Case("sfc fit", f"shot {shot}", measure)
  for size in [32] if smoke else [48, 84, 112]:
    n = estimate.nodes(size)
    measure = functools.partial(measure_emd, n, base)
    yield Case("emd, 375", f"nodes {n}", measure)


def main() -> None:
  """Prints each row as soon as it is measured."""
  options = stage_costs.make_parser(__doc__).parse_args()
  base = stage_costs.make_base(options)
  stage_costs.report(cases(base, options.smoke), base, options)


if __name__ == "__main__":
  main()
