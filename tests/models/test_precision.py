"""An encoder in bfloat16 is near one in float32; the rest is in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import one_block
import optax
import pytest
import recipes
from flax import nnx

from deepemd_jax import models
from deepemd_jax.data.views import View
from deepemd_jax.models import convolution, matching, resnet12
from deepemd_jax.training import metatrain, pretrain
from deepemd_jax.training.optimizers import make_optimizer
from deepemd_jax.training.state import make_step, new_state

SIDE = 32
WIDTH = 1 / 16


def small(precision, network=resnet12):
  optimizer = {"lr": 0.02, "weight_decay": 0.0}
  settings = recipes.settings(
    {"image.size": SIDE},
    model={"precision": precision, "width": WIDTH},
    pretrain=optimizer,
    metatrain=optimizer,
  )
  if network is resnet12:
    return settings
  backbone = network.create(precision=precision)
  return dataclasses.replace(settings, backbone=backbone)


@pytest.fixture(scope="module")
def variables():
  return resnet12.init(jax.random.key(0), width=WIDTH)


def pictures(*shape, seed=0):
  """Draws stripes with noise; their direction depends on the first axis."""
  rng = np.random.default_rng(seed)
  rows, columns = np.mgrid[:SIDE, :SIDE]
  angle = np.arange(shape[0]) * np.pi / shape[0]
  wave = np.sin(
    0.8 * (np.cos(angle)[:, None, None] * rows)
    + 0.8 * (np.sin(angle)[:, None, None] * columns)
  )
  wave = wave.reshape(shape[0], *[1] * (len(shape) - 1), SIDE, SIDE, 1)
  noise = rng.standard_normal((*shape, SIDE, SIDE, 3))
  return np.clip(128 + 50 * wave + 25 * noise, 0, 255).astype(np.uint8)


def views(images):
  shape = images.shape[:-3]
  box = np.array([0, 0, SIDE, SIDE], np.float32)
  return {
    "images": images,
    "boxes": np.broadcast_to(box, (*shape, 4)),
    "flip": np.zeros(shape, bool),
  }


def normalized(images):
  return View().normalize(images.astype(np.float32))


def cosine(a, b):
  a, b = (
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for tree in (a, b)
  )
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def dtypes(tree):
  leaves = jax.tree.leaves(tree)
  return {x.dtype.name for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)}


@pytest.mark.parametrize("train", [False, True])
def test_maps_and_statistics(variables, train):
  images = normalized(pictures(4, 2)).reshape(-1, SIDE, SIDE, 3)
  apply = jax.jit(resnet12.apply, static_argnames=("train", "precision"))
  found = {
    precision: apply(variables, images, train=train, precision=precision)
    for precision in resnet12.PRECISIONS
  }
  maps, stats = zip(*found.values(), strict=True)
  assert dtypes(found) == {"float32"}
  assert not np.array_equal(*maps)
  error = np.linalg.norm(maps[1] - maps[0]) / np.linalg.norm(maps[0])
  assert error < (0.05 if train else 0.015)  # twice the measured error
  for a, b in zip(*map(jax.tree.leaves, stats), strict=True):
    np.testing.assert_allclose(a, b, rtol=0.02, atol=0.005)


def test_statistics_are_sums_in_float32():
  """There are 2^16 pixels, which bfloat16 could not even count."""
  x = np.random.default_rng(0).normal(3.0, 0.5, (16, 64, 64, 2))
  x = jnp.asarray(x, jnp.bfloat16)
  layer = resnet12.BatchNorm(2)
  y = layer(x, train=True)
  exact = np.asarray(x, np.float64)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    layer.mean[...], 0.1 * exact.mean((0, 1, 2)), rtol=1e-5
  )
  variance = exact.var((0, 1, 2), ddof=1)
  np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * variance, rtol=1e-5)
  y = np.asarray(y, np.float64)
  np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=2e-3)
  np.testing.assert_allclose(y.std((0, 1, 2)), 1, rtol=5e-3)


def test_the_weight_gradient_is_summed_in_float32():
  """The sum of 2^14 ones in bfloat16 would be 256."""
  images = jnp.ones((16, 32, 32, 1), jnp.bfloat16)
  kernel = jnp.zeros((1, 1, 1, 1), jnp.bfloat16)
  gradient = jax.grad(
    lambda k: convolution.same_convolution(images, k).astype(jnp.float32).sum()
  )(kernel)
  assert gradient.dtype == jnp.bfloat16
  assert gradient.item() == 2**14


def stages(settings):
  """Returns name -> (loss function, variables beside the encoder, batch)."""
  rng = np.random.default_rng(1)
  channels = settings.backbone.channels
  classifier = pretrain.init_classifier(settings.seed, channels, 4)
  labels = np.repeat(np.arange(4), 4).astype(np.int32)
  flat = pictures(4, 4).reshape(-1, SIDE, SIDE, 3)
  order = rng.permutation(len(labels))
  batch = {"views": views(flat[order]), "labels": labels[order]}
  episodes = [pictures(4, shot, seed=s)[None] for shot, s in ((1, 2), (3, 3))]
  episode = dict(zip(("support", "query"), map(views, episodes), strict=True))
  return {
    "pretrain": (
      pretrain.loss_function(settings),
      {"classifier": classifier},
      batch,
    ),
    "metatrain": (metatrain.loss_function(settings), {}, episode),
  }


def start(stage, settings, variables):
  """Returns the step of a stage, the state before it, and a batch."""
  loss, extra, batch = stages(settings)[stage]
  spec = getattr(settings, stage).optimizer
  optimizer = make_optimizer(spec, 1000)
  state = new_state(variables, optimizer, extra)
  state = jax.tree.map(jnp.array, state)  # `step` donates the state
  return make_step(loss, optimizer), state, batch


@pytest.mark.parametrize(
  ("stage", "network"),
  [
    ("pretrain", one_block),
    pytest.param("pretrain", resnet12, marks=pytest.mark.soak),
    pytest.param("metatrain", resnet12, marks=pytest.mark.soak),
  ],
)
def test_training(stage, network):
  """Gradients and losses are similar, and the state is in float32."""
  gradients, curves, states = [], [], []
  for precision in resnet12.PRECISIONS:
    settings = small(precision, network)
    variables = settings.backbone.init(jax.random.key(0))
    step, state, batch = start(stage, settings, variables)
    curve = []
    for _ in range(6):
      state, measured = step(state, batch)
      curve.append(float(measured["loss"]))
      if len(curve) == 1:  # without decay, this is the gradient
        momentum = optax.tree_utils.tree_get(state.opt_state, "trace")
        gradients.append(jax.tree.map(np.asarray, momentum))
    curves.append(curve)
    states.append(state)
  assert dtypes(gradients) == dtypes(states) == {"float32"}
  # The limit is low, because the network is random and few pixels normalize it.
  # For the quickstart's network, the cosine is above 0.996 (docs/glyphs.md).
  assert cosine(*gradients) > 0.9
  assert curves[0][-1] < 0.9 * curves[0][0]
  np.testing.assert_allclose(*curves, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("stage", ["pretrain", "metatrain"])
def test_a_step_computes_in_bfloat16_and_keeps_float32(stage, variables):
  """The test traces the steps of both stages, and does not compile them."""
  step, state, batch = start(stage, small("bfloat16"), variables)
  program = step.trace(state, batch)
  assert "bf16" in str(program.jaxpr)
  assert dtypes(program.out_info) == {"float32"}


def test_the_head_gets_float32(variables, monkeypatch):
  """Logits are near; weights, costs and EMD are in float32."""
  seen = []
  solve = matching.emd.distance_and_flow

  def spy(cost, a, b, *others, **options):
    seen.extend([cost, a, b])
    return solve(cost, a, b, *others, **options)

  monkeypatch.setattr(matching.emd, "distance_and_flow", spy)
  support, query = (normalized(pictures(3, n, seed=n)) for n in (1, 2))
  scores = []
  for precision in resnet12.PRECISIONS:
    model = models.DeepEMD(resnet12.to_module(variables, precision))
    scores.append(jax.jit(model.__call__)(support, query))
  assert len(seen) == 6 and dtypes((seen, scores)) == {"float32"}
  np.testing.assert_allclose(*scores, atol=0.1)
  assert not np.array_equal(*scores)


def test_models_deepemd_takes_a_precision():
  model = nnx.eval_shape(
    lambda: models.DeepEMD(precision="bfloat16", rngs=nnx.Rngs(0))
  )
  assert model.encoder.layer1.conv1.dtype == jnp.bfloat16
  assert dtypes(nnx.state(model)) == {"float32"}
  with pytest.raises(ValueError, match="precision is 'half'; use one of"):
    models.DeepEMD(precision="half", rngs=nnx.Rngs(0))


def test_float32_has_no_other_type_in_it(variables):
  images = jnp.ones((2, SIDE, SIDE, 3))
  for precision in resnet12.PRECISIONS:
    program = resnet12.encode.lower(variables, images, precision).as_text()
    assert ("bf16" in program) == (precision == "bfloat16")
