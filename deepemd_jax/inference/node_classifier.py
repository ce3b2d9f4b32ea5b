"""DeepEMD as a classifier of nodes that another program has computed.

    maps = network(images)  # [N, h, w, c], of any library
    classifier = NodeClassifier()
    classifier.fit(maps[:3], ["cat", "cat", "dog"])
    classifier.predict(maps[3:])

It needs no encoder of this package.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from deepemd_jax.errors import InputError
from deepemd_jax.inference import centering, choices, class_nodes, estimator
from deepemd_jax.inference import labels as label_arrays
from deepemd_jax.models import heads
from deepemd_jax.models import nodes as node_functions

_SEED = 0
_SMALL = 1e-30  # a node that is smaller counts as zeros


class NodeClassifier(estimator.Estimator):
  """A classifier of nodes that learns from a few examples of each class.

  The nodes of an image are vectors of its regions. They are an array [n, c], or
  a feature map [h, w, c], whose cells are the nodes: cell (row, column) is node
  row * w + column. Channels come last; PyTorch has them second. Nodes are
  centered as `center` says. Then each is scaled to length 1.

  A match of n nodes with m nodes has n * m pairs, so it is fast if there are
  few nodes. 25 are usual. Average a larger feature map first.

  If each class has one example, its nodes are matched directly. Otherwise, the
  class nodes are fitted to all examples (the structured FC layer,
  `models.sfc`). Examples of smaller classes are repeated, so that all classes
  weigh the same.

  Attributes:
    classes_: [way], the sorted labels.
    class_nodes_: float32 [way, n, c], the nodes of the classes.
  """

  def __init__(self, *, center=None, solver=None) -> None:
    """Stores the settings, which `fit` checks.

    Args:
      center: the nodes by which all nodes are centered; see
        `inference.centering`. "support" means those of the examples, an array
        as for `fit` means those of other images, and "none" means no centering.
        None means "support" if there are at least five classes, otherwise
        "none".
      solver: a name ("network_simplex", "interior_point", ...), or an EMD
        solver; None is the best one for this platform.
    """
    self.center = center
    self.solver = solver

  def fit(self, nodes, labels):
    """Learns the classes.

    Args:
      nodes: numbers [N, n, c] or [N, h, w, c], the nodes of at least one
        example of each class.
      labels: one label per example: text, whole numbers or other sortable
        values, all of one kind.

    Returns:
      The classifier.

    Raises:
      InputError: the settings, the nodes or the labels are unsuitable.
    """
    nodes = _as_nodes(nodes)
    if not len(nodes):
      raise InputError("no nodes; give those of at least one image")
    classes, index = label_arrays.classes(labels, len(nodes))
    solver = choices.as_solver(self.solver)
    with self._as_before_on_errors():
      self._heads = centering.adapt(heads.HeadSettings(solver=solver))
      self._center = _find_center(self.center, nodes, len(classes))
      self.class_nodes_ = class_nodes.fit(
        self._prepared(nodes), index, self._heads, _SEED
      )
      self.classes_ = classes
    return self

  def _prepared(self, nodes: np.ndarray) -> np.ndarray:
    if self._center is not None:
      nodes = self._center.scaled(nodes)
    # The squares of very large or very small numbers are not finite, or 0.
    largest = abs(nodes).max(-1, keepdims=True)
    nodes = nodes / np.maximum(largest, _SMALL)
    return np.asarray(node_functions.unit(jnp.asarray(nodes)))

  def logits(self, nodes) -> np.ndarray:
    """Returns scores [N, way], columns as in `classes_`; larger is better.

    Args:
      nodes: numbers [N, n, c] or [N, h, w, c]; for one image, `nodes[None]`. n
        may differ from that of the examples.

    Raises:
      InputError: the nodes are unsuitable.
    """
    self._check_fitted()
    nodes = _as_nodes(nodes)
    if not len(nodes):
      return np.empty((0, len(self.classes_)))
    _require_channels(nodes, self.class_nodes_.shape[-1])
    return class_nodes.score(
      self._prepared(nodes), self.class_nodes_, self._heads
    )

  def match(self, nodes, label) -> "Match":
    """Matches one image with a class.

    Args:
      nodes: numbers [n, c] or [h, w, c], the nodes of the image.
      label: the label of the class.

    Raises:
      InputError: the nodes are unsuitable, or there is no such class.
    """
    self._check_fitted()
    nodes = _as_nodes(nodes, one=True)
    _require_channels(nodes, self.class_nodes_.shape[-1])
    own = self.class_nodes_[[self._number_of(label)]]
    return Match(*class_nodes.match(self._prepared(nodes), own, self._heads))


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
  """The match of an image with a class.

  The logit is 12.5 / n times the sum of similarity * flow.

  Attributes:
    similarity: float64 [n, m], the cosine between nodes of the image and of the
      class, after the mean of its channels is subtracted from each node.
    flow: float64 [n, m], the mass that is moved between them. It sums to the
      smaller one of n and m.
    weights: float64 [n], the weights of the nodes of the image, which sum to n.
    class_weights: float64 [m], the weights of the nodes of the class, which sum
      to m.
  """

  similarity: np.ndarray
  flow: np.ndarray
  weights: np.ndarray
  class_weights: np.ndarray


def _find_center(given, nodes, classes: int) -> centering.Center | None:
  """Returns the center for the argument `center`, or None for no centering."""
  if given is None:
    given = centering.usual(classes)
  if isinstance(given, str):
    if given == "none":
      return None
    if given != "support":
      raise InputError(
        f"center is {given!r}; use 'support', 'none', or the nodes of other "
        "images"
      )
    others = nodes
  else:
    others = _as_nodes(given, "center: the nodes")
  if not len(others):
    raise InputError("center has no nodes; give those of at least one image")
  _require_channels(others, nodes.shape[-1], "the nodes of center")
  center = centering.Center.of_nodes([others])
  if (others == others[:1, :1]).all():
    raise InputError(
      "the nodes to center by are all the same; give the nodes of several "
      "images, or use center='none'"
    )
  return center


def _as_nodes(given, name: str = "nodes", *, one: bool = False) -> np.ndarray:
  """Returns nodes float32 [N, n, c] of numbers [N, n, c] or [N, h, w, c].

  Args:
    given: the numbers.
    name: how a message calls them.
    one: whether they are those of one image, without N.

  Raises:
    InputError: the numbers have another shape, or some are not finite.
  """
  try:
    array = np.asarray(given)
    if array.dtype.name == "bfloat16":
      array = array.astype(np.float32)
  except (ValueError, TypeError, RuntimeError) as error:
    raise InputError(f"{name} are not an array of numbers: {error}") from error
  shape = list(array.shape)
  if one:
    array = array[None]
  if array.shape == (0,):
    array = array.reshape(0, 1, 1)
  if array.dtype.kind not in "fiu" or array.ndim not in (3, 4):
    shapes = "[n, c] or a feature map [h, w, c]"
    if not one:
      shapes = "[N, n, c] or feature maps [N, h, w, c]"
    raise InputError(
      f"{name} must be numbers {shapes}, but have the type {array.dtype} and "
      f"the shape {shape}"
    )
  if 0 in array.shape[1:]:
    raise InputError(f"{name} are empty: their shape is {shape}")
  cells = int(np.prod(array.shape[1:-1]))
  array = array.reshape(len(array), cells, array.shape[-1])
  with np.errstate(over="ignore"):
    array = array.astype(np.float32)
  if not np.isfinite(array).all():
    row = int(np.argwhere(~np.isfinite(array))[0, 0])
    where = "" if one else f" of image {row}"
    raise InputError(
      f"{name}{where} are not finite numbers in float32 (NaN, infinity or too "
      "large)"
    )
  return array


def _require_channels(nodes, channels: int, name: str = "these nodes") -> None:
  if nodes.shape[-1] != channels:
    raise InputError(
      f"{name} have {nodes.shape[-1]} channels, but those of the examples have "
      f"{channels}; use the same encoder for both"
    )
