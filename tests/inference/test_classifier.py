"""Tests of FewShotClassifier: conventions, odd images, explanations."""

import dataclasses
import importlib.util
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from recipes import tiny_run
from sklearn import base, model_selection
from sklearn.utils import validation

from deepemd_jax import FewShotClassifier, emd
from deepemd_jax.checkpoints import pretrained
from deepemd_jax.errors import InputError
from deepemd_jax.inference import (
  choices,
  class_nodes,
  crops,
  explanation,
  feature_cache,
  image_encoder,
)
from deepemd_jax.models import matching

COLORS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def draw(color, seed, size=(36, 48)):
  rng = np.random.default_rng(seed)
  noise = rng.integers(-30, 30, (*size, 3))
  return np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def few():
  """(images, labels), with two images of each color."""
  names = [name for name in COLORS for _ in range(2)]
  return [draw(COLORS[n], i) for i, n in enumerate(names)], names


@pytest.fixture(scope="module")
def fitted(run, few):
  return FewShotClassifier(run).fit(*few)


def encoder_of(workdir, variant=None, cache=None):
  loaded = pretrained.load(workdir)
  view = choices.choose_view(loaded.settings, variant)
  return image_encoder.ImageEncoder(loaded, view, cache)


def test_a_run_is_seen_in_its_own_precision(run, tmp_path, few):
  """The key of the cache includes the precision."""
  model = {"width": 1 / 16, "precision": "bfloat16"}
  half = tiny_run(tmp_path / "half", model=model)
  kept = str(tmp_path / "kept")
  (images, _), found = few, []
  for workdir in (run, half):  # their variables are the same
    encoder = encoder_of(workdir, cache=feature_cache.Cache(kept))
    found.append(encoder.all(images).nodes)
  assert found[0].dtype == found[1].dtype == np.float32
  assert not np.array_equal(*found)
  np.testing.assert_allclose(*found, atol=0.1 * found[0].std())


def queries(count=5):
  names = [list(COLORS)[i % 3] for i in range(count)]
  return [draw(COLORS[n], 100 + i) for i, n in enumerate(names)], names


def test_colors_are_told_apart(fitted):
  images, names = queries()
  assert fitted.classes_.tolist() == ["blue", "green", "red"]
  assert fitted.predict(images).tolist() == names
  assert fitted.score(images, names) == 1.0
  proba = fitted.predict_proba(images)
  np.testing.assert_allclose(proba.sum(1), 1)
  np.testing.assert_allclose(
    np.diff(np.log(proba)), np.diff(fitted.logits(images)), rtol=1e-4
  )


def test_paths_pictures_and_arrays_are_the_same(fitted, tmp_path):
  images, _ = queries(3)
  paths = []
  for i, image in enumerate(images):
    paths.append(tmp_path / f"{i}.png")
    Image.fromarray(image).save(paths[-1])
  expected = fitted.logits(images)
  for given in (
    paths,
    [str(p) for p in paths],
    np.array(paths, object),
    [Image.open(p) for p in paths],
    np.stack(images),
  ):
    np.testing.assert_array_equal(fitted.logits(given), expected)


def test_scikit_learn_protocol(run):
  estimator = FewShotClassifier(run, "grid", emd.Sinkhorn(0.1), cache=None)
  params = estimator.get_params()
  names = ["checkpoint", "variant", "solver", "center", "cache"]
  assert list(params) == names
  assert params["checkpoint"] is run
  twin = base.clone(estimator)
  assert twin is not estimator and twin.get_params() == params
  assert twin.set_params(variant="fcn") is twin and twin.variant == "fcn"
  with pytest.raises(ValueError, match="no parameter 'varant'"):
    twin.set_params(varant="fcn")
  assert base.is_classifier(estimator)
  assert "variant='grid'" in repr(estimator)
  with pytest.raises(Exception, match="not fitted"):
    validation.check_is_fitted(estimator)
  for call in (estimator.predict, estimator.explain):
    with pytest.raises(ValueError, match="call fit first"):
      call([])


def test_settings_are_looked_at_in_fit(few):
  estimator = FewShotClassifier("nowhere", "no variant", "no solver")
  with pytest.raises(InputError, match="'nowhere' is not the workdir"):
    estimator.fit(*few)


def test_cross_validation(run, tmp_path):
  images, names = queries(12)
  estimator = FewShotClassifier(run, cache=tmp_path / "cache")
  split = model_selection.StratifiedKFold(2)
  scores = [
    model_selection.cross_val_score(estimator, x, names, cv=split)
    for x in (images, np.stack(images))
  ]
  np.testing.assert_array_equal(scores[0], scores[1])
  assert scores[0].mean() == 1.0
  assert len(list((tmp_path / "cache").rglob("*.npz"))) == 12


