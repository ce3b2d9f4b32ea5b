"""Encode once, score every episode by itself, the same whatever the batch."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from deepemd_jax.config import defaults, resolve
from deepemd_jax.data.image_set import CachedImages, EncodedImages
from deepemd_jax.errors import InputError
from deepemd_jax.evaluation import fewshot, figures
from deepemd_jax.models import matching, resnet12, sfc

SIDE = 24


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(4), 6).astype(np.int32)
  return CachedImages(
    images=rng.integers(0, 256, (24, SIDE, SIDE, 3), np.uint8),
    labels=labels,
    class_names=tuple("abcd"),
    keys=tuple(str(i) for i in range(24)),
    sizes=rng.integers(30, 60, (24, 2)).astype(np.int32),
  )


@pytest.fixture(scope="module")
def variables():
  return resnet12.init(jax.random.key(0), width=1 / 64)


def small(kind="fcn"):
  config = defaults.get_config()
  config.image.size = 32
  config.model.width = 1 / 64
  config.nodes.kind = kind
  config.nodes.grid = (1, 2)
  config.nodes.patches = 3
  config.episode.way = 3
  config.episode.query = 2
  config.sfc.epochs = 2
  config.evaluate.batch_size = 4
  return config


@pytest.mark.parametrize(
  ("kind", "nodes"), [("fcn", 4), ("grid", 5), ("sampling", 3)]
)
def test_nodes_do_not_depend_on_the_batch(kind, nodes, images, variables):
  kept = []
  for size in (5, 24):
    config = small(kind)
    config.evaluate.encode_batch_size = size
    kept.append(np.asarray(fewshot.encoder(config)(variables, images)))
  assert kept[0].shape == (24, nodes, 10)
  np.testing.assert_allclose(kept[0], kept[1], atol=1e-5)
  config.evaluate.memory = 0.0
  filed = fewshot.encoder(config)(variables, images)
  assert isinstance(filed, np.memmap)
  np.testing.assert_array_equal(filed, kept[1])


class Files:
  """PNGs in memory."""

  def __init__(self, pixels):
    self._files = []
    for each in pixels:
      file = io.BytesIO()
      Image.fromarray(each).save(file, "PNG")
      self._files.append(file.getvalue())

  def read(self, rows):
    return [self._files[row] for row in rows]


@pytest.mark.parametrize("kind", ["fcn", "grid", "sampling", "redraw"])
def test_originals_are_seen_as_copies_of_their_size(kind, images, variables):
  """Whoever cuts and resizes, host or device."""
  config = small("sampling" if kind == "redraw" else kind)
  config.nodes.redraw = kind == "redraw"
  config.evaluate.encode_batch_size = 8
  known = {
    "labels": images.labels,
    "class_names": images.class_names,
    "keys": images.keys,
    "sizes": np.full((24, 2), SIDE, np.int32),
  }
  drawn = fewshot.sampler(config, images, "test")(0)
  found, shown = [], []
  for either in (
    CachedImages(images=images.images, **known),
    EncodedImages(files=Files(images.images), **known),
  ):
    nodes = fewshot.encoder(config)(variables, either)
    if callable(nodes):
      nodes = nodes(np.array([[3, 5]]), np.array([1]))
    found.append(nodes)
    config.nodes.redraw = False
    (pair, *_) = figures.matched_pairs(config, either, drawn, variables)
    shown.append(pair)
    config.nodes.redraw = kind == "redraw"
  np.testing.assert_allclose(*found, atol=1e-5)
  np.testing.assert_allclose(*(pair.flow for pair in shown), atol=1e-4)
  # Crops are shown on pictures of another size: at the same place.
  places = [pair.query_boxes / pair.query.shape[0] for pair in shown]
  np.testing.assert_allclose(*places, atol=1e-6)


def test_an_image_is_encoded_once(images, variables, monkeypatch):
  """Counted where it happens: on the device."""
  seen = []
  encode = resnet12.encode

  def counted(variables, pixels, *options):
    jax.debug.callback(lambda: seen.append(len(pixels)))
    return encode(variables, pixels, *options)

  monkeypatch.setattr(resnet12, "encode", counted)
  config = small()
  config.evaluate.encode_batch_size = 5
  found = {"stage": "x", "variables": variables}
  once = fewshot._Encode({"deepemd": found, "prototype": found})
  measure = fewshot._Measure(
    config, {"deepemd": found, "prototype": found}, once
  )
  first = measure(images, 9, "test")
  again = fewshot._Measure(
    resolve.changed(config, "2-shot"), {"deepemd": found}, once
  )(images, 3, "test")
  jax.effects_barrier()
  assert sum(seen) == 25  # 24, the last batch filled up
  assert first["timing"]["encoded_images"] == 24
  assert again["timing"]["encoded_images"] == 0
  assert set(again["heads"]) == {"deepemd", "deepemd_mean", "prototype"}


def score(config, name, encoded, images, count, batch):
  (head,) = [fewshot._head(config, name)]
  return fewshot.accuracies(
    fewshot.scorer(config, head),
    encoded,
    fewshot.sampler(config, images, "test"),
    count,
    batch,
  )


@pytest.mark.parametrize("shot", [1, 2])
def test_episodes_do_not_depend_on_the_batch(shot, images):
  """Nor on their order, the random order of SFC included."""
  rng = np.random.default_rng(1)
  encoded = jnp.asarray(rng.random((24, 3, 8)), jnp.float32)
  config = small()
  config.episode.shot = shot
  alone = score(config, "deepemd", encoded, images, 7, 1)
  together = score(config, "deepemd", encoded, images, 7, 5)
  np.testing.assert_array_equal(alone, together)
  filed = score(config, "deepemd", np.asarray(encoded), images, 7, 7)
  np.testing.assert_array_equal(alone, filed)


def test_crops_drawn_anew_for_every_episode(images, variables):
  """The official way: an episode's crops are its own, whatever the batch."""
  config = small("sampling")
  config.nodes.redraw = True
  config.evaluate.encode_batch_size = 7
  found = {"stage": "x", "variables": variables}
  once = fewshot._Encode({"deepemd": found})
  nodes = once(config, "x", images)
  rows = np.array([[0, 5], [5, 0], [0, 5]])
  together = np.asarray(nodes(rows, np.array([3, 4, 4])))
  alone = np.asarray(nodes(rows[1:2], np.array([4])))
  np.testing.assert_allclose(alone[0], together[1], atol=1e-5)
  np.testing.assert_allclose(together[1], together[2][::-1], atol=1e-5)
  assert np.abs(together[0] - together[2]).max() > 1e-3
  assert once.count == 8
  batches = [score(config, "prototype", nodes, images, 5, b) for b in (1, 5)]
  np.testing.assert_array_equal(*batches)


