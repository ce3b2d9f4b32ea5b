"""The heads: ways to score the queries of an episode, by name.

A head is a function `(query_nodes, support_nodes, key, settings) -> logits`:
[q, n, c] and [way, shot, n, c] to [q, way]. To add one, write a function and
add a line to `HEADS`. Tables, figures and legal values follow from there.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from deepemd_jax.models import logistic, matching, sfc

# (query_nodes, support_nodes, key) -> logits, with its settings bound.
Scorer = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class SfcSettings:
  """How the structured FC layer is trained; see `sfc.fit`.

  Attributes:
    epochs: over the support images.
    learning_rate: of gradient descent on the class nodes.
    batch_size: support images a step.
    gradient: "exact" or "flow".
  """

  epochs: int = 100
  learning_rate: float = 100.0
  batch_size: int = 4
  gradient: str = "flow"


@dataclasses.dataclass(frozen=True)
class HeadSettings:
  """What the heads share.

  Attributes:
    solver: of the EMD; None is the best one for this platform.
    temperature: scale of the logits.
    sfc: for class nodes of more than one shot.
    sinkhorn: solver of the head `deepemd_sinkhorn`.
    regularized_qp: solver of the head `deepemd_qp`.
  """

  solver: Any = None
  temperature: float = matching.TEMPERATURE
  sfc: SfcSettings = SfcSettings()
  sinkhorn: Any = None
  regularized_qp: Any = None

  @property
  def matching(self) -> dict[str, Any]:
    """Options of `matching.logits` and `sfc.fit`."""
    return {"solver": self.solver, "temperature": self.temperature}


def mean_prototypes(support_nodes: jax.Array) -> jax.Array:
  """Class nodes without training, the mean over the shots: [way, shot, n, c] ->
  [way, n, c]."""
  return support_nodes.mean(1)


def sfc_prototypes(
  support_nodes: jax.Array, key: jax.Array, settings: SfcSettings, **options
) -> jax.Array:
  """Class nodes of the structured FC layer, [way, n, c].

  Args:
    support_nodes: [way, shot, n, c].
    key: draws the order in which the support images are visited.
    settings: of the training.
    **options: of `matching.logits`.
  """
  way, shot = support_nodes.shape[:2]
  return sfc.fit(
    support_nodes,
    order=sfc.random_order(key, way * shot, settings.epochs),
    learning_rate=settings.learning_rate,
    batch_size=settings.batch_size,
    gradient=settings.gradient,
    **options,
  )


def _deepemd(query_nodes, support_nodes, key, settings, **options):
  """DeepEMD; with several shots, on class nodes of the structured FC layer."""
  options = settings.matching | options
  if support_nodes.shape[1] == 1:
    class_nodes = mean_prototypes(support_nodes)
  else:
    class_nodes = sfc_prototypes(support_nodes, key, settings.sfc, **options)
  return matching.logits(query_nodes, class_nodes, **options)


def deepemd(query_nodes, support_nodes, key, settings):
  """The paper's head."""
  return _deepemd(query_nodes, support_nodes, key, settings)


def deepemd_equal_weights(query_nodes, support_nodes, key, settings):
  """The same without the cross-reference mechanism: equal weights."""
  return _deepemd(query_nodes, support_nodes, key, settings, weights="equal")


def deepemd_l2(query_nodes, support_nodes, key, settings):
  """The same with squared distances for costs."""
  return _deepemd(query_nodes, support_nodes, key, settings, metric="l2")


def deepemd_sinkhorn(query_nodes, support_nodes, key, settings):
  """The same with an entropic solver."""
  solver = settings.sinkhorn
  return _deepemd(query_nodes, support_nodes, key, settings, solver=solver)


def deepemd_qp(query_nodes, support_nodes, key, settings):
  """The same with the paper's regularized quadratic program."""
  solver = settings.regularized_qp
  return _deepemd(query_nodes, support_nodes, key, settings, solver=solver)


