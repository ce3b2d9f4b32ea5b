"""Stage 2: train the backbone through the EMD layer, episode by episode.

Each step minimizes the cross-entropy of DeepEMD's logits on one or more
few-shot episodes of training classes. As in the official code, batch norm sees
one episode at a time, support and query together. This does not depend on the
number of episodes per step or of devices. The new running statistics are the
mean over those of the episodes.

References:
  DeepEMD, CVPR 2020, section 4.2; official `train_meta.py`.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import optax

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.config.settings import Settings
from deepemd_jax.data.batches import EpisodeBatches
from deepemd_jax.data.episodes import EpisodeSampler
from deepemd_jax.data.image_set import ImageSet
from deepemd_jax.data.sources import open_source
from deepemd_jax.data.views import TrainingViews, crop_on_device
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation.episodes import Validator
from deepemd_jax.models import deepemd, nodes
from deepemd_jax.training import loop
from deepemd_jax.training.optimizers import make_optimizer
from deepemd_jax.training.pretrain import init_backbone
from deepemd_jax.training.state import make_step, new_state
from deepemd_jax.utils import terminal

STAGE = "metatrain"


def run(settings: Settings, workdir: pathlib.Path) -> None:
  """Trains in `workdir/metatrain`; does nothing if training is finished.

  Raises:
    InputError: there is no pre-trained encoder, or the loss is not finite.
    StopRequested: a signal asked to stop; the same call continues the training.
  """
  spec = settings.metatrain
  total_steps = spec.optimizer.epochs * spec.steps_per_epoch
  if loop.is_finished(workdir / STAGE, total_steps):
    return
  _tell_idle_devices(spec.batch_size)
  source = open_source(settings.data)
  optimizer = make_optimizer(spec.optimizer, spec.steps_per_epoch)
  plan = loop.Plan(
    directory=workdir / STAGE,
    step=make_step(loss_function(settings), optimizer),
    batch=make_batches(settings, source.load("train")),
    total_steps=total_steps,
    validate_every=spec.validate_every * spec.steps_per_epoch,
    validate=Validator(
      settings, source.load("val"), spec.validation_episodes, STAGE
    ),
    workers=settings.data.workers,
  )
  loop.fit(plan, new_state(_start(settings, workdir), optimizer))


def _tell_idle_devices(batch_size: int) -> None:
  whole = sharding.pad_to_devices(batch_size)
  idle = whole - batch_size
  if idle:
    terminal.note(
      f"metatrain: {idle} of {sharding.mesh().size} devices have no episode in "
      f"the last round of a step; config.metatrain.batch_size={whole} uses "
      "them all"
    )


def _start(settings: Settings, workdir: pathlib.Path) -> dict:
  """Returns the best pre-trained encoder, or a fresh one without that stage."""
  backbone = settings.backbone
  before = workdir / "pretrain"
  if not before.exists() and "pretrain" not in settings.stages:
    terminal.note(
      "metatrain: no pre-trained encoder in the workdir; starts from a new one"
    )
    return init_backbone(backbone, settings.seed)
  best = pretrained.best_encoder(workdir, "pretrain", backbone)
  if best is None:
    raise pretrained.nothing_trained(before)
  return sharding.replicate(best.variables)


def make_batches(settings: Settings, images: ImageSet) -> EpisodeBatches:
  """Makes the batches of the stage from the images of the training split."""
  size, view = settings.metatrain.batch_size, settings.view
  return EpisodeBatches(
    EpisodeSampler(
      images.labels,
      settings.training_episode,
      class_names=images.class_names,
      seed=settings.seed,
      split="train",
    ),
    TrainingViews(images, view, view.size, of_episodes=True),
    size,
    settings.seed,
    sharding.local_indices(size),
  )


def loss_function(settings: Settings):
  """Returns the loss function of a step's episodes; see `state.make_step`."""
  size = settings.metatrain.batch_size
  each = functools.partial(_episode_losses, settings)
  on_devices = sharding.shard_map_batch(each, whole=2)

  def loss(params, extra, batch_stats, batch):
    del extra
    values = on_devices(params, batch_stats, batch["support"], batch["query"])
    # Leave out the repeated episodes that fill up the devices.
    value, stats, accuracy = jax.tree.map(lambda x: x[:size].mean(0), values)
    return value, (stats, {"accuracy": accuracy})

  return loss


def _episode_losses(settings: Settings, params, batch_stats, support, query):
  """Computes the loss [e], the running statistics [e, ...] and the accuracy in
  percent [e] of each episode."""
  spec, view = settings.metatrain, settings.view
  crop = jax.vmap(functools.partial(crop_on_device, view, view.size))
  variables = {"params": params, "batch_stats": batch_stats}

  def apply(images):
    maps, stats = settings.backbone.apply(
      variables, images, train=spec.batch_norm == "batch"
    )
    return nodes.averaged(maps, view.cells if view.is_whole else 0), stats

  logits, stats = deepemd.episode_logits(
    apply,
    crop(support),
    crop(query),
    crops=not view.is_whole,
    pyramid=settings.pyramid,
    gradient=spec.gradient,
    **settings.heads.matching,
  )
  count, way = logits.shape[0], logits.shape[-1]
  labels = jnp.broadcast_to(jnp.arange(way)[:, None], logits.shape[:-1])
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  right = logits.argmax(-1) == labels
  if spec.batch_norm == "fixed":  # the statistics have no axis of episodes yet
    stats = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (count, *x.shape)), stats
    )
  return loss.mean((1, 2)), stats, 100 * right.mean((1, 2))