def test_every_head_is_what_it_says(images):
  """Against the slow and obvious: one episode, one head at a time."""
  rng = np.random.default_rng(2)
  encoded = jnp.asarray(rng.random((24, 3, 8)), jnp.float32)
  config = small()
  config.episode.shot = 2
  drawn = fewshot.sampler(config, images, "test")(4)
  query = encoded[drawn.query].reshape(6, 3, 8)
  support = encoded[drawn.support]
  key = jax.random.fold_in(jax.random.key(config.seed), 4)
  order = sfc.random_order(key, 6, 2)
  fitted = sfc.fit(support, order=order)
  each = [matching.logits(query, support[:, s]) for s in range(2)]
  expected = {
    "deepemd": matching.logits(query, fitted),
    "deepemd_mean": matching.logits(query, support.mean(1)),
    "deepemd_nearest": jnp.maximum(*each),
    "prototype": matching.prototype_logits(query, support.mean(1)),
    "chamfer": matching.chamfer_logits(query, support.mean(1)),
    "deepemd_equal_weights": matching.logits(
      query, sfc.fit(support, order=order, weights="equal"), weights="equal"
    ),
    "deepemd_l2": matching.logits(
      query, sfc.fit(support, order=order, metric="l2"), metric="l2"
    ),
  }
  for name, logits in expected.items():
    ours = fewshot._head(config, name)(query, support, key)
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-4)


def test_smoothed_solvers_are_near_the_exact_one(images):
  rng = np.random.default_rng(3)
  query, support = (
    jnp.asarray(rng.random(shape), jnp.float32)
    for shape in ((6, 3, 8), (3, 1, 3, 8))
  )
  config = small()
  config.evaluate.epsilon = 0.01  # of the head; that of training is another
  config.emd.epsilon = 10.0
  exact, *others = (
    np.asarray(fewshot._head(config, name)(query, support, None))
    for name in ("deepemd", "deepemd_sinkhorn", "deepemd_qp")
  )
  for other in others:
    assert 0 < np.abs(other - exact).max() < 0.5


def test_sampled_crops_are_the_images_own(images):
  """The same whatever else is in the batch; another seed draws others."""
  config = small("sampling")
  draw = resolve.evaluation_crops(config, images)
  boxes, flip = draw(np.array([3, 7]))
  assert boxes.shape == (2, 3, 4) and flip.shape == (2, 3)
  np.testing.assert_array_equal(boxes[1:], draw(np.array([7]))[0])
  sizes = images.sizes[[3, 7]][:, None, ::-1]
  assert (boxes >= 0).all() and (boxes[..., 2:] <= sizes).all()
  config.seed = 1
  assert (
    resolve.evaluation_crops(config, images)(np.array([7]))[0] != boxes[1]
  ).any()
  config.nodes.test_patches = 5
  assert resolve.evaluation_crops(config, images)(np.array([7]))[0].shape == (
    1,
    5,
    4,
  )


def test_training_crops(images):
  for kind, count in (("grid", 5), ("sampling", 3)):
    draw = resolve.episode_views(small(kind), images)
    drawn = draw(np.random.default_rng(0), np.array([[0, 1], [2, 0]]))
    assert drawn["boxes"].shape == (2, 2, count, 4)
    assert (drawn["boxes"][0, 0] != drawn["boxes"][1, 1]).any()
    cut = resolve.crop(small(kind), 32)(jax.tree.map(jnp.asarray, drawn))
    assert cut.shape == (2, 2, count, 32, 32, 3)


def test_an_ablation_and_mistakes():
  config = defaults.get_config("ablation")
  resolve.check(config)
  assert "deepemd_l2" in fewshot.heads(config)
  config.evaluate.heads = ("deepemd", "deepmd_l2")
  with pytest.raises(InputError, match="deepmd_l2"):
    resolve.check(config)
  config.evaluate.heads = ("prototype",)
  with pytest.raises(InputError, match="deepemd must be there"):
    resolve.check(config)
  config = defaults.get_config()
  config.evaluate.more = ("0-shot",)
  with pytest.raises(InputError, match="0-shot"):
    resolve.check(config)
  with pytest.raises(ValueError, match="ablation"):
    defaults.get_config("ablations")


def test_more_shots_need_more_images(images, monkeypatch):
  class Source:
    def counts(self, split):
      return dict.fromkeys("abcd", 6)

    def check(self):
      pass

  monkeypatch.setattr(resolve, "source", lambda *unused: Source())
  config = small()
  config.stages = ("evaluate",)
  resolve.check_feasible(config)
  config.evaluate.more = ("5-shot",)
  with pytest.raises(InputError, match="5 support and 2 query"):
    resolve.check_feasible(config)
