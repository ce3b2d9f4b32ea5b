"""`NodeClassifier` takes nodes that another program has computed."""

import pickle

import jax
import numpy as np
import pytest

from deepemd_jax import NodeClassifier
from deepemd_jax.errors import InputError
from deepemd_jax.inference import centering
from deepemd_jax.models import heads, nodes

LABELS = ["b", "a", "c", "a", "b"]


def images(seed, labels=LABELS):
  """Makes feature maps [N, 2, 3, 8] whose cells depend on the label."""
  rng = np.random.default_rng(seed)
  kinds = {x: np.random.default_rng(ord(x)).random((2, 3, 8)) for x in "abc"}
  return np.stack(
    [kinds[x] + 0.2 * rng.random((2, 3, 8)) for x in labels]
  ).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
  return NodeClassifier().fit(images(0), LABELS)


def test_it_finds_the_class(fitted):
  assert fitted.classes_.tolist() == ["a", "b", "c"]
  assert fitted.predict(images(1)).tolist() == LABELS
  assert fitted.score(images(1), LABELS) == 1.0
  np.testing.assert_allclose(fitted.predict_proba(images(1)).sum(1), 1)
  assert fitted.logits(images(1)[:0]).shape == (0, 3)


def test_maps_are_nodes(fitted):
  flat = images(1).reshape(5, 6, 8)
  np.testing.assert_array_equal(fitted.logits(images(1)), fitted.logits(flat))
  again = pickle.loads(pickle.dumps(fitted))
  np.testing.assert_array_equal(again.logits(flat), fitted.logits(flat))


@pytest.mark.parametrize("center", ["none", "support", "others"])
def test_one_shot_is_the_head_on_nodes_of_length_1(center):
  support, query = images(0, "abc"), images(1, "abcab")
  others = images(2)
  given = others if center == "others" else center
  classifier = NodeClassifier(center=given).fit(support, list("abc"))
  change = {
    "none": lambda x: x,
    "support": centering.Center.of_support(support.reshape(3, 6, 8)).scaled,
    "others": centering.Center.of_nodes([others.reshape(5, 6, 8)]).scaled,
  }[center]
  support, query = (
    nodes.unit(change(x.reshape(-1, 6, 8))) for x in (support, query)
  )
  head = heads.bind("deepemd", heads.HeadSettings())
  expected = head(query, support[:, None], jax.random.key(0))
  found = classifier.logits(images(1, "abcab"))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e12, 1e30])
def test_the_size_of_the_nodes_does_not_matter(size):
  expected = NodeClassifier(center="none").fit(images(0, "abc"), list("abc"))
  found = NodeClassifier(center="none").fit(
    size * images(0, "abc"), list("abc")
  )
  np.testing.assert_allclose(
    found.logits(size * images(1)), expected.logits(images(1)), rtol=1e-4
  )


def test_other_numbers_are_taken(fitted):
  half = jax.numpy.asarray(images(1), jax.numpy.bfloat16)
  assert fitted.predict(half).tolist() == LABELS
  assert fitted.predict(images(1).tolist()).tolist() == LABELS
  assert fitted.predict([]).shape == (0,)
  whole = np.round(1000 * images(1)).astype(np.int64)
  assert fitted.predict(whole).tolist() == LABELS


def test_it_follows_scikit_learn():
  base = pytest.importorskip("sklearn.base")
  selection = pytest.importorskip("sklearn.model_selection")
  classifier = base.clone(NodeClassifier(center="none"))
  assert classifier.get_params() == {"center": "none", "solver": None}
  labels = list("abcabcabc")
  found = selection.cross_val_score(classifier, images(0, labels), labels, cv=3)
  assert found.tolist() == [1.0, 1.0, 1.0]


def test_a_fit_that_fails_changes_nothing():
  classifier = NodeClassifier().fit(images(0), LABELS)
  before = classifier.logits(images(1))
  classifier.set_params(center="support")
  with pytest.raises(InputError, match="all the same"):
    classifier.fit(np.ones((2, 3, 4)), ["a", "b"])
  np.testing.assert_array_equal(classifier.logits(images(1)), before)


def test_few_classes_are_not_centered_by_the_examples():
  labels = list("abcab")
  few = NodeClassifier().fit(images(0), labels)
  same = NodeClassifier(center="none").fit(images(0), labels)
  np.testing.assert_array_equal(few.class_nodes_, same.class_nodes_)
  many = NodeClassifier().fit(images(0), list("vwxyz"))
  other = NodeClassifier(center="none").fit(images(0), list("vwxyz"))
  assert abs(many.class_nodes_ - other.class_nodes_).max() > 0.1


def test_a_match_adds_up_to_the_logit(fitted):
  match = fitted.match(images(1)[0], "a")
  logit = 12.5 / 6 * (match.similarity * match.flow).sum()
  np.testing.assert_allclose(logit, fitted.logits(images(1))[0, 0], rtol=1e-5)
  np.testing.assert_allclose(match.flow.sum(1), match.weights, rtol=1e-5)
  np.testing.assert_allclose(match.flow.sum(0), match.class_weights, rtol=1e-5)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x: NodeClassifier().predict(x), "not fitted; call fit first"),
    (lambda x: NodeClassifier().fit(x[:0], []), "no nodes"),
    (lambda x: NodeClassifier().fit(x[0, 0], ["a"] * 3), r"shape \[3, 8\]"),
    (lambda x: NodeClassifier().fit([["a"]], ["a"]), "must be numbers"),
    (lambda x: NodeClassifier().fit([x[0], x[0, 0]], "ab"), "not an array"),
    (lambda x: NodeClassifier().fit(x[:, :0], LABELS), "empty"),
    (lambda x: NodeClassifier().fit(x / [[[[0.0]]]], LABELS), "of image 0"),
    (lambda x: NodeClassifier().fit(x, LABELS[:2]), "5 images need 5 labels"),
    (lambda x: NodeClassifier(solver="x").fit(x, LABELS), "solver is 'x'"),
    (lambda x: NodeClassifier(solver=3).fit(x, LABELS), "solver is 3"),
    (lambda x: NodeClassifier(center="x").fit(x, LABELS), "center is 'x'"),
    (lambda x: NodeClassifier(center=5).fit(x, LABELS), "center: the nodes m"),
    (lambda x: NodeClassifier(center=x[:0]).fit(x, LABELS), "center has no"),
    (lambda x: NodeClassifier(center=x[..., :3]).fit(x, LABELS), "3 channels"),
  ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_mistakes_are_one_line(call, message):
  with pytest.raises(InputError, match=message) as error:
    call(images(0))
  assert "\n" not in str(error.value)


def test_mistakes_after_fitting(fitted):
  with pytest.raises(InputError, match="have 3 channels, but .* have 8"):
    fitted.predict(images(1)[..., :3])
  for label in ("z", ["a", "b"], 3):
    with pytest.raises(InputError, match="no class .*; use one of a, b, c"):
      fitted.match(images(1)[0], label)
  for nodes_, message in (
    ([[1, 2], [3]], "not an array of numbers"),
    (images(1), r"a feature map \[h, w, c\], .* shape \[5, 2, 3, 8\]"),
    (np.full((2, 8), np.nan), "nodes are not finite"),
    ("a.jpg", "must be numbers"),
  ):
    with pytest.raises(InputError, match=message):
      fitted.match(nodes_, "a")