def test_pickled(fitted):
  images, _ = queries(3)
  again = pickle.loads(pickle.dumps(fitted))
  np.testing.assert_array_equal(again.logits(images), fitted.logits(images))
  assert again.explain(images[0]).logit == fitted.explain(images[0]).logit
  validation.check_is_fitted(again)


def test_works_without_scikit_learn(run, monkeypatch):
  """A copy of the module is imported while scikit-learn is missing."""
  monkeypatch.setitem(sys.modules, "sklearn", None)
  spec = importlib.util.find_spec("deepemd_jax.inference.classifier")
  copy = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(copy)
  images = np.zeros((2, 9, 9), np.uint8)
  images[1] = 255
  estimator = copy.FewShotClassifier(run).fit(images, ["a", "b"])
  assert estimator.predict(images).tolist() == ["a", "b"]
  assert str(run) in repr(estimator)


@pytest.mark.parametrize("way", [1, 2, 30])
def test_any_number_of_classes(run, way):
  rng = np.random.default_rng(way)
  images = rng.integers(0, 256, (way, 20, 20, 3), np.uint8)
  estimator = FewShotClassifier(run).fit(images, np.arange(way) * 10)
  assert estimator.predict(images).tolist() == (np.arange(way) * 10).tolist()
  proba = estimator.predict_proba(images[:1])
  assert proba.shape == (1, way) and np.isclose(proba.sum(), 1)
  assert estimator.predict_proba([]).shape == (0, way)


def test_one_image_a_class_is_the_plain_match(run, few):
  images = [few[0][i] for i in (0, 2, 4)]
  estimator = FewShotClassifier(run).fit(images, ["r", "g", "b"])
  nodes = estimator.encoder().all(images).nodes
  expected = jax.jit(matching.logits)(nodes, jnp.asarray(nodes[[2, 1, 0]]))
  np.testing.assert_allclose(estimator.logits(images), expected, atol=1e-4)


def test_unequal_shots(run, few):
  """Repeating the images of a small class by hand changes nothing."""
  images, names = few
  estimator = FewShotClassifier(run).fit(images[:5], names[:5])
  by_hand = FewShotClassifier(run).fit([*images[:5], images[4]], names)
  np.testing.assert_array_equal(estimator.class_nodes_, by_hand.class_nodes_)
  assert estimator.predict(queries()[0]).tolist() == queries()[1]
  why = estimator.explain(images[4], "blue")
  assert why.images == 1
  np.testing.assert_array_equal(why.support.picture, why.query.picture)


def test_epochs_end_where_images_are_many(run, few, monkeypatch):
  seen = []
  monkeypatch.setattr(
    class_nodes, "_fit", lambda support, order, **_: seen.append(order.shape)
  )
  monkeypatch.setattr(class_nodes, "_MOST_STEPS", 4)
  FewShotClassifier(run).fit(*few)
  assert seen == [(2, 6)]


@pytest.mark.parametrize("variant", ["fcn", "grid", "sampling"])
def test_odd_images(run, few, variant):
  """Images may be gray, tiny, thin, huge, or repeated."""
  image = few[0][0]
  odd = [image[..., 0], draw(COLORS["red"], 9, (1, 1))]
  odd += [draw(COLORS["red"], 9, size) for size in ((1, 200), (900, 700))]
  odd += [image, image]
  estimator = FewShotClassifier(run, variant).fit(odd, list("aabbcc"))
  logits = estimator.logits(odd)
  assert np.isfinite(logits).all()
  np.testing.assert_array_equal(logits[4], logits[5])


@pytest.mark.parametrize("variant", ["fcn", "grid", "sampling"])
def test_contributions_add_up(run, few, variant):
  estimator = FewShotClassifier(run, variant).fit(few[0][::2], few[1][::2])
  query = draw(COLORS["green"], 7, (70, 50))
  logits = estimator.logits([query])[0]
  why = estimator.explain(query)
  assert why.label == "green" and why.logit == pytest.approx(logits.max(), 1e-5)
  assert sum(p.contribution for p in why.pairs) == pytest.approx(
    why.logit, abs=1e-3
  )
  parts = [pair.contribution for pair in why.pairs]
  assert parts == sorted(parts, reverse=True)
  other = estimator.explain(query, "red")
  assert other.logit == pytest.approx(logits[2], 1e-5)
  assert abs(other.remainder) < 1e-3
  for pair in why.pairs:
    left, top, right, bottom = pair.query_box
    assert 0 <= left < right <= 50 and 0 <= top < bottom <= 70
    left, top, right, bottom = pair.support_box
    assert 0 <= left < right <= 48 and 0 <= top < bottom <= 36
  # The boxes are on the picture, which is at most as large as the image.
  assert why.query.small_boxes().max() <= max(why.query.picture.shape)


