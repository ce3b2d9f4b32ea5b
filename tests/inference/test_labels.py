"""No label is merged with another or invented; scikit-learn's checks pass."""

import pickle

import numpy as np
import pytest
from hypothesis import given as generated
from hypothesis import settings
from hypothesis import strategies as st
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.utils import estimator_checks

from deepemd_jax import FewShotClassifier
from deepemd_jax.errors import InputError
from deepemd_jax.inference import labels

KINDS = {
  "text": st.text("a1é\0n", max_size=4),
  "number": st.integers(-(2**70), 2**70) | st.integers(-3, 3).map(float),
  "boolean": st.booleans(),
  "bytes": st.binary(min_size=1, max_size=3),
}
NAN = float("nan")


def distinct(given):
  """Returns the labels without repeats, by Python's equality."""
  return sorted(set(given))


@settings(deadline=None, max_examples=60)
@generated(st.sampled_from(sorted(KINDS)).flatmap(lambda k: st.lists(KINDS[k])))
def test_every_label_is_one_class_and_itself(given):
  classes, index = labels.classes(given, len(given))
  assert classes.tolist() == distinct(given)
  assert [classes.tolist()[k] for k in index] == given


@settings(deadline=None, max_examples=40)
@generated(
  st.permutations(sorted(KINDS)).flatmap(
    lambda names: st.tuples(KINDS[names[0]], KINDS[names[1]])
  )
)
def test_labels_of_two_kinds_are_refused(given):
  with pytest.raises(InputError, match="labels must be of one kind: there are"):
    labels.classes(list(given), 2)


class NotAvailable:
  """A value like pandas' NA, which is neither equal nor different."""

  def __repr__(self):
    return "<NA>"

  def __ne__(self, other):
    return self

  def __bool__(self):
    raise TypeError("boolean value of NA is ambiguous")


@pytest.mark.parametrize(
  "given",
  [
    ["a", NAN, "b"],
    ["a", None, "b"],
    ["a", NotAvailable(), "b"],
    [1.0, NAN, 2.0],
    np.array([1, NAN, 2]),
    np.array(["a", NAN, "b"], object),
    np.ma.array([1, 2, 3], mask=[0, 1, 0]),
    np.array(["2020", "NaT", "2021"], "datetime64[ns]"),
  ],
  ids=repr,
)
def test_a_missing_label_is_no_class(given):
  with pytest.raises(InputError, match="label 1 is .*, a missing value; give"):
    labels.classes(given, 3)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (["1", 1], r"there are '1' \(text\) and 1 \(number\); make all of them"),
    ([True, "True"], r"True \(boolean\) and 'True' \(text\)"),
    ([1, True], r"1 \(number\) and True \(boolean\)"),
    ([1, 2.5], "Unknown label type: 2.5 is a measurement"),
    (np.array([1.0, np.inf]), "Unknown label type: inf"),
    ([("a", 1), ("b", 2)], "label 0 is a tuple; an image has one label"),
    ([["a"], ["b"]], "label 0 is a list"),
    (
      np.zeros((2, 2)),
      r"2 images need 2 labels, but labels has shape \[2, 2\]",
    ),
    ("ab", r"need 2 labels, but labels has shape \[0\]"),
    (None, "labels must be a list, one per image, not a NoneType"),
    (7, "not a int"),
    (["Mu\u0308ller", "M\u00fcller"], "two labels look the same"),
    (
      ["a", "a "],
      "two labels look the same, 'a', but are written 'a' and 'a '",
    ),
    (["a"], r"2 images need 2 labels, but labels has shape \[1\]"),
  ],
  ids=repr,
)
def test_what_is_no_label_is_refused(given, message):
  with pytest.raises(InputError, match=message) as refused:
    labels.classes(given, 2)
  assert "\n" not in str(refused.value)


def test_arrays_keep_their_types():
  for given in (
    np.array(["b", "a"]),
    np.array(["b", "a"], object),
    np.array([2, 1], np.int8),
    np.array([2.0, 1.0], np.float32),
    np.array([True, False]),
    np.array(["2021", "2020"], "datetime64[D]"),
  ):
    classes, index = labels.classes(given, 2)
    assert classes.dtype == given.dtype and index.tolist() == [1, 0]
  assert labels.classes(["b", "a"], 2)[0].dtype == "<U1"


def test_a_column_is_taken_as_scikit_learn_does():
  with pytest.warns(DataConversionWarning, match="A column-vector y was"):
    assert labels.classes(np.array([["b"], ["a"]]), 2)[1].tolist() == [1, 0]


CALLS = {
  "predict": ([],),
  "predict_proba": ([],),
  "logits": ([],),
  "explain": (None,),
  "describe": (),
  "score": ([], []),
  "encoder": (),
}


@pytest.mark.parametrize("name", CALLS)
def test_before_fit_the_error_is_ours_and_scikit_learn_s(name):
  with pytest.raises(InputError, match="call fit first") as refused:
    getattr(FewShotClassifier(), name)(*CALLS[name])
  again = pickle.loads(pickle.dumps(refused.value))
  for error in (refused.value, again):
    assert isinstance(error, NotFittedError) and isinstance(error, ValueError)
    assert str(error) == str(refused.value)


def test_images_without_labels_and_labels_without_images(run):
  for images, given in (([np.zeros((9, 9))], []), ([], ["a"])):
    with pytest.raises(InputError):
      FewShotClassifier(run).fit(images, given)


def stripes(rows):
  """Makes images from rows of numbers, which scikit-learn's checks use."""
  rows = np.asarray(rows)
  if rows.ndim != 2 or rows.dtype.kind not in "iuf":
    return rows
  values = (np.clip(rows.astype(float), -10, 10) + 10) / 20
  return [np.tile(row, (8, 1)).repeat(8, 1) for row in values]


class OfRows(FewShotClassifier):
  """A classifier of rows of numbers, which scikit-learn's checks use."""

  def __init__(self, checkpoint=None):
    super().__init__(checkpoint)

  def get_params(self, deep=True):
    return {"checkpoint": self.checkpoint}

  def fit(self, X, y=None):
    return super().fit(stripes(X), y)

  def logits(self, images):
    return super().logits(stripes(images))


CHECKS = (
  "check_classifiers_regression_target",
  "check_estimators_unfitted",
  "check_get_params_invariance",
  "check_no_attributes_set_in_init",
  "check_set_params",
  "check_supervised_y_2d",
  "check_supervised_y_no_nan",
)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_s_own_checks(name, run, monkeypatch):
  from deepemd_jax.inference import class_nodes

  mean = lambda support, order, **_: support.mean(1)  # noqa: E731
  monkeypatch.setattr(class_nodes, "_fit", mean)  # the fit takes seconds
  check = getattr(estimator_checks, name)
  check("OfRows", OfRows(str(run)))
