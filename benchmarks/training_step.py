"""Measures a step of each training stage: time, FLOPs and memory of its parts.

    python -m benchmarks.training_step            # table, JSON on request
    python -m benchmarks.training_step --only "pretrain base"
    python -m benchmarks.training_step --smoke    # small, for CI

Each row changes one setting: way, shot, query, nodes, width or precision. Each
part of a step is compiled and timed alone, forward and backward, so the sum of
the parts may differ from the step. `stage_costs` explains the columns.

On an accelerator, which reports its memory, the last rows find the largest
number of episodes that fits into a meta-training step.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import estimate, measuring, stage_costs
from benchmarks.stage_costs import Base, Case
from deepemd_jax.config.settings import Settings
from deepemd_jax.data.batches import ImageBatches, ShuffledRows
from deepemd_jax.data.image_set import ImageSet
from deepemd_jax.data.views import TrainingViews, crop_on_device
from deepemd_jax.distributed import sharding
from deepemd_jax.training import metatrain, pretrain
from deepemd_jax.training.optimizers import make_optimizer
from deepemd_jax.training.state import TrainState, make_step, new_state

_STEPS = 100  # per epoch; only the learning rate depends on it


class Training(NamedTuple):
  """A training stage before its first step.

  Attributes:
    step: `(state, batch) -> (state, metrics)`, jitted.
    state: the state before the first step, on all devices.
    make_batch: step number -> the batch of this process.
  """

  step: Callable
  state: TrainState
  make_batch: Callable[[int], dict]


def pretraining(settings: Settings, images: ImageSet) -> Training:
  """Returns the stage pretrain with a new encoder."""
  spec, seed = settings.pretrain, settings.seed
  optimizer = make_optimizer(spec.optimizer, _STEPS)
  classifier = pretrain.init_classifier(
    seed, settings.backbone.channels, len(images.class_names)
  )
  variables = pretrain.init_backbone(settings.backbone, seed)
  state = new_state(variables, optimizer, {"classifier": classifier})
  return Training(
    make_step(pretrain.loss_function(settings), optimizer),
    sharding.replicate(state),
    ImageBatches(
      ShuffledRows(len(images.labels), spec.batch_size, seed),
      TrainingViews(images, settings.view, spec.image_size),
      seed,
      sharding.local_indices(spec.batch_size),
    ),
  )


def metatraining(settings: Settings, images: ImageSet) -> Training:
  """Returns the stage metatrain with a new encoder."""
  optimizer = make_optimizer(settings.metatrain.optimizer, _STEPS)
  variables = pretrain.init_backbone(settings.backbone, settings.seed)
  return Training(
    make_step(metatrain.loss_function(settings), optimizer),
    sharding.replicate(new_state(variables, optimizer)),
    metatrain.make_batches(settings, images),
  )


def measure_pretraining(settings: Settings, base: Base) -> dict:
  """Returns the columns of a step of pretrain."""
  training = pretraining(settings, stage_costs.random_images(*base.pool))
  count = settings.pretrain.batch_size
  flops = 3 * count * _encoder_flops(settings)
  columns = _measure_step(training, flops / 1e9, settings, base)
  batch = training.make_batch(0)["views"]
  return columns | {
    "views_s": _views_seconds(settings, [batch], base),
    "encoder_s": _encoder_seconds(settings, count, base),
    "input_cpu_s": measuring.cpu_seconds(training.make_batch, base.repeats),
  }


def measure_metatraining(settings: Settings, base: Base) -> dict:
  """Returns the columns of a step of metatrain."""
  training = metatraining(settings, stage_costs.random_images(*base.pool))
  shape = settings.training_episode
  columns = _measure_step(
    training, metatraining_gflop(settings), settings, base
  )
  views = list(training.make_batch(0).values())
  count = shape.way * (shape.shot + shape.query)
  head = stage_costs.head_seconds(
    settings, shape.way, shape.query, training=True, repeats=base.repeats
  )
  return columns | {
    "views_s": _views_seconds(settings, views, base),
    "encoder_s": _encoder_seconds(settings, count, base),
    **head,
    "input_cpu_s": measuring.cpu_seconds(training.make_batch, base.repeats),
  }


def _measure_step(
  training: Training, gflop: float, settings: Settings, base: Base
) -> dict:
  batch = sharding.shard_batch(training.make_batch(0))
  step, counts = measuring.compile_and_count(
    training.step, training.state, batch
  )
  seconds = measuring.step_seconds(step, training.state, batch, base.repeats)
  return {
    "step_s": seconds,
    "utilisation": stage_costs.utilization(gflop, seconds, settings, base),
    **counts,
    "formula_gflop": gflop,
  }


def _encoder_flops(settings: Settings) -> float:
  """Returns the FLOPs of the encoder for one image, forward."""
  return estimate.encoder_flops(settings.view.size, settings.model["width"])


def metatraining_gflop(settings: Settings) -> float:
  """Returns the formula's GFLOP of a step of metatrain."""
  shape = settings.training_episode
  n, c = estimate.nodes(settings.view.size), settings.backbone.channels
  images = shape.way * (shape.shot + shape.query)
  episode = images * _encoder_flops(settings)
  episode += estimate.head_flops(shape.way * shape.query, shape.way, n, c)
  return 3 * settings.metatrain.batch_size * episode / 1e9