def test_mirrored_crops_are_marked(run, few):
  """There is a mark for each mirrored crop of the query and of the example."""
  estimator = FewShotClassifier(run, "sampling").fit(few[0][::2], few[1][::2])
  view = choices.choose_view(pretrained.load(run).settings, "sampling")
  query = draw(COLORS["green"], 7, (70, 50))
  why = estimator.explain(query)
  figure = why.figure()

  def marks(axis):
    return sum(text.get_text() == "mirrored" for text in axis.texts)

  for axis, image in ((2, query), (1, few[0][2])):
    mirrored = crops.extract_crops(view, Image.fromarray(image))[2]
    assert marks(figure.axes[axis]) == mirrored.sum()
  assert sum(map(marks, figure.axes)) > 0
  plain = FewShotClassifier(run).fit(few[0][::2], few[1][::2]).explain(query)
  assert not any(map(marks, plain.figure().axes))


@dataclasses.dataclass(frozen=True)
class Smoothed:
  """A solver whose value is not the cost of its flow, as in Sinkhorn."""

  def __call__(self, cost, a, b):
    return emd.NetworkSimplex()(cost, a, b)

  def value(self, cost, a, b, plan):
    return (cost * plan.flow).sum((-2, -1)) - 0.8


def test_what_smoothing_adds_is_said(run, few):
  estimator = FewShotClassifier(run, solver=Smoothed())
  why = estimator.fit(few[0][::2], few[1][::2]).explain(few[0][1])
  assert why.remainder == pytest.approx(12.5 / 4 * 0.8, abs=1e-3)
  total = sum(pair.contribution for pair in why.pairs)
  assert total + why.remainder == pytest.approx(why.logit)


def test_an_explanation_is_drawn(fitted, tmp_path):
  why = fitted.explain(queries(1)[0][0])
  why.save(tmp_path / "why.png")
  Image.open(tmp_path / "why.png").verify()
  title = why.figure(lines=3).axes[1].get_title(loc="left")
  assert title == f"red: {why.sum()}"
  numbers = why.sum().partition("=")[2].partition("(")[0].replace("- ", "+ -")
  assert f"{sum(map(float, numbers.split('+'))):.2f}" == f"{why.logit:.2f}"


def test_mistakes_are_named(run, few, fitted, tmp_path):
  images, names = few
  (tmp_path / "bad.png").write_bytes(b"no picture")
  with pytest.raises(InputError, match="2 of 3 images cannot be read") as found:
    fitted.predict([tmp_path / "bad.png", images[0], np.zeros((3, 3, 9))])
  assert "bad.png' (not an image)" in str(found.value)
  assert "image 2 (an array must be" in str(found.value)
  cases = [
    ((images, names[:-1]), "6 images need 6 labels"),
    (([], []), "no images"),
    ((images[0], names), "one image"),
    ((images, [names] * 6), "label 0 is a list"),
    ((images, np.array([1, "a", 2, 2, 2, 3], object)), "of one kind"),
  ]
  for arguments, message in cases:
    with pytest.raises(InputError, match=message):
      FewShotClassifier(run).fit(*arguments)
  with pytest.raises(InputError, match="no class 'pink'; use one of blue"):
    fitted.explain(images[0], "pink")
  with pytest.raises(InputError, match="1 images need 1 labels"):
    fitted.score(images[:1], names[:2])


def test_encodings_are_made_once(run, tmp_path, monkeypatch):
  """They do not depend on the batch either."""
  images, _ = queries(20)
  for variant in ("fcn", "sampling"):
    plain = encoder_of(run, variant).all(images)
    cache = feature_cache.Cache(tmp_path / "cache")
    first = encoder_of(run, variant, cache).all(images[3:8])
    with monkeypatch.context() as patch:
      patch.setattr(image_encoder.ImageEncoder, "_encode_new", None)
      again = encoder_of(run, variant, cache).all(images[3:8])
    for ours, other, all_of in zip(
      first[:3], again[:3], plain[:3], strict=True
    ):
      np.testing.assert_array_equal(ours, other)
      np.testing.assert_allclose(ours, all_of[3:8], 1e-4, 1e-4)
    alone = encoder_of(run, variant).all(images[4:5])
    np.testing.assert_allclose(alone.nodes, plain.nodes[4:5], 1e-4, 1e-4)


def test_cells_stand_where_they_are(run):
  encoded = encoder_of(run).all([draw((9, 9, 9), 0, (40, 60))])
  assert encoded.boxes[0].tolist() == [
    *([0, 0, 30, 20], [30, 0, 60, 20], [0, 20, 30, 40], [30, 20, 60, 40])
  ]
  assert encoded.sizes.tolist() == [[40, 60]]


@pytest.mark.parametrize(
  ("size", "shown"),
  [((60, 40), (60, 40)), ((1, 1), (1, 1)), ((448, 336), (224, 168))]
  + [((700, 1), (224, 56)), ((3, 40), (10, 40))],
)
def test_small_copies_can_be_looked_at(size, shown):
  picture = explanation.thumbnail(Image.new("RGB", size), 224)
  assert picture.shape == (shown[1], shown[0], 3)
