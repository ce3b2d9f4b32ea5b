"""Vision transformers agree with `transformers`, at any size."""

import functools

import jax
import numpy as np
import pytest
from paths import GOLDEN

from deepemd_jax.checkpoints import hugging_face
from deepemd_jax.models import token_positions, vit

# The order is that of golden/vit/record.py, because it determines the seeds.
KINDS = (
  *("dinov2", "dinov2_gated", "dinov2_with_registers", "dinov3_vit"),
  *("dinov3_vit_gated", "clip", "siglip_vision_model"),
)
SIDES = {"own": (20, 20), "other": (32, 12)}


def read(kind, **settings):
  made = hugging_face.create(str(GOLDEN / "vit" / kind), **settings)
  return made, hugging_face.read(made.weights)


def drawn(kind):
  rng = np.random.default_rng(KINDS.index(kind))
  return {
    name: rng.standard_normal((1, *sides, 3), np.float32)
    for name, sides in SIDES.items()
  }


@pytest.mark.parametrize("kind", KINDS)
def test_the_patch_tokens_are_those_of_transformers(kind):
  """There are two sizes: that of the table of positions, and another one."""
  recorded = np.load(GOLDEN / "vit" / kind / "recorded.npz")
  made, variables = read(kind)
  for name, images in drawn(kind).items():
    maps = made.encode(variables, images)
    largest = np.abs(recorded[name]).max()
    np.testing.assert_allclose(maps, recorded[name], atol=1e-5 * largest)
    rows, columns = (made.map_side(side) for side in SIDES[name])
    assert maps.shape == (1, rows, columns, made.channels)


@pytest.fixture(scope="module")
def registers():
  """A model with all parts that a family may have, except rotations."""
  made, variables = read("dinov2_with_registers")
  return made, variables, made.apply.keywords["architecture"]


def test_class_token_and_registers_stand_apart(registers):
  _, variables, architecture = registers
  images = drawn("dinov2_with_registers")["own"]
  first, maps = jax.eval_shape(
    functools.partial(vit.tokens, architecture=architecture), variables, images
  )
  assert first.shape == (1, 1 + 4, 16) and maps.shape == (1, 5, 5, 16)


def test_what_is_left_of_a_side_is_not_seen(registers):
  made, variables, _ = registers
  images = drawn("dinov2_with_registers")["own"]
  wider = np.pad(images, ((0, 0), (0, 3), (0, 1), (0, 0)), constant_values=9)
  np.testing.assert_allclose(
    made.encode(variables, wider), made.encode(variables, images), atol=1e-6
  )


def test_many_images_need_no_more_memory(registers, monkeypatch):
  """Images are encoded in groups of equal size, with the same result."""
  _, _, architecture = registers
  images = np.random.default_rng(0).random((6, 12, 12, 3), np.float32)
  counts = []

  def run(images):
    counts.append(len(images))
    return images.sum((1, 2)), 2 * images

  monkeypatch.setattr(vit, "_MOST_SIMILARITIES", 5 * 2 * (9 + 5) ** 2)
  found = vit._some_at_a_time(run, images, architecture)
  assert counts == [3]
  for own, expected in zip(found, run(images), strict=True):
    np.testing.assert_allclose(own, expected, rtol=1e-5)
  vit._some_at_a_time(run, images[:5], architecture)
  assert counts[2:] == [5]


def test_bfloat16_is_near(registers):
  made, variables, _ = registers
  images = drawn("dinov2_with_registers")["own"]
  half, _ = read("dinov2_with_registers", precision="bfloat16")
  exact, near = (x.encode(variables, images) for x in (made, half))
  assert near.dtype == np.float32
  error = np.linalg.norm(near - exact) / np.linalg.norm(exact)
  assert 1e-4 < error < 0.1
  with pytest.raises(ValueError, match="float16"):
    read("dinov2", precision="float16")


@pytest.mark.parametrize("antialias", [False, True])
def test_a_table_that_is_flat_stays_flat(antialias):
  for length in (1, 3, 5, 16):
    weights = token_positions._cubic(length, 5, antialias)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    # A mirrored table gives a mirrored result.
    np.testing.assert_allclose(weights[::-1, ::-1], weights, atol=1e-6)
  np.testing.assert_array_equal(
    token_positions._cubic(5, 5, antialias), np.eye(5)
  )
