"""The settings of a run as frozen values. Stages see these and no config.

`resolve` makes them once. A stage is a function of `Settings` and a workdir.
"""

import dataclasses
import typing
from typing import Any

if typing.TYPE_CHECKING:
  from deepemd_jax.data.episodes import EpisodeShape
  from deepemd_jax.data.sources import DataSpec
  from deepemd_jax.data.views import View
  from deepemd_jax.models.backbone import Backbone
  from deepemd_jax.models.heads import HeadSettings


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
  """An optimizer and its learning rate; see `training.optimizers`.

  Attributes:
    name: "sgd" or "adamw".
    learning_rate: the highest learning rate.
    schedule: "step" or "cosine".
    decay_every: epochs between two decays of schedule "step".
    decay_rate: factor of each of these decays.
    warmup_epochs: epochs of a linear rise from 0.
    weight_decay: weight decay of all parameters.
    epochs: epochs of the whole training.
  """

  name: str
  learning_rate: float
  schedule: str
  decay_every: int
  decay_rate: float
  warmup_epochs: int
  weight_decay: float
  epochs: int


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
  """The settings of stage pretrain.

  Attributes:
    optimizer: see `OptimizerSpec`.
    image_size: side in pixels of the crops that the network sees.
    batch_size: images per step.
    label_smoothing: share of a label that is spread evenly over all classes.
    validate_every: epochs between two validations.
    validation_episodes: episodes of each validation.
  """

  optimizer: OptimizerSpec
  image_size: int
  batch_size: int
  label_smoothing: float
  validate_every: int
  validation_episodes: int


@dataclasses.dataclass(frozen=True)
class MetatrainSettings:
  """The settings of stage metatrain.

  Attributes:
    optimizer: see `OptimizerSpec`.
    steps_per_epoch: steps per epoch.
    batch_size: episodes per step.
    batch_norm: "batch" for the statistics of each episode, or "fixed" for the
      pre-trained statistics.
    gradient: gradient through the EMD, "exact" or "flow".
    validate_every: epochs between two validations.
    validation_episodes: episodes of each validation.
  """

  optimizer: OptimizerSpec
  steps_per_epoch: int
  batch_size: int
  batch_norm: str
  gradient: str
  validate_every: int
  validation_episodes: int


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
  """The settings of stage evaluate, and of all stages that encode images.

  Attributes:
    episodes: number of test episodes.
    batch_size: episodes in one device call.
    encode_batch_size: images in one device call.
    heads: names of heads; () stands for the usual three.
    more: changes, such as "5-shot". The test set is tested again with each one.
    more_episodes: test episodes for each change.
    memory: bytes; nodes of an image set that need more are kept in a file.
    variants: variants of the data set to test, too.
    variant_episodes: test episodes of each variant.
    pictures: number of query images to draw.
  """

  episodes: int
  batch_size: int
  encode_batch_size: int
  heads: tuple[str, ...]
  more: tuple[str, ...]
  more_episodes: int
  memory: float
  variants: tuple[str, ...]
  variant_episodes: int
  pictures: int


@dataclasses.dataclass(frozen=True)
class RetrieveSettings:
  """The settings of stage retrieve.

  Attributes:
    split: "test" or "val".
    queries: number of query images; 0 is all images.
    depths: numbers of images that the EMD ranks again.
    recalls: the K of Recall@K.
    batch_size: queries in one call of the EMD.
    search_batch_size: queries in one call of the global search.
    block: images of the gallery in one call of the global search.
    pictures: number of queries to draw.
  """

  split: str
  queries: int
  depths: tuple[int, ...]
  recalls: tuple[int, ...]
  batch_size: int
  search_batch_size: int
  block: int
  pictures: int


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of a run.

  Attributes:
    seed: seed of all random draws.
    stages: names of the stages, in order.
    data: the data set.
    view: the crops of images that the network sees.
    pyramid: cells along a side of the averages over a map; see `nodes.pyramid`.
    backbone: the backbone from images to maps.
    model: the fields that the backbone was made from, for the record.
    heads: the settings that the heads share.
    solver_name: name of the EMD's solver.
    solver_settings: settings of solvers; see `emd.solvers.make_solver`.
    episode: shape of test episodes.
    training_episode: shape of training and validation episodes.
    pretrain: settings of stage pretrain.
    metatrain: settings of stage metatrain.
    evaluate: settings of stage evaluate.
    retrieve: settings of stage retrieve.
  """

  seed: int
  stages: tuple[str, ...]
  data: "DataSpec"
  view: "View"
  pyramid: tuple[int, ...]
  backbone: "Backbone"
  model: dict[str, Any]
  heads: "HeadSettings"
  solver_name: str
  solver_settings: dict[str, Any]
  episode: "EpisodeShape"
  training_episode: "EpisodeShape"
  pretrain: PretrainSettings
  metatrain: MetatrainSettings
  evaluate: EvaluateSettings
  retrieve: RetrieveSettings
