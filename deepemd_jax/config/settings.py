"""What a run does, as frozen values: all that the stages ever see of a config.

`resolve` makes these, once. A stage is a function of `Settings` and a workdir.
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
    learning_rate: at its highest.
    schedule: "step" or "cosine".
    decay_every: epochs between two steps down.
    decay_rate: factor of each of these.
    warmup_epochs: of linear rise from 0.
    weight_decay: of all parameters.
    epochs: of the whole training.
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
  """Stage pretrain.

  Attributes:
    optimizer: see `OptimizerSpec`.
    image_size: side in pixels of the crops that the network sees.
    batch_size: images a step.
    label_smoothing: share of a label that goes to all classes alike.
    validate_every: epochs between two validations.
    validation_episodes: episodes of each.
  """

  optimizer: OptimizerSpec
  image_size: int
  batch_size: int
  label_smoothing: float
  validate_every: int
  validation_episodes: int


@dataclasses.dataclass(frozen=True)
class MetatrainSettings:
  """Stage metatrain.

  Attributes:
    optimizer: see `OptimizerSpec`.
    steps_per_epoch: steps an epoch.
    batch_size: episodes a step.
    batch_norm: "batch", the statistics of each episode, or "fixed", the
      pre-trained ones.
    gradient: through the EMD, "exact" or "flow".
    validate_every: epochs between two validations.
    validation_episodes: episodes of each.
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
  """Stage evaluate, and how all stages encode images.

  Attributes:
    episodes: test episodes.
    batch_size: episodes in one device call.
    encode_batch_size: images in one device call.
    heads: names; () is the usual three.
    more: the same test set again, with one change each.
    more_episodes: test episodes of each.
    memory: bytes; nodes of an image set that are larger are kept in a file.
    variants: of the data set that are tested too.
    variant_episodes: test episodes of each.
    pictures: query images that are drawn.
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
  """Stage retrieve.

  Attributes:
    split: "test" or "val".
    queries: how many images ask; 0 is all of them.
    depths: how many images the EMD puts in order.
    recalls: the K of Recall@K.
    batch_size: queries in one call of the EMD.
    search_batch_size: queries in one call of the global search.
    block: images of the gallery in one call of the global search.
    pictures: queries that are drawn.
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
  """A run.

  Attributes:
    seed: every random draw follows from it.
    stages: their names, in order.
    data: which images.
    view: how they are looked at.
    pyramid: cells along a side of the averages over a map; see `nodes.pyramid`.
    backbone: from images to maps.
    model: what it was made from, for the record.
    heads: what the heads share.
    solver_name: of the EMD's solver.
    solver_settings: what solvers are made from; see `emd.solvers.make_solver`.
    episode: shape of test episodes.
    training_episode: shape of training and validation episodes.
    pretrain: stage pretrain.
    metatrain: stage metatrain.
    evaluate: stage evaluate.
    retrieve: stage retrieve.
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
