"""Stage 2: train the backbone through the EMD layer, episode by episode.

Each step takes the cross-entropy of DeepEMD's logits on one or more few-shot
episodes of training classes. Batch norm sees one episode at a time, support and
query together, as in the official code, whatever the number of episodes a step
and of devices. The running statistics are the mean of what each episode makes
of them.

References:
  DeepEMD, CVPR 2020, section 4.2; official `train_meta.py`.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepemd_jax.config import resolve
from deepemd_jax.data import episodes
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation import fewshot
from deepemd_jax.models import deepemd, resnet12
from deepemd_jax.training import loop, pretrain


def run(config, workdir: pathlib.Path) -> None:
  """Trains in `workdir/metatrain`; does nothing if that is finished."""
  stage = config.metatrain
  total_steps = stage.epochs * stage.steps
  if loop.is_finished(workdir / "metatrain", total_steps):
    return
  idle = sharding.pad_to_devices(stage.batch_size) - stage.batch_size
  if idle:
    loop.note(
      f"metatrain: {idle} of {sharding.mesh().size} devices have no episode "
      f"in the last round of a step; config.metatrain.batch_size="
      f"{sharding.pad_to_devices(stage.batch_size)} uses them all"
    )
  source = resolve.source(config)
  images = source.load("train")
  optimizer = resolve.optimizer(stage, stage.steps)
  loop.fit(
    workdir / "metatrain",
    loop.new_state(_start(config, workdir), optimizer),
    step=loop.make_step(_loss_function(config), optimizer),
    batch=_batches(config, images),
    total_steps=total_steps,
    validate_every=stage.validate_every * stage.steps,
    validate=fewshot.validator(
      config, source.load("val"), stage.validation_episodes
    ),
    workers=config.data.workers,
    name="metatrain",
  )


def _start(config, workdir):
  """The best pre-trained encoder, or a fresh one if there was no such stage."""
  fresh = pretrain.init(config)
  if not (workdir / "pretrain").exists() and "pretrain" not in config.stages:
    loop.note("metatrain: no pre-trained encoder in the workdir; fresh one")
    return fresh
  return loop.best_variables(workdir / "pretrain", fresh)[0]


def _batches(config, images):
  """Step number -> views of its episodes: support [e, way, shot, ...] and query
  [e, way, n_query, ...] pixels, boxes and flips; worker processes can have it.
  """
  sampler = episodes.EpisodeSampler(
    images.labels,
    class_names=images.class_names,
    seed=config.seed,
    split="train",
    **resolve.training_episode(config),
  )
  draw = resolve.episode_views(config, images)
  size = config.metatrain.batch_size
  share = sharding.local_indices(size)
  return functools.partial(_batch, draw, sampler, size, config.seed, share)


def _batch(draw, sampler, size: int, seed: int, share, step: int) -> dict:
  drawn = episodes.batch(sampler, range(step * size, (step + 1) * size))
  rng = np.random.default_rng([seed, 3, step])
  return {
    "support": draw(rng, drawn.support, share),
    "query": draw(rng, drawn.query, share),
  }


def _loss_function(config):
  crop = resolve.crop(config, config.image.size)
  solver = resolve.solver(config)
  size = config.metatrain.batch_size
  train = config.metatrain.batch_norm == "batch"

  def of_episodes(params, batch_stats, support, query):
    """Of each episode on this device, [e]."""
    encoder = resnet12.to_module(
      {"params": params, "batch_stats": batch_stats}, config.model.precision
    )
    model = deepemd.DeepEMD(
      encoder,
      solver=solver,
      temperature=config.emd.temperature,
      gradient=config.emd.gradient,
      pyramid=tuple(config.nodes.pyramid),
    )
    views = jax.vmap(crop)(support), jax.vmap(crop)(query)
    logits = model.episodes(*views, train=train)
    count, way = logits.shape[0], logits.shape[-1]
    labels = jnp.broadcast_to(jnp.arange(way)[:, None], logits.shape[:-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = logits.argmax(-1) == labels
    # Fixed ones have no axis of episodes yet.
    stats = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (count, x.shape[-1])),
      resnet12.to_variables(encoder)["batch_stats"],
    )
    return loss.mean((1, 2)), stats, 100 * right.mean((1, 2))

  def loss(params, extra, batch_stats, batch):
    del extra
    found = sharding.shard_map_batch(of_episodes, whole=2)(
      params, batch_stats, batch["support"], batch["query"]
    )
    # Without those that fill up the devices.
    value, stats, accuracy = jax.tree.map(lambda x: x[:size].mean(0), found)
    return value, (stats, {"accuracy": accuracy})

  return loss
