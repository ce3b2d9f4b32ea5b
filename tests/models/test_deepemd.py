"""Tests of `models.DeepEMD` and of its functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepemd_jax.models import DeepEMD, deepemd, matching, nodes, resnet12

SIDE = 16


class OneBlock(nnx.Module):
  """A block of ResNet-12 on every fourth pixel: 16 pixels give a map of 2 x 2.

  It has all kinds of layers of this network, and compiles in a quarter of the
  time.
  """

  def __init__(self, rngs):
    self.block = resnet12.Block(3, 6, rngs=rngs)

  def __call__(self, images, *, train=False):
    return self.block(images[..., ::4, ::4, :], train=train)


encode = nnx.jit(lambda encoder, images: encoder(images))
logits = jax.jit(matching.logits, static_argnames="temperature")


@pytest.fixture(scope="module")
def parts():
  """(graph, parameters, running statistics) of a `OneBlock`."""
  return nnx.split(OneBlock(nnx.Rngs(1)), nnx.Param, nnx.BatchStat)


def merged(parts, params=None):
  graph, own, stats = parts
  return nnx.merge(graph, own if params is None else params, stats, copy=True)


def pictures(*shape):
  return jax.random.normal(jax.random.key(2), (*shape, SIDE, SIDE, 3))


@pytest.mark.soak
def test_scores_gradients_and_statistics_of_a_resnet():
  rng = np.random.default_rng(0)
  support, query = (
    jnp.asarray(rng.standard_normal((2, n, 32, 32, 3)), jnp.float32)
    for n in (1, 3)
  )
  model = DeepEMD(width=1 / 64, rngs=nnx.Rngs(0))

  def loss(model):
    scores = model(support, query, train=True)
    assert scores.shape == (2, 3, 2)
    return scores[..., 0].sum()

  before = model.encoder.layer1.bn1.mean[...].copy()
  gradient = nnx.jit(nnx.grad(loss))(model)
  assert not np.allclose(before, model.encoder.layer1.bn1.mean[...])
  norms = [np.linalg.norm(x) for x in jax.tree.leaves(gradient)]
  assert np.isfinite(norms).all() and max(norms) > 0


@pytest.mark.parametrize("pyramid", [(), (1,)])
def test_cells_are_the_nodes_of_whole_images(pyramid, parts):
  """The result is that of the pure functions."""
  images = pictures(6)
  encoder = merged(parts)
  model = DeepEMD(encoder, pyramid=pyramid)
  scores = nnx.jit(model)(
    images[:2, None], images[2:].reshape(2, 2, SIDE, SIDE, 3)
  )
  encoded = nodes.pyramid(encode(encoder, images), pyramid)
  assert encoded.shape == (6, 4 + len(pyramid), 6)
  expected = logits(encoded[2:], encoded[:2])
  np.testing.assert_allclose(scores.reshape(4, 2), expected, atol=1e-4)


def test_crops_are_a_node_each(parts):
  crops = pictures(4, 3)
  model = DeepEMD(merged(parts))
  scores = nnx.jit(model)(crops[:2, None], crops[2:, None])
  maps = encode(merged(parts), crops.reshape(12, SIDE, SIDE, 3))
  encoded = nodes.from_crops(maps.reshape(4, 3, *maps.shape[1:]))
  expected = logits(encoded[2:], encoded[:2])
  np.testing.assert_allclose(scores[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("crops", [(), (3,)])
def test_several_episodes_are_each_by_itself(crops, parts):
  """Scores, gradients and statistics are those of single episodes."""
  images = pictures(2, 2, 3, *crops)
  support, query = images[:, :, :1], images[:, :, 1:]

  def run(params, method, *images):
    model = DeepEMD(merged(parts, params))
    scores = getattr(model, method)(*images, train=True)
    return scores, nnx.state(model.encoder, nnx.BatchStat)

  def weighted(scores):
    weights = jnp.arange(scores[..., 0].size).reshape(scores.shape[:-1])
    return (weights * scores[..., 0]).sum()

  def together(params):
    scores, stats = run(params, "episodes", support, query)
    return weighted(scores), (scores, stats)

  def apart(params):
    one = functools.partial(run, params, "__call__")
    scores, stats = jax.vmap(one)(support, query)
    return weighted(scores), (scores, stats)

  (ours, (scores, stats)), (theirs, (expected, kept)) = (
    jax.jit(jax.grad(which, has_aux=True))(parts[1])
    for which in (together, apart)
  )
  np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
  for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(kept), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max())


def test_any_backbone_will_do_for_the_pure_function():
  """The backbone decides what `state` is; options are passed to the logits."""

  def apply(images):
    return images[..., ::8, ::8, :], "state"

  def score(support, query):
    options = {"crops": False, "pyramid": (1,), "temperature": 2.0}
    scores, state = deepemd.episode_logits(apply, support, query, **options)
    assert state == "state"
    return scores

  support, query = pictures(2, 3, 1), pictures(2, 3, 2)
  scores = jax.jit(score)(support, query)
  assert scores.shape == (2, 3, 2, 3)
  # This is one episode as a list of images.
  flat = (x[1].reshape(-1, SIDE, SIDE, 3) for x in (support, query))
  classes, queries = (nodes.pyramid(apply(x)[0], (1,)) for x in flat)
  expected = logits(queries, classes, temperature=2.0)
  np.testing.assert_allclose(scores[1].reshape(6, 3), expected, atol=1e-4)


def test_mistakes(parts):
  with pytest.raises(ValueError, match="rngs"):
    DeepEMD()
  model = DeepEMD(merged(parts))
  with pytest.raises(ValueError, match="resize"):
    model(jnp.ones((2, 1, 32, 32, 3)), jnp.ones((2, 1, 48, 48, 3)))
