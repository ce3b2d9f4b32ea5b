"""DeepEMD as a classifier of nodes that another program has computed.

    maps = network(images)                        # [N, h, w, c], of any library
    classifier = NodeClassifier()
    classifier.fit(maps[:3], ["cat", "cat", "dog"])
    classifier.predict(maps[3:])

It needs no encoder of this package.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from deepemd_jax.emd.solvers import SOLVERS, make_solver
from deepemd_jax.errors import InputError
from deepemd_jax.inference import centering, class_nodes, estimator
from deepemd_jax.inference import labels as label_arrays
from deepemd_jax.models import heads
from deepemd_jax.models import nodes as node_functions

_SEED = 0
_CENTERS = "'support', 'none', or the nodes of other images"


class NodeClassifier(estimator.Estimator):
  """A classifier of nodes that learns from a few examples of each class.

  The nodes of an image are vectors of its regions. They are an array [n, c], or
  a feature map [h, w, c], whose cells are the nodes. Nodes are centered if that
  is asked for, and always scaled to length 1. Then they are matched as in
  `FewShotClassifier`.

  A match has n * m pairs, so few nodes are fast. 25 are usual. Average a larger
  feature map first.

  Attributes:
    classes_: [way], the sorted labels.
    class_nodes_: float32 [way, n, c], the nodes of the classes.
  """

  def __init__(self, *, center=None, solver=None) -> None:
    """Stores the settings, which `fit` checks.

    Args:
      center: the nodes whose common part is removed from all nodes, as in
        `inference.centering`: those of the examples ("support"), of other
        images (an array, as for `fit`), or of no images ("none"). None is
        "support" if there are at least five classes, otherwise "none".
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
    nodes = as_nodes(nodes)
    if not len(nodes):
      raise InputError("no nodes; give those of at least one image")
    classes, index = label_arrays.classes(labels, len(nodes))
    solver = self.solver
    if isinstance(solver, str):
      if solver not in SOLVERS:
        raise InputError(
          f"solver is {solver!r}; use one of {', '.join(SOLVERS)}"
        )
      solver = make_solver(solver)
    settings = heads.HeadSettings(solver=solver)
    self._heads = centering.adapt(settings)
    self._center = self._find_center(nodes, len(classes))
    self.class_nodes_ = class_nodes.fit(
      self._prepared(nodes), index, self._heads, _SEED
    )
    self.classes_ = classes
    return self

  def _find_center(self, nodes, count: int) -> centering.Center | None:
    given = self.center
    if given is None:
      given = "support" if count >= centering.FEWEST_CLASSES else "none"
    if isinstance(given, centering.Center):
      return given
    if isinstance(given, str):
      if given not in ("support", "none"):
        raise InputError(f"center is {given!r}; use one of {_CENTERS}")
      return centering.Center.of_support(nodes) if given == "support" else None
    others = as_nodes(given)
    if not len(others):
      raise InputError("center has no nodes; give those of at least one image")
    _require_channels(others, nodes.shape[-1])
    return centering.Center.of_nodes([others])

  def _prepared(self, nodes: np.ndarray) -> np.ndarray:
    if self._center is not None:
      nodes = self._center.scaled(nodes)
    return np.asarray(node_functions.unit(jnp.asarray(nodes)))

  def logits(self, nodes) -> np.ndarray:
    """Returns scores [N, way], columns as in `classes_`; larger is better.

    Args:
      nodes: numbers [N, n, c] or [N, h, w, c]. n may differ from that of the
        examples.

    Raises:
      InputError: the nodes are unsuitable.
    """
    if not hasattr(self, "class_nodes_"):
      raise estimator.not_fitted(type(self).__name__)
    nodes = as_nodes(nodes)
    if not len(nodes):
      return np.empty((0, len(self.classes_)))
    _require_channels(nodes, self.class_nodes_.shape[-1])
    return class_nodes.score(
      self._prepared(nodes), self.class_nodes_, self._heads
    )

  def match(self, nodes, label) -> "Match":
    """Matches the nodes [n, c] or [h, w, c] of one image with a class.

    Raises:
      InputError: the nodes are unsuitable, or there is no such class.
    """
    if not hasattr(self, "class_nodes_"):
      raise estimator.not_fitted(type(self).__name__)
    nodes = as_nodes(np.asarray(nodes)[None])
    _require_channels(nodes, self.class_nodes_.shape[-1])
    (found,) = np.nonzero(self.classes_ == label)
    if not len(found):
      raise InputError(
        f"no class {label!r}; use one of {', '.join(map(str, self.classes_))}"
      )
    own = self.class_nodes_[found]
    return Match(*class_nodes.match(self._prepared(nodes), own, self._heads))


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
  """The match of an image with a class.

  The logit is 12.5 / n times the sum of similarity * flow.

  Attributes:
    similarity: float64 [n, m], between nodes of the image and of the class.
    flow: float64 [n, m], the mass that is moved between them.
    weights: float64 [n], the weights of the nodes of the image.
    class_weights: float64 [m], the weights of the nodes of the class.
  """

  similarity: np.ndarray
  flow: np.ndarray
  weights: np.ndarray
  class_weights: np.ndarray


def as_nodes(given) -> np.ndarray:
  """Returns nodes float32 [N, n, c] of numbers [N, n, c] or [N, h, w, c].

  Raises:
    InputError: these are no such numbers, or some are not finite.
  """
  try:
    array = np.asarray(given)
  except (ValueError, TypeError, RuntimeError) as error:
    raise InputError(f"the nodes are no array of numbers: {error}") from error
  if array.dtype.kind not in "fiu" or array.ndim not in (3, 4):
    raise InputError(
      "nodes must be numbers [N, n, c] or feature maps [N, h, w, c], but have "
      f"the type {array.dtype} and the shape {list(array.shape)}"
    )
  cells = int(np.prod(array.shape[1:-1]))
  array = array.reshape(len(array), cells, array.shape[-1])
  if 0 in array.shape[1:]:
    raise InputError(f"the nodes are empty: their shape is {array.shape}")
  array = array.astype(np.float32)
  if not np.isfinite(array).all():
    row = int(np.argwhere(~np.isfinite(array))[0, 0])
    raise InputError(
      f"the nodes of image {row} are not finite (NaN or infinity)"
    )
  return array


def _require_channels(nodes: np.ndarray, channels: int) -> None:
  if nodes.shape[-1] != channels:
    raise InputError(
      f"these nodes have {nodes.shape[-1]} channels, but those of the examples "
      f"have {channels}; use the same encoder for both"
    )