def _views_seconds(settings: Settings, views: list, base: Base) -> float:
  """Returns the seconds to cut and normalize crops on the device."""
  crop = functools.partial(crop_on_device, settings.view, settings.view.size)
  crop_all = jax.jit(lambda views: list(map(crop, views)))
  return measuring.least_seconds(lambda: crop_all(views), base.repeats)


def _encoder_seconds(settings: Settings, count: int, base: Base) -> float:
  """Returns the seconds of the encoder alone, forward and backward."""
  backbone, side = settings.backbone, settings.view.size
  images = jnp.ones((count, side, side, 3))
  variables = pretrain.init_backbone(backbone, settings.seed)

  def maps(params):
    return backbone.apply(variables | {"params": params}, images, train=True)[0]

  backward = measuring.gradient(maps)
  return measuring.least_seconds(
    lambda: backward(variables["params"]), base.repeats
  )


def measure_largest(settings: Settings, base: Base, memory_mb: float) -> dict:
  """Returns the columns of a meta-training step of as many episodes as fit.

  The number of episodes is exact to a tenth, because each try compiles.

  Args:
    settings: the settings; their number of episodes per step is ignored.
    base: the base size.
    memory_mb: the memory of the device in MB.
  """
  one = _with_episodes(settings, 1)
  training = metatraining(one, stage_costs.random_images(*base.pool))
  batch = sharding.shard_batch(training.make_batch(0))
  counts = measuring.compile_and_count(training.step, training.state, batch)[1]
  each = counts["argument_mb"] + counts["temporary_mb"]
  del training, batch  # frees their memory
  count = max(1, int(0.95 * memory_mb / each))
  while True:
    print(f"  {count} episodes?", flush=True)
    try:
      columns = _measure_episodes(_with_episodes(settings, count), base)
      break
    except jax.errors.JaxRuntimeError:  # out of memory
      if count == 1:
        raise
    count = max(1, int(0.9 * count))
  return {"episodes": count, "device_mb": memory_mb} | columns


def _with_episodes(settings: Settings, count: int) -> Settings:
  stage = dataclasses.replace(settings.metatrain, batch_size=count)
  return dataclasses.replace(settings, metatrain=stage)


def _measure_episodes(settings: Settings, base: Base) -> dict:
  training = metatraining(settings, stage_costs.random_images(*base.pool))
  gflop = metatraining_gflop(settings)
  return _measure_step(training, gflop, settings, base)


def cases(base: Base, smoke: bool) -> Iterator[Case]:
  """Yields the rows."""
  episode = {"episode.way", "episode.query", "metatrain.shot"}
  largest = []
  # A CPU does not report its memory.
  memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
  for name, change in stage_costs.changes(smoke):
    settings = stage_costs.make_settings(base, change)
    bind = functools.partial(functools.partial, settings=settings, base=base)
    if not episode & set(change):
      yield Case("pretrain", name, bind(measure_pretraining))
    yield Case("metatrain", name, bind(measure_metatraining))
    if memory and set(change) <= {"model.precision"}:
      measure = bind(measure_largest, memory_mb=memory / 1e6)
      largest.append(Case("largest", name, measure))
  yield from largest


def main() -> None:
  """Prints each row as soon as it is measured."""
  options = stage_costs.make_parser(__doc__).parse_args()
  base = stage_costs.make_base(options)
  stage_costs.report(cases(base, options.smoke), base, options)


if __name__ == "__main__":
  main()
