"""Stage 1: learn to classify the base classes, and keep the best encoder.

The backbone with global average pooling and a linear layer is trained by
cross-entropy over all training classes. After every few epochs the backbone is
judged by the accuracy of DeepEMD on validation episodes. Batch norm sees the
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

from deepemd_jax.config.settings import Settings
from deepemd_jax.data.batches import ImageBatches, ShuffledRows
from deepemd_jax.data.sources import open_source
from deepemd_jax.data.views import TrainingViews, crop_on_device
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation.episodes import Validator
from deepemd_jax.models.backbone import Backbone
from deepemd_jax.training import loop
from deepemd_jax.training.optimizers import make_optimizer
from deepemd_jax.training.state import make_step, new_state
from deepemd_jax.utils.random_streams import Stream, random_key

STAGE = "pretrain"


def run(settings: Settings, workdir: pathlib.Path) -> None:
  """Trains in `workdir/pretrain`; does nothing if training is finished.

  Raises:
    InputError: the batch does not fit the devices, or the loss is not finite.
    StopRequested: a signal asked to stop; the same call continues the training.
  """
  spec, seed = settings.pretrain, settings.seed
  source = open_source(settings.data)
  sharding.check_even(spec.batch_size, "pretrain.batch_size")
  count = sum(source.counts("train").values())
  rows = ShuffledRows(count, spec.batch_size, seed)
  total_steps = spec.optimizer.epochs * rows.steps_per_epoch
  if loop.is_finished(workdir / STAGE, total_steps):
    return
  images = source.load("train")
  optimizer = make_optimizer(spec.optimizer, rows.steps_per_epoch)
  views = TrainingViews(images, settings.view, spec.image_size)
  classes = len(images.class_names)
  plan = loop.Plan(
    directory=workdir / STAGE,
    step=make_step(loss_function(settings), optimizer),
    batch=ImageBatches(
      rows, views, seed, sharding.local_indices(spec.batch_size)
    ),
    total_steps=total_steps,
    validate_every=spec.validate_every * rows.steps_per_epoch,
    validate=Validator(
      settings, source.load("val"), spec.validation_episodes, STAGE
    ),
    workers=settings.data.workers,
  )
  backbone = settings.backbone
  classifier = init_classifier(seed, backbone.channels, classes)
  variables = init_backbone(backbone, seed)
  loop.fit(plan, new_state(variables, optimizer, {"classifier": classifier}))


def init_backbone(backbone: Backbone, seed: int) -> dict:
  """Makes fresh variables as a function of the seed alone."""
  return backbone.init(random_key(seed, Stream.BACKBONE))


def init_classifier(seed: int, channels: int, classes: int) -> dict:
  """Makes a linear layer on pooled features: PyTorch's uniform +-1/sqrt(c).

  Returns:
    {"kernel": [channels, classes], "bias": [classes]}.
  """
  key = random_key(seed, Stream.CLASSIFIER)
  bound = 1 / np.sqrt(channels)
  kernel = jax.random.uniform(
    key, (channels, classes), jnp.float32, minval=-bound, maxval=bound
  )
  return {"kernel": kernel, "bias": jnp.zeros(classes, jnp.float32)}


def loss_function(settings: Settings):
  """Returns the loss function, the cross-entropy; see `state.make_step`."""
  view, spec = settings.view, settings.pretrain
  crop = sharding.shard_map_batch(
    functools.partial(crop_on_device, view, spec.image_size)
  )

  def loss(params, extra, batch_stats, batch):
    maps, batch_stats = settings.backbone.apply(
      {"params": params, "batch_stats": batch_stats},
      crop(batch["views"]),
      train=True,
    )
    classifier = extra["classifier"]
    logits = maps.mean((1, 2)) @ classifier["kernel"] + classifier["bias"]
    value = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["labels"]
    ).mean()
    if spec.label_smoothing:
      even = -jax.nn.log_softmax(logits).mean()  # for uniform labels
      value += spec.label_smoothing * (even - value)
    accuracy = 100 * (logits.argmax(-1) == batch["labels"]).mean()
    return value, (batch_stats, {"accuracy": accuracy})

  return loss
