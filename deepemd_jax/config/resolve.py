"""Conversion of a config to frozen settings; no stage sees the ConfigDict."""

import dataclasses

from ml_collections import ConfigDict

from deepemd_jax.config.settings import (
  EvaluateSettings,
  MetatrainSettings,
  OptimizerSpec,
  PretrainSettings,
  RetrieveSettings,
  Settings,
)
from deepemd_jax.data.episodes import EpisodeShape
from deepemd_jax.data.sources import DataSpec
from deepemd_jax.data.views import View
from deepemd_jax.emd.solvers import SOLVERS, make_solver
from deepemd_jax.errors import InputError
from deepemd_jax.models import backbone, projection
from deepemd_jax.models.heads import HeadSettings, SfcSettings


def resolve(config: ConfigDict) -> Settings:
  """Makes the settings of a run.

  Args:
    config: a ConfigDict whose values have been validated.

  Raises:
    InputError: the backbone cannot be made, or does not fit the images.
  """
  episode = EpisodeShape(**config.episode.to_dict())
  return Settings(
    seed=config.seed,
    stages=tuple(config.stages),
    data=_data(config),
    view=_view(config),
    pyramid=tuple(config.nodes.pyramid),
    backbone=_backbone(config),
    model=_model(config),
    heads=_heads(config),
    solver_name=config.emd.solver,
    solver_settings=_solver_settings(config),
    episode=episode,
    training_episode=_training_episode(config, episode),
    pretrain=PretrainSettings(
      optimizer=_optimizer(config.pretrain),
      image_size=config.image.pretrain_size or _view(config).size,
      **_fields(
        config.pretrain,
        "batch_size label_smoothing validate_every validation_episodes",
      ),
    ),
    metatrain=MetatrainSettings(
      optimizer=_optimizer(config.metatrain),
      steps_per_epoch=config.metatrain.steps,
      gradient=config.emd.gradient,
      **_fields(
        config.metatrain,
        "batch_size batch_norm validate_every validation_episodes",
      ),
    ),
    evaluate=_evaluate(config),
    retrieve=_retrieve(config),
  )


def _fields(section: ConfigDict, names: str) -> dict:
  return {name: section[name] for name in names.split()}


def _data(config) -> DataSpec:
  data = config.data
  return DataSpec(
    **_fields(data, "name test_name directory folder csv workers"),
    fractions=tuple(data.fractions),
    image_size=_view(config).size,
    seed=config.seed,
  )


def _view(config) -> View:
  """Makes the view. For a field that is 0 or empty, it takes the backbone's
  value."""
  image, nodes, model = config.image, config.nodes, _backbone(config)
  if model.map_side(image.size or model.image_size) < 1:
    raise InputError(
      f"config.image.size is {image.size}, and the backbone needs at least "
      f"{model.stride} pixels"
    )
  return View(
    kind=nodes.kind,
    size=image.size or model.image_size,
    scale=tuple(image.crop_scale),
    aspect=tuple(image.crop_ratio),
    mean=tuple(image.mean) or model.mean,
    std=tuple(image.std) or model.std,
    grid=tuple(nodes.grid),
    train_ratio=tuple(nodes.train_ratio),
    test_patches=nodes.test_patches or nodes.patches,
    seed=config.seed,
    whole_crop=image.crop,
    flip=image.flip,
    **_fields(nodes, "cells ratio patches redraw"),
  )


def _model(config) -> dict:
  """Returns the model's fields that are set and that the backbone takes."""
  fields = config.model.to_dict()
  entry = backbone.BACKBONES[fields["backbone"]]
  taken = ("backbone", "projection", *entry.settings)
  return {name: x for name, x in fields.items() if x and name in taken}


def _backbone(config) -> backbone.Backbone:
  settings = config.model.to_dict()
  name, channels = settings.pop("backbone"), settings.pop("projection")
  own = backbone.create(name, **settings)
  return projection.project(own, channels) if channels else own


def _solver_settings(config) -> dict:
  """Returns the fields of `config.emd` that some solver takes."""
  names = {name for entry in SOLVERS.values() for name in entry.settings}
  return {name: config.emd[name] for name in sorted(names)}


def _heads(config) -> HeadSettings:
  sfc = config.sfc
  settings = _solver_settings(config)
  entropic = settings | {"epsilon": config.evaluate.epsilon}
  return HeadSettings(
    solver=make_solver(config.emd.solver, **settings),
    temperature=config.emd.temperature,
    sfc=SfcSettings(sfc.epochs, sfc.lr, sfc.batch_size, sfc.gradient),
    sinkhorn=make_solver("sinkhorn", **entropic),
    regularized_qp=make_solver("regularized_qp", **settings),
  )


def _training_episode(config, episode: EpisodeShape) -> EpisodeShape:
  """Makes the shape of training and validation episodes; 0 stands for the
  number of the test episodes."""
  own = _fields(config.metatrain, "way shot query")
  return dataclasses.replace(episode, **{k: v for k, v in own.items() if v})


def _optimizer(stage) -> OptimizerSpec:
  names = "schedule decay_every decay_rate warmup_epochs weight_decay epochs"
  return OptimizerSpec(
    name=stage.optimizer, learning_rate=stage.lr, **_fields(stage, names)
  )


def _evaluate(config) -> EvaluateSettings:
  evaluate = config.evaluate
  return EvaluateSettings(
    heads=tuple(evaluate.heads),
    more=tuple(evaluate.more),
    variants=tuple(evaluate.variants),
    memory=evaluate.memory * 2**30,
    **_fields(
      evaluate,
      "episodes batch_size encode_batch_size more_episodes variant_episodes "
      "pictures",
    ),
  )


def _retrieve(config) -> RetrieveSettings:
  retrieve = config.retrieve
  return RetrieveSettings(
    depths=tuple(retrieve.depths),
    recalls=tuple(retrieve.recalls),
    **_fields(
      retrieve, "split queries batch_size search_batch_size block pictures"
    ),
  )


def stored_data(data: DataSpec, fields: dict) -> DataSpec:
  """Returns the data that an earlier run was trained on.

  Args:
    data: the data of this run, for fields that the file leaves out.
    fields: the fields of the earlier run's config.json.
  """
  known = {x.name for x in dataclasses.fields(DataSpec)}
  own = {k: v for k, v in fields["data"].items() if k in known}
  own["fractions"] = tuple(own.get("fractions", data.fractions))
  size = fields.get("image", {}).get("size", 0)
  return dataclasses.replace(data, **own, image_size=size or data.image_size)
