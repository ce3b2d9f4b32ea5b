"""The methods that scikit-learn expects. They do not need scikit-learn."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from deepemd_jax.errors import InputError
from deepemd_jax.inference import class_nodes
from deepemd_jax.inference import labels as label_arrays


class Estimator:
  """The base class of classifiers with scikit-learn's methods.

  A subclass has the method `logits`, and the attributes `classes_` and
  `class_nodes_` once it is fitted. `__init__` only stores its arguments.

  Attributes:
    classes_: [way], the sorted labels.
    class_nodes_: float32 [way, n, c], the nodes of the classes.
  """

  classes_: np.ndarray
  class_nodes_: np.ndarray
  logits: Callable[..., np.ndarray]

  def get_params(self, deep: bool = True) -> dict:
    """Returns {name: setting}."""
    del deep
    return {name: getattr(self, name) for name in _names(type(self))}

  def set_params(self, **params):
    """Changes settings and returns the classifier.

    Raises:
      InputError: there is no such setting.
    """
    for name, value in params.items():
      if name not in _names(type(self)):
        raise InputError(
          f"no parameter {name!r}; use one of {', '.join(_names(type(self)))}"
        )
      setattr(self, name, value)
    return self

  def __repr__(self) -> str:
    given = [
      f"{k}={v!r}" for k, v in self.get_params().items() if v is not None
    ]
    return f"{type(self).__name__}({', '.join(given)})"

  def __sklearn_is_fitted__(self) -> bool:
    return hasattr(self, "class_nodes_")

  def __sklearn_tags__(self):
    from sklearn import utils  # only scikit-learn calls this method

    return utils.Tags(
      estimator_type="classifier",
      target_tags=utils.TargetTags(required=True),
      classifier_tags=utils.ClassifierTags(),
      input_tags=utils.InputTags(two_d_array=False, three_d_array=True),
      non_deterministic=False,
    )

  def _check_fitted(self) -> None:
    if "class_nodes_" not in self.__dict__:
      raise not_fitted(type(self).__name__)

  @contextlib.contextmanager
  def _as_before_on_errors(self) -> Iterator[None]:
    """Undoes all changes if `fit` fails."""
    before = dict(self.__dict__)
    try:
      yield
    except BaseException:
      self.__dict__.clear()
      self.__dict__.update(before)
      raise

  def _number_of(self, label) -> int:
    """Returns the number of the class with a label.

    Raises:
      InputError: there is no such class.
    """
    if np.ndim(label) == 0:
      (found,) = np.nonzero(np.atleast_1d(self.classes_ == label))
      if len(found):
        return int(found[0])
    raise InputError(
      f"no class {label!r}; use one of {', '.join(map(str, self.classes_))}"
    )

  def predict_proba(self, images: Sequence) -> np.ndarray:
    """Returns the softmax of the logits, [N, way], columns as in `classes_`.

    Args:
      images: the queries, as for `logits`.

    Raises:
      InputError: `logits` refuses them.
    """
    return class_nodes.softmax(self.logits(images))

  def predict(self, images: Sequence) -> np.ndarray:
    """Returns the most likely class of each query, [N]; see `predict_proba`."""
    best = self.logits(images).argmax(1)
    return self.classes_[best]

  def score(self, images: Sequence, labels: Sequence, sample_weight=None):
    """Returns the share of queries whose prediction is their label, 0 to 1.

    Args:
      images: the queries, as for `logits`.
      labels: one label per query.
      sample_weight: [N], the weights of the queries; None means equal weights.

    Raises:
      InputError: the queries or the labels are unsuitable.
    """
    predicted = self.predict(images)
    true = label_arrays.as_array(labels, len(predicted))
    return float(np.average(predicted == true, weights=sample_weight))


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
  return tuple(inspect.signature(kind).parameters)


def not_fitted(name: str) -> InputError:
  """Returns the error of a call before `fit`, also scikit-learn's if loaded."""
  text = f"this {name} is not fitted; call fit first"
  exceptions = sys.modules.get("sklearn.exceptions")
  if exceptions is None:
    return InputError(text)

  class NotFitted(InputError, exceptions.NotFittedError):
    def __reduce__(self):
      return not_fitted, (name,)

  return NotFitted(text)
