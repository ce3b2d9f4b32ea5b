"""The score of an episode does not depend on the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepemd_jax.evaluation import episodes
from deepemd_jax.evaluation.features import (
  DeviceNodes,
  HostNodes,
  ImageSetEncoder,
)
from deepemd_jax.models import heads


@pytest.fixture(scope="module")
def encoded():
  rng = np.random.default_rng(1)
  return rng.random((24, 3, 8)).astype(np.float32)


def scorer(settings, name):
  return episodes.EpisodeScorer(heads.bind(name, settings.heads), settings.seed)


@pytest.mark.parametrize("shot", [1, 2])
def test_episodes_do_not_depend_on_the_batch(shot, small, images, encoded):
  """They do not depend on their order either, and so with the order of SFC."""
  settings = small(episode={"shot": shot})
  score = scorer(settings, "deepemd")
  sampler = episodes.episode_sampler(settings, images, "test")
  on_device, on_host = DeviceNodes(jnp.asarray(encoded)), HostNodes(encoded)
  alone = score(on_device, sampler, 7, 1)
  assert alone.shape == (7,) and len(set(alone.tolist())) > 1
  np.testing.assert_array_equal(alone, score(on_host, sampler, 7, 5))


def test_an_accuracy_is_the_share_of_queries_that_are_right(
  small, images, encoded
):
  """The test scores one episode at a time, with its own random numbers."""
  settings = small(episode={"shot": 2})
  sampler = episodes.episode_sampler(settings, images, "test")
  found = scorer(settings, "deepemd_mean")(
    DeviceNodes(jnp.asarray(encoded)), sampler, 3, 3
  )
  head = jax.jit(heads.bind("deepemd_mean", settings.heads))
  for number in range(3):
    episode = sampler(number)
    key = jax.random.fold_in(jax.random.key(settings.seed), number)
    query = jnp.asarray(encoded[episode.query]).reshape(6, 3, 8)
    logits = head(query, jnp.asarray(encoded[episode.support]), key)
    right = np.argmax(logits, 1) == np.repeat(np.arange(3), 2)
    assert found[number] == pytest.approx(100 * right.mean())


def test_crops_drawn_anew_do_not_depend_on_the_batch_either(
  small, images, variables
):
  settings = small("sampling", nodes={"redraw": True})
  nodes = ImageSetEncoder.of(settings, "test")(variables, images)
  score = scorer(settings, "prototype")
  sampler = episodes.episode_sampler(settings, images, "test")
  np.testing.assert_array_equal(
    score(nodes, sampler, 5, 1), score(nodes, sampler, 5, 5)
  )


def test_test_episodes_and_those_of_training_have_their_own_shapes(
  small, images
):
  settings = small(episode={"shot": 3}, metatrain={"way": 2})
  test, val = (
    episodes.episode_sampler(settings, images, split)(0)
    for split in ("test", "val")
  )
  assert test.support.shape == (3, 3) and test.query.shape == (3, 2)
  assert val.support.shape == (2, 1) and val.query.shape == (2, 2)


@pytest.mark.parametrize("redraw", [False, True])
@pytest.mark.parametrize("count", [1, 5])
def test_validation_is_the_mean_over_its_episodes(
  count, redraw, small, images, variables
):
  """Validation encodes no image that its episodes do not use."""
  settings = small(
    "sampling", nodes={"redraw": redraw}, evaluate={"encode_batch_size": 24}
  )
  validate = episodes.Validator(settings, images, count, "test")
  found = validate(variables)
  uses = 3 * (1 + 2)  # images in an episode
  if not redraw:
    assert validate._encode.encoded_images <= min(24, count * uses)
  nodes = ImageSetEncoder.of(settings, "test")(variables, images)
  sampler = episodes.episode_sampler(settings, images, "val")
  for name, head in (("accuracy", "deepemd_mean"), ("prototype", "prototype")):
    values = scorer(settings, head)(nodes, sampler, count, 4)
    assert found[name] == pytest.approx(values.mean())
