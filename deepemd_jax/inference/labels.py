"""Labels as people hand them over: checked, and none merged with another.

NumPy makes text of a list that mixes text and numbers, so that "1" and 1 would
be one class, and a missing label a class called nan.
"""

import numbers
import sys
import warnings
from collections.abc import Sequence

import numpy as np

from deepemd_jax.data.names import refuse_twins
from deepemd_jax.errors import InputError


def classes(labels: Sequence, count: int) -> tuple[np.ndarray, np.ndarray]:
  """The classes that labels name.

  Args:
    labels: text, whole numbers, booleans, or anything else that sorts.
    count: of the images.

  Returns:
    The sorted classes [way], and each image's number among them [count].

  Raises:
    InputError: as `as_array`; the labels do not sort; or two look the same.
  """
  array = as_array(labels, count)
  try:
    found, index = np.unique(array, return_inverse=True)
  except TypeError as error:
    raise InputError(f"labels must be of one kind: {error}") from error
  refuse_twins((x for x in found.tolist() if isinstance(x, str)), "labels")
  return found, index


def as_array(labels: Sequence, count: int) -> np.ndarray:
  """Labels as an array [count].

  Raises:
    InputError: there are more or fewer, one is missing, or is a fraction, or
      they are of several kinds.
  """
  is_array = hasattr(labels, "dtype") or hasattr(labels, "__array__")
  # Not `asarray`, which forgets what is masked.
  array = np.asanyarray(labels) if is_array else _listed(labels)
  if array.ndim == 2 and array.shape[1] == 1:
    _warn_of_column()
    array = array[:, 0]
  if array.ndim != 1 or len(array) != count:
    raise InputError(
      f"{count} images need as many labels, not {list(array.shape)}"
    )
  _check_kinds(array)
  if is_array:
    return array
  made = np.asarray(array.tolist())
  # An array of NumPy's has no room for some numbers and characters.
  same = made.shape == array.shape and made.tolist() == array.tolist()
  return made if same else array


def _listed(labels) -> np.ndarray:
  """A list as an array of its items, whatever they are."""
  try:
    items = [] if isinstance(labels, str | bytes) else list(labels)
  except TypeError as error:
    raise InputError(
      f"labels are a list, one an image, not a {type(labels).__name__}"
    ) from error
  array = np.empty(len(items), object)
  for i, item in enumerate(items):
    array[i] = item.item() if isinstance(item, np.generic) else item
  return array


def _is_missing(label) -> bool:
  try:
    return label is None or bool(label != label)
  except (TypeError, ValueError):  # pandas' NA is neither true nor false
    return True


def _check_kinds(array: np.ndarray) -> None:
  """Refuses labels that are missing, are no names, or are of several kinds."""
  first: dict[str, object] = {}
  # Dates as nanoseconds would come out of NumPy as numbers.
  dates = array.dtype.kind in "mM"
  for i, label in enumerate(array if dates else array.tolist()):
    if _is_missing(label):
      raise InputError(
        f"label {i} is {label!r}, a missing value; give that image a label, or "
        "leave it out"
      )
    if isinstance(label, list | tuple | dict | set | np.ndarray):
      raise InputError(
        f"label {i} is a {type(label).__name__}; an image has one label, text "
        "or a number"
      )
    kind = _kind(label)
    if kind == "number" and isinstance(label, float) and label % 1 != 0:
      raise InputError(
        f"Unknown label type: {label!r} is a measurement, not the name of a "
        "class; use text or whole numbers"
      )
    first.setdefault(kind, label)
  if len(first) > 1:
    (one, x), (other, y) = list(first.items())[:2]
    raise InputError(
      f"labels must be of one kind: there are {x!r} ({one}) and {y!r} "
      f"({other}); make all of them text, or all of them numbers"
    )


def _kind(label) -> str:
  if isinstance(label, bool):
    return "boolean"
  if isinstance(label, numbers.Number):
    return "number"
  return {str: "text"}.get(type(label), type(label).__name__)


def _warn_of_column() -> None:
  """As scikit-learn does, in its words."""
  exceptions = sys.modules.get("sklearn.exceptions")
  kind = getattr(exceptions, "DataConversionWarning", UserWarning)
  text = "A column-vector y was passed when a 1d array was expected: labels "
  text += "[N, 1] were taken for [N]; labels.ravel() makes them so"
  warnings.warn(kind(text), stacklevel=5)
