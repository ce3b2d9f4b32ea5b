"""The nodes of images do not depend on the batch or on the memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from png_files import PngFiles

from deepemd_jax.data.image_set import CachedImages, EncodedImages
from deepemd_jax.data.views import evaluation_boxes, evaluation_view
from deepemd_jax.errors import StopRequested
from deepemd_jax.evaluation import figures
from deepemd_jax.evaluation.episodes import episode_sampler
from deepemd_jax.evaluation.features import (
  DeviceNodes,
  Features,
  HostNodes,
  ImageSetEncoder,
  on_nodes,
)
from deepemd_jax.models import nodes


@pytest.fixture
def encode(variables, images):
  """A function `(settings, images, batch size, memory) -> nodes`."""

  def call(settings, shown=images, batch=24, memory=1e9):
    encoder = ImageSetEncoder(
      Features.of(settings), batch_size=batch, memory=memory, stage="test"
    )
    return encoder(variables, shown)

  return call


@pytest.mark.parametrize(
  ("kind", "count"), [("fcn", 4), ("grid", 5), ("sampling", 3)]
)
def test_nodes_do_not_depend_on_the_batch(kind, count, small, encode, images):
  settings = small(kind)
  few, all_of_them = (encode(settings, batch=size) for size in (5, 24))
  assert isinstance(few, DeviceNodes)
  assert few.array.shape == (24, count, 6)
  np.testing.assert_allclose(few.array, all_of_them.array, atol=1e-5)
  filed = encode(settings, memory=0.0)
  assert isinstance(filed, HostNodes) and isinstance(filed.array, np.memmap)
  np.testing.assert_array_equal(filed.array, all_of_them.array)


def test_nodes_are_those_of_the_maps(small, encode, variables, images):
  """The test encodes one image and one crop at a time."""
  settings = small("fcn", nodes={"pyramid": (1,)})
  backbone, view = settings.backbone, settings.view
  look = functools.partial(evaluation_view, view)
  pixels = jax.jit(look)(images.images[3:4])
  maps = backbone.encode(variables, pixels)
  cells = np.asarray(maps)[0].reshape(4, 6)
  expected = np.concatenate([cells.mean(0, keepdims=True), cells])
  found = encode(settings).array
  np.testing.assert_allclose(found[3], expected, atol=1e-5)
  boxes = Features.of(settings).node_boxes()
  assert boxes[0].tolist() == [0, 0, 16, 16]
  np.testing.assert_array_equal(boxes[1:], nodes.cell_boxes(2, 2, 16))
  assert len(boxes) == found.shape[1]
  # A single averaged cell covers the whole map.
  single = dataclasses.replace(view, cells=1)
  features = Features(backbone, single, ())
  np.testing.assert_array_equal(features.node_boxes(), boxes[:1])


@pytest.mark.parametrize("kind", ["fcn", "grid", "sampling", "redraw"])
def test_originals_are_seen_as_copies_of_their_size(
  kind, small, encode, images, variables
):
  """The host or the device may cut and resize."""
  redraw = kind == "redraw"
  settings = small("sampling" if redraw else kind, nodes={"redraw": redraw})
  known = {
    "labels": images.labels,
    "class_names": images.class_names,
    "keys": images.keys,
    "sizes": np.full((24, 2), images.images.shape[1], np.int32),
  }
  episode = episode_sampler(settings, images, "test")(0)
  encoded, shown = [], []
  for either in (
    CachedImages(images=images.images, **known),
    EncodedImages(files=PngFiles(images.images), **known),
  ):
    stored = encode(settings, either, 8)
    if redraw:
      encoded.append(stored.take(np.array([[3, 5]]), np.array([1])))
    else:
      encoded.append(stored.array)
      (pair, *_) = figures.matched_pairs(settings, either, episode, variables)
      shown.append(pair)
  np.testing.assert_allclose(*encoded, atol=1e-5)
  if shown:
    np.testing.assert_allclose(*(pair.flow for pair in shown), atol=1e-4)
    # Crops are shown at the same place, on pictures of another size.
    places = [pair.query_boxes / pair.query.shape[0] for pair in shown]
    np.testing.assert_allclose(*places, atol=1e-6)


def test_crops_drawn_anew_for_every_episode(small, images, variables):
  """As in the official code, crops depend on the episode, not on the batch."""
  settings = small("sampling", nodes={"redraw": True})
  encode = ImageSetEncoder(
    Features.of(settings), batch_size=7, memory=1e9, stage="test"
  )
  stored = encode(variables, images)
  assert encode.encoded_images == 0
  rows = np.array([[0, 5], [5, 0], [0, 5]])
  together = stored.take(rows, np.array([3, 4, 4]))
  alone = stored.take(rows[1:2], np.array([4]))
  np.testing.assert_allclose(alone[0], together[1], atol=1e-5)
  np.testing.assert_allclose(together[1], together[2][::-1], atol=1e-5)
  assert np.abs(together[0] - together[2]).max() > 1e-3
  assert encode.encoded_images == 8


def test_sampled_crops_are_the_images_own(small, images):
  """Crops do not depend on the batch; another seed draws others."""
  view = small("sampling").view
  boxes, flip = evaluation_boxes(view, images, np.array([3, 7]))
  assert boxes.shape == (2, 3, 4) and flip.shape == (2, 3)
  alone, _ = evaluation_boxes(view, images, np.array([7]))
  np.testing.assert_array_equal(boxes[1:], alone)
  sizes = images.sizes[[3, 7]][:, None, ::-1]
  assert (boxes >= 0).all() and (boxes[..., 2:] <= sizes).all()
  other = dataclasses.replace(view, seed=1)
  assert (evaluation_boxes(other, images, np.array([7]))[0] != alone).any()
  more = dataclasses.replace(view, test_patches=5)
  assert more.crops_per_image == 5
  assert evaluation_boxes(more, images, np.array([7]))[0].shape == (1, 5, 4)


def test_a_signal_stops_it(small, encode, monkeypatch):
  from deepemd_jax.distributed import runtime

  monkeypatch.setattr(runtime, "should_stop", lambda: True)
  with pytest.raises(StopRequested, match="test"):
    encode(small())


def test_a_function_gets_nodes_wherever_they_lie():
  array = np.random.default_rng(0).random((9, 2, 3)).astype(np.float32)
  score = on_nodes(jax.vmap(lambda one, two, x: one.sum() - two.sum() + x))
  rows = np.array([[4, 1], [0, 0]]), np.array([[8], [2]])
  extra = np.array([0.5, 0.25], np.float32)
  expected = array[rows[0]].sum((1, 2, 3)) - array[rows[1]].sum((1, 2, 3))
  for stored in (DeviceNodes(jnp.asarray(array)), HostNodes(array)):
    values = score(stored, rows, (extra,))
    np.testing.assert_allclose(values, expected + extra, atol=1e-5)
