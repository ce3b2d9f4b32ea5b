"""Checks the labels that users pass, so that no two classes are merged.

NumPy converts a list that mixes text and numbers to text. Then "1" and 1 would
be one class, and a missing label would be a class called nan.
"""

import numbers
import sys
import warnings
from collections.abc import Sequence

import numpy as np

from deepemd_jax.data.names import refuse_twins
from deepemd_jax.errors import InputError


def classes(labels: Sequence, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the classes of labels.

  Args:
    labels: text, whole numbers, booleans, or other values that can be sorted.
    count: number of images.

  Returns:
    The sorted classes, [way]; and the index of each image's class, int [count].

  Raises:
    InputError: `as_array` refuses the labels, they cannot be sorted, or two
      look the same.
  """
  array = as_array(labels, count)
  try:
    found, index = np.unique(array, return_inverse=True)
  except TypeError as error:
    raise InputError(f"labels must be of one kind: {error}") from error
  refuse_twins((x for x in found.tolist() if isinstance(x, str)), "labels")
  return found, index


def as_array(labels: Sequence, count: int) -> np.ndarray:
  """Returns labels as an array [count].

  Raises:
    InputError: there are not `count` labels, a label is missing or a fraction,
      or they have different kinds.
  """
  is_array = hasattr(labels, "dtype") or hasattr(labels, "__array__")
  # `asarray` would drop the mask of a masked array.
  array = np.asanyarray(labels) if is_array else _listed(labels)
  if array.ndim == 2 and array.shape[1] == 1:
    _warn_of_column()
    array = array[:, 0]
  if array.ndim != 1 or len(array) != count:
    raise InputError(
      f"{count} images need {count} labels, but labels has shape "
      f"{list(array.shape)}"
    )
  _check_kinds(array)
  if is_array:
    return array
  made = np.asarray(array.tolist())
  # NumPy's types cannot represent some numbers and characters.
  same = made.shape == array.shape and made.tolist() == array.tolist()
  return made if same else array


def _listed(labels) -> np.ndarray:
  """Returns a list as an array of objects."""
  try:
    items = [] if isinstance(labels, str | bytes) else list(labels)
  except TypeError as error:
    raise InputError(
      f"labels must be a list, one per image, not a {type(labels).__name__}"
    ) from error
  array = np.empty(len(items), object)
  for i, item in enumerate(items):
    array[i] = item.item() if isinstance(item, np.generic) else item
  return array


def _is_missing(label) -> bool:
  try:
    return label is None or bool(label != label)
  except (TypeError, ValueError):  # NA of pandas is neither true nor false
    return True


def _check_kinds(array: np.ndarray) -> None:
  """Refuses labels that are missing, no names, or of different kinds."""
  first: dict[str, object] = {}
  # `tolist` would convert dates in nanoseconds to numbers.
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
  """Warns about labels [N, 1] with the words of scikit-learn."""
  exceptions = sys.modules.get("sklearn.exceptions")
  kind = getattr(exceptions, "DataConversionWarning", UserWarning)
  text = "A column-vector y was passed when a 1d array was expected: labels "
  text += "[N, 1] are used as [N]; pass labels.ravel() instead"
  warnings.warn(kind(text), stacklevel=5)
