"""Values, statistics and gradients agree with the official backbone."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDEN
from recipes import recipe_state_dict

from deepemd_jax.checkpoints import convert
from deepemd_jax.errors import InputError
from deepemd_jax.models import convolution, resnet12

MEAN = np.array([125.3, 123.0, 113.9]) / 255
STD = np.array([63.0, 62.1, 66.7]) / 255


@pytest.fixture(scope="module")
def golden():
  return np.load(GOLDEN / "resnet12.npz")


@pytest.fixture(scope="module")
def variables():
  return convert.from_torch(recipe_state_dict())


@pytest.fixture(scope="module")
def images(golden):
  pixels = golden["img_u8"].transpose(0, 2, 3, 1) / np.float32(255)
  return ((pixels - MEAN) / STD).astype(np.float32)


@pytest.fixture(scope="module", params=[False, True], ids=["eval", "train"])
def mode(request, variables, images):
  """(name, outputs, statistics, gradients) of one mode; compiled once."""
  weights = np.random.default_rng(2).standard_normal((4, 640, 5, 5))
  weights = jnp.asarray(weights.transpose(0, 2, 3, 1), jnp.float32)

  @jax.jit
  def run(params):
    def loss(params):
      maps, stats = resnet12.apply(
        {**variables, "params": params}, images, train=request.param
      )
      return (maps * weights).mean(), (maps, stats)

    return jax.grad(loss, has_aux=True)(params)

  gradients, (maps, stats) = run(variables["params"])
  name = "train" if request.param else "eval"
  return name, np.asarray(maps), stats, gradients


def test_outputs(golden, mode):
  name, maps, _, _ = mode
  expected = golden[f"{name}_out"].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(maps, expected, atol=1e-5 * expected.std() * 50)


def test_running_statistics(golden, mode):
  name, _, stats, _ = mode
  checked = 0
  for key in golden.files:
    if not key.startswith("train_new_layer"):
      continue
    layer, rest = key.removeprefix("train_new_").split(".0.", 1)
    module, leaf = rest.rsplit(".", 1)
    module = module.replace("downsample.1", "downsample_bn")
    ours = stats[layer][module][leaf.removeprefix("running_")]
    if name == "train":
      np.testing.assert_allclose(ours, golden[key], rtol=1e-4, atol=1e-5)
      checked += 1
    else:
      assert not np.allclose(ours, golden[key], rtol=1e-4, atol=1e-5)
      checked += 1
  assert checked == 8


def test_gradients(golden, mode):
  name, _, _, gradients = mode
  recorded = json.loads((GOLDEN / "resnet12_state_dict.json").read_text())
  names = recorded["sorted_param_names"]
  ours = {key: _leaf(gradients, key) for key in names}
  norms = [np.linalg.norm(ours[key]) for key in names]
  # Both are in float32. The official network differs from float64 by 6e-5.
  np.testing.assert_allclose(norms, golden[f"{name}_gradnorm_all"], rtol=2e-3)
  for key in names:
    if (full := f"{name}_grad_{key}") in golden.files:
      # Only the norm is compared. Rounding, which depends on the kind of CPU,
      # decides which of two nearly equal values a max pool takes. This changes
      # single numbers.
      error = np.linalg.norm(ours[key] - golden[full])
      assert error < 2e-3 * np.linalg.norm(golden[full]), key


def _leaf(tree, official):
  layer, rest = official.split(".0.", 1)
  module, leaf = rest.rsplit(".", 1)
  module = module.replace("downsample.1", "downsample_bn")
  module = module.replace("downsample.0", "downsample_conv")
  if "conv" in module:
    return np.asarray(tree[layer][module]["kernel"]).transpose(3, 2, 0, 1)
  return np.asarray(tree[layer][module][{"weight": "scale"}.get(leaf, leaf)])


def test_encode_is_evaluation_mode_and_has_the_published_size(variables):
  count = sum(x.size for x in jax.tree.leaves(variables["params"]))
  assert count == 12_424_320
  small = resnet12.create(width=0.125).abstract()
  maps = jax.eval_shape(resnet12.encode, small, jnp.ones((3, 84, 84, 3)))
  assert maps.shape == (3, 5, 5, 80)


@pytest.mark.parametrize("pools, side", [(4, 2), (3, 5), (2, 10), (1, 20)])
def test_fewer_blocks_halve_the_map(pools, side):
  backbone = resnet12.create(width=0.125, pools=pools)
  images = jax.ShapeDtypeStruct((3, 40, 40, 3), "float32")
  encode = functools.partial(backbone.apply, train=False)
  maps, _ = jax.eval_shape(encode, backbone.abstract(), images)
  assert maps.shape == (3, side, side, 80)
  assert backbone.map_side(40) == side


def test_module_round_trip(variables):
  again = resnet12.to_variables(resnet12.to_module(variables))
  assert jax.tree.structure(again) == jax.tree.structure(variables)
  for a, b in zip(
    jax.tree.leaves(again), jax.tree.leaves(variables), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("prefix", ["encoder.", "module.encoder."])
def test_convert_accepts_the_official_prefixes(prefix, variables):
  state = {prefix + k: v for k, v in recipe_state_dict().items()}
  state["fc.weight"] = np.zeros((64, 640))
  again = convert.from_torch(state)
  assert jax.tree.structure(again) == jax.tree.structure(variables)


def test_convert_lists_missing_and_unknown_names():
  state = recipe_state_dict()
  state["layer5.0.conv1.weight"] = state.pop("layer1.0.conv1.weight")
  with pytest.raises(InputError) as error:
    convert.from_torch(state)
  assert "params/layer1/conv1/kernel" in str(error.value)
  assert "layer5.0.conv1.weight" in str(error.value)


@pytest.mark.parametrize("size", [1, 3])
def test_convolution_gradients_equal_those_of_xla(size):
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.standard_normal((3, 7, 6, 4)), jnp.float32)
  kernel = jnp.asarray(rng.standard_normal((size, size, 4, 5)), jnp.float32)
  weights = jnp.asarray(rng.standard_normal((3, 7, 6, 5)), jnp.float32)

  def gradients(function):
    return jax.grad(lambda x, k: (function(x, k) * weights).sum(), (0, 1))(
      images, kernel
    )

  ours = gradients(convolution.same_convolution)
  theirs = gradients(convolution._plain)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