def deepemd_pooled(query_nodes, support_nodes, key, settings):
  """The paper's head, plus half of what the prototype says."""
  own = _deepemd(query_nodes, support_nodes, key, settings)
  classes = mean_prototypes(support_nodes)
  temperature = settings.temperature
  return own + 0.5 * matching.prototype_logits(
    query_nodes, classes, temperature
  )


def deepemd_mean(query_nodes, support_nodes, key, settings):
  """The paper's head on the mean of the support nodes, whatever the shots."""
  del key
  class_nodes = mean_prototypes(support_nodes)
  return matching.logits(query_nodes, class_nodes, **settings.matching)


def deepemd_nearest(query_nodes, support_nodes, key, settings):
  """The logit of the nearest shot: the support image that is most alike."""
  del key
  way, shot = support_nodes.shape[:2]
  each = support_nodes.reshape(way * shot, *support_nodes.shape[2:])
  logits = matching.logits(query_nodes, each, **settings.matching)
  return logits.reshape(-1, way, shot).max(-1)


def prototype(query_nodes, support_nodes, key, settings):
  """The baseline: cosine of pooled descriptors."""
  del key, settings
  return matching.prototype_logits(query_nodes, mean_prototypes(support_nodes))


def chamfer(query_nodes, support_nodes, key, settings):
  """The baseline without a plan: each node takes its nearest counterpart."""
  del key, settings
  return matching.chamfer_logits(query_nodes, mean_prototypes(support_nodes))


def logistic_regression(query_nodes, support_nodes, key, settings):
  """The baseline that is trained on the support: a linear classifier of pooled
  descriptors."""
  del key, settings
  return logistic.logits(query_nodes, support_nodes)


@dataclasses.dataclass(frozen=True)
class Head:
  """A head that can be named in a config.

  Attributes:
    title: for tables and figures.
    function: see the module's docstring.
    title_of_shots: with several shots, if that is another one.
    is_pooled: it compares pooled descriptors, so it is tested with whichever
      stage's encoder suits those best on validation episodes, as a fair rival.
  """

  title: str
  function: Callable
  title_of_shots: str = ""
  is_pooled: bool = False


HEADS = {
  "deepemd": Head("DeepEMD", deepemd, "DeepEMD, SFC"),
  "deepemd_equal_weights": Head(
    "DeepEMD, equal weights", deepemd_equal_weights
  ),
  "deepemd_l2": Head("DeepEMD, l2", deepemd_l2),
  "deepemd_sinkhorn": Head("DeepEMD, Sinkhorn", deepemd_sinkhorn),
  "deepemd_qp": Head("DeepEMD, QP", deepemd_qp),
  "deepemd_pooled": Head(
    "DeepEMD + pooled", deepemd_pooled, "DeepEMD, SFC + pooled"
  ),
  "deepemd_mean": Head("DeepEMD, mean nodes", deepemd_mean),
  "deepemd_nearest": Head("DeepEMD, nearest shot", deepemd_nearest),
  "prototype": Head("Prototype (pooled, cosine)", prototype, is_pooled=True),
  "logistic_regression": Head(
    "Logistic regression (pooled)", logistic_regression, is_pooled=True
  ),
  "chamfer": Head("Chamfer (nearest node)", chamfer),
}


def usual(shot: int) -> tuple[str, ...]:
  """The three heads that are compared unless a config names others."""
  second = "deepemd_equal_weights" if shot == 1 else "deepemd_mean"
  return "deepemd", second, "prototype"


def title(name: str, shot: int = 1) -> str:
  """A head's name for people."""
  head = HEADS[name]
  return (shot > 1 and head.title_of_shots) or head.title


def bind(name: str, settings: HeadSettings) -> Scorer:
  """The head `name` with its settings: (query, support, key) -> logits."""
  return functools.partial(HEADS[name].function, settings=settings)
