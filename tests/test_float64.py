"""JAX_ENABLE_X64 changes neither what is trained nor what is saved.

A run can be resumed and read with the flag or without it.
"""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest
import recipes
import toy_backbone
from paths import GOLDEN

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.data.batches import ImageBatches, ShuffledRows
from deepemd_jax.data.image_set import CachedImages
from deepemd_jax.data.views import TrainingViews
from deepemd_jax.inference import image_encoder
from deepemd_jax.models import backbone, projection
from deepemd_jax.training import metatrain, pretrain
from deepemd_jax.training.optimizers import make_optimizer
from deepemd_jax.training.state import make_step, new_state
from deepemd_jax.utils.random_streams import Stream, random_key


@contextlib.contextmanager
def either_way(wide):
  with jax.enable_x64(wide):
    assert jax.numpy.zeros(1).dtype == ("float64" if wide else "float32")
    yield


def dtypes(tree):
  return {
    jax.tree_util.keystr(path): str(leaf.dtype)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.mark.parametrize("name", backbone.BACKBONES)
def test_the_variables_of_every_backbone_are_float32(name):
  folder = str(GOLDEN / "vit" / "dinov2")
  made = backbone.create(name, width=1 / 16, weights=folder)
  with either_way(True):
    for own in (made, projection.project(made, 3)):
      assert set(dtypes(own.abstract()).values()) == {"float32"}


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 + 5, 2**63 - 1])
def test_a_seed_draws_the_same(seed):
  keys = []
  for wide in (False, True):
    with either_way(wide):
      key = random_key(seed, Stream.BACKBONE, 3)
      keys.append(np.asarray(jax.random.key_data(key)))
  np.testing.assert_array_equal(*keys)


def test_a_new_classifier_is_the_same():
  made = []
  for wide in (False, True):
    with either_way(wide):
      made.append(jax.device_get(pretrain.init_classifier(3, 4, 5)))
  assert dtypes(made[0]) == dtypes(made[1])
  jax.tree.map(np.testing.assert_array_equal, *made)


def image_set():
  rng = np.random.default_rng(0)
  return CachedImages(
    images=rng.integers(0, 256, (12, 16, 16, 3), np.uint8),
    labels=np.repeat(np.arange(3), 4).astype(np.int32),
    class_names=tuple("abc"),
    keys=tuple(map(str, range(12))),
    sizes=np.full((12, 2), 16, np.int32),
  )


def step_and_batch(stage, settings):
  """Returns the step of a stage, the state before it, and its first batch."""
  images = image_set()
  spec = getattr(settings, stage.STAGE).optimizer
  optimizer = make_optimizer(spec, 10)
  extra = {}
  if stage is pretrain:
    rows = ShuffledRows(12, 4, 0)
    views = TrainingViews(images, settings.view, 16)
    batch = ImageBatches(rows, views, 0, np.arange(4))(0)
    extra = {
      "classifier": pretrain.init_classifier(0, toy_backbone.CHANNELS, 3)
    }
  else:
    batch = metatrain.make_batches(settings, images)(0)
  step = make_step(stage.loss_function(settings), optimizer)
  key = jax.random.key(0)
  variables = jax.eval_shape(settings.backbone.init, key)
  state = jax.eval_shape(lambda v: new_state(v, optimizer, extra), variables)
  return step, state, batch


@pytest.mark.parametrize("stage", [pretrain, metatrain])
def test_what_a_step_makes_is_what_it_was_given(stage):
  """Types stay the same in a step and in a checkpoint; nothing is computed."""
  made = recipes.settings(
    {"image.size": 16},
    episode={"way": 2, "query": 2},
    pretrain={"batch_size": 4, "optimizer": "adamw", "schedule": "cosine"},
    metatrain={"batch_size": 1},
  )
  settings = dataclasses.replace(made, backbone=toy_backbone.create())
  with either_way(True):
    step, state, batch = step_and_batch(stage, settings)
    after, _ = jax.eval_shape(step, state, batch)
    assert dtypes(after) == dtypes(state)
    assert set(dtypes(after).values()) == {"float32", "int32"}


def test_running_statistics_stay_what_they_are():
  resnet = backbone.create("resnet12", width=1 / 16)
  with either_way(True):
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), "float32")
    train = functools.partial(resnet.apply, train=True)
    maps, statistics = jax.eval_shape(train, resnet.abstract(), images)
  assert maps.dtype == "float32"
  assert set(dtypes(statistics).values()) == {"float32"}


def test_a_trained_encoder_is_read_and_encodes_in_float32(tmp_path):
  workdir = recipes.tiny_run(tmp_path / "run")
  with either_way(True):
    trained = pretrained.load(workdir)
    assert set(dtypes(trained.encoder.variables).values()) == {"float32"}
    encoder = image_encoder.ImageEncoder(trained, trained.settings.view)
    image = np.arange(400, dtype=np.uint8).reshape(20, 20)
    assert encoder.all([image]).nodes.dtype == np.float32
