"""Measures the cost of sharing work among devices.

    python -m benchmarks.device_sharing            # table, JSON on request
    python -m benchmarks.device_sharing --smoke    # two devices, for CI

It times sixteen evaluation episodes and one pre-training step on one, two, four
and eight virtual devices of a process. These devices share the cores of the
machine, so the times show the cost of sharing and not its gain. An accelerator
has no virtual devices, so it gives no rows.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks import estimate, measuring, stage_costs, training_step
from benchmarks.stage_costs import Base, Case
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation.episodes import EpisodeScorer, episode_sampler
from deepemd_jax.evaluation.features import DeviceNodes
from deepemd_jax.models import heads

_ROOT = pathlib.Path(__file__).parent.parent
_EPISODES = 16


def measure_here(base: Base) -> dict:
  """Returns the columns on the devices of this process.

  The solver is `InteriorPoint`, because host callbacks of several devices in
  one process can deadlock.
  """
  settings = stage_costs.make_settings(base, {"emd.solver": "interior_point"})
  images = stage_costs.random_images(*base.pool)
  n, c = estimate.nodes(base.size), settings.backbone.channels
  rng = np.random.default_rng(0)
  nodes = rng.standard_normal((len(images.labels), n, c), np.float32)
  nodes = DeviceNodes(sharding.replicate(nodes))
  sampler = episode_sampler(settings, images, "test")
  head = heads.bind("deepemd", settings.heads)
  score = EpisodeScorer(head, settings.seed)
  training = training_step.pretraining(settings, images)
  return {
    "evaluate_16_s": measuring.least_seconds(
      lambda: score(nodes, sampler, _EPISODES, _EPISODES), base.repeats
    ),
    "pretrain_s": measuring.step_seconds(
      training.step,
      training.state,
      sharding.shard_batch(training.make_batch(0)),
      base.repeats,
    ),
  }


def measure_on(count: int) -> dict:
  """Returns the columns of a separate process with `count` devices."""
  flags = os.environ.get("XLA_FLAGS", "")
  flags += f" --xla_force_host_platform_device_count={count}"
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "benchmarks.device_sharing",
      "--here",
      *sys.argv[1:],
    ],
    env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def cases(smoke: bool) -> Iterator[Case]:
  """Yields the rows."""
  if jax.default_backend() == "cpu":
    for count in [2] if smoke else [1, 2, 4, 8]:
      yield Case("devices", str(count), functools.partial(measure_on, count))


def main() -> None:
  """Prints a row as soon as it is measured."""
  parser = stage_costs.make_parser(__doc__)
  parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
  options = parser.parse_args()
  base = stage_costs.make_base(options)
  if options.here:
    print(json.dumps(measure_here(base)))
    return
  stage_costs.report(cases(options.smoke), base, options)


if __name__ == "__main__":
  main()
