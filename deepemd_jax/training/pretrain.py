"""Stage 1: learn to classify the base classes; keep what matches best.

The backbone with global average pooling and a linear layer is trained by
cross-entropy over all training classes. After every few epochs the backbone is
judged by what it is for: DeepEMD on validation episodes. Batch norm sees the
images of a step together, however many devices share them.

References:
  DeepEMD, CVPR 2020, section 4.2; official `train_pretrain.py`.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepemd_jax.config import resolve
from deepemd_jax.data import batches
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation import fewshot
from deepemd_jax.models import resnet12
from deepemd_jax.training import loop


def init(config):
  """Fresh encoder variables, a function of the seed alone."""
  key = jax.random.key(config.seed)
  return resnet12.init(key, width=config.model.width)


def run(config, workdir: pathlib.Path) -> None:
  """Trains in `workdir/pretrain`; does nothing if that is finished."""
  stage = config.pretrain
  source = resolve.source(config)
  sharding.check_even(stage.batch_size, "pretrain.batch_size")
  order = batches.ShuffledBatches(
    sum(source.counts("train").values()), stage.batch_size, config.seed
  )
  per_epoch = order.steps_per_epoch
  total_steps = stage.epochs * per_epoch
  if loop.is_finished(workdir / "pretrain", total_steps):
    return
  images = source.load("train")
  optimizer = resolve.optimizer(stage, per_epoch)
  variables = init(config)
  classifier = _init_classifier(config, variables, len(images.class_names))
  loop.fit(
    workdir / "pretrain",
    loop.new_state(variables, optimizer, {"classifier": classifier}),
    step=loop.make_step(_loss_function(config), optimizer),
    batch=_batches(config, images, order),
    total_steps=total_steps,
    validate_every=stage.validate_every * per_epoch,
    validate=fewshot.validator(
      config, source.load("val"), stage.validation_episodes
    ),
    workers=config.data.workers,
    name="pretrain",
  )


def _init_classifier(config, variables, classes: int) -> dict:
  """A linear layer on pooled features: PyTorch's uniform +-1/sqrt(c)."""
  channels = variables["params"]["layer4"]["conv3"]["kernel"].shape[-1]
  key = jax.random.fold_in(jax.random.key(config.seed), 1)
  bound = 1 / np.sqrt(channels)
  kernel = jax.random.uniform(
    key, (channels, classes), minval=-bound, maxval=bound
  )
  return {"kernel": kernel, "bias": jnp.zeros(classes)}


def _batches(config, images, order):
  """Step number -> views of its images and their labels: a pure function, which
  worker processes can have."""
  draw = resolve.random_views(config, images, _size(config))
  share = sharding.local_indices(config.pretrain.batch_size)
  return functools.partial(
    _batch, draw, order, images.labels, config.seed, share
  )


def _batch(draw, order, labels, seed: int, share, step: int) -> dict:
  rows = order(step)
  rng = np.random.default_rng([seed, 2, step])
  return {"views": draw(rng, rows, share), "labels": labels[rows[share]]}


def _size(config) -> int:
  return config.image.pretrain_size or config.image.size


def _loss_function(config):
  crop = sharding.shard_map_batch(resolve.crop(config, _size(config)))

  def loss(params, extra, batch_stats, batch):
    maps, batch_stats = resnet12.apply(
      {"params": params, "batch_stats": batch_stats},
      crop(batch["views"]),
      train=True,
      precision=config.model.precision,
    )
    classifier = extra["classifier"]
    logits = maps.mean((1, 2)) @ classifier["kernel"] + classifier["bias"]
    value = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["labels"]
    ).mean()
    accuracy = 100 * (logits.argmax(-1) == batch["labels"]).mean()
    return value, (batch_stats, {"accuracy": accuracy})

  return loss
