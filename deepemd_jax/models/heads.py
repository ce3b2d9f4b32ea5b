"""The heads, functions that score the queries of an episode, by name.

A head is a function `(query_nodes, support_nodes, key, settings) -> logits`.
The nodes are [q, n, c] and [way, shot, n, c], and the logits are [q, way]. To
add one, write a function and add a line to `HEADS`, from which tables, figures
and legal values are made.
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
  """The settings for training the structured FC layer; see `sfc.fit`.

  Attributes:
    epochs: passes over the support images.
    learning_rate: learning rate of the class nodes.
    batch_size: support images per step.
    gradient: gradient through the EMD, "exact" or "flow".
  """

  epochs: int = 100
  learning_rate: float = 100.0
  batch_size: int = 4
  gradient: str = "flow"


@dataclasses.dataclass(frozen=True)
class HeadSettings:
  """The settings that the heads share.

  Attributes:
    solver: solver of the EMD; None is the best one for this platform.
    temperature: factor of the logits, a positive number.
    sfc: settings for class nodes of more than one shot.
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
    """The options of `matching.logits` and `sfc.fit`."""
    return {"solver": self.solver, "temperature": self.temperature}


def mean_prototypes(support_nodes: jax.Array) -> jax.Array:
  """Averages nodes over the shots: [way, shot, n, c] -> [way, n, c]."""
  return support_nodes.mean(1)


def sfc_prototypes(
  support_nodes: jax.Array, key: jax.Array, settings: SfcSettings, **options
) -> jax.Array:
  """Computes the class nodes of the structured FC layer, [way, n, c].

  Args:
    support_nodes: [way, shot, n, c].
    key: random key for the order in which the support images are visited.
    settings: settings of the training.
    **options: options of `matching.logits`.
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
  """Computes DeepEMD's logits. If there are several shots, the class nodes are
  those of the structured FC layer."""
  options = settings.matching | options
  if support_nodes.shape[1] == 1:
    class_nodes = mean_prototypes(support_nodes)
  else:
    class_nodes = sfc_prototypes(support_nodes, key, settings.sfc, **options)
  return matching.logits(query_nodes, class_nodes, **options)


def deepemd(query_nodes, support_nodes, key, settings):
  """Computes the logits of the paper's head."""
  return _deepemd(query_nodes, support_nodes, key, settings)


def deepemd_equal_weights(query_nodes, support_nodes, key, settings):
  """Computes DeepEMD's logits with equal weights, without cross-reference."""
  return _deepemd(query_nodes, support_nodes, key, settings, weights="equal")


def deepemd_l2(query_nodes, support_nodes, key, settings):
  """Computes DeepEMD's logits with squared distances as costs."""
  return _deepemd(query_nodes, support_nodes, key, settings, metric="l2")


def deepemd_sinkhorn(query_nodes, support_nodes, key, settings):
  """Computes DeepEMD's logits with an entropic solver."""
  solver = settings.sinkhorn
  return _deepemd(query_nodes, support_nodes, key, settings, solver=solver)


def deepemd_qp(query_nodes, support_nodes, key, settings):
  """Computes DeepEMD's logits with the paper's regularized program."""
  solver = settings.regularized_qp
  return _deepemd(query_nodes, support_nodes, key, settings, solver=solver)


def deepemd_pooled(query_nodes, support_nodes, key, settings):
  """Computes DeepEMD's logits plus half of the prototype's logits."""
  own = _deepemd(query_nodes, support_nodes, key, settings)
  classes = mean_prototypes(support_nodes)
  temperature = settings.temperature
  return own + 0.5 * matching.prototype_logits(
    query_nodes, classes, temperature
  )


def deepemd_mean(query_nodes, support_nodes, key, settings):
  """Computes DeepEMD's logits with mean support nodes, for any shots."""
  del key
  class_nodes = mean_prototypes(support_nodes)
  return matching.logits(query_nodes, class_nodes, **settings.matching)


def deepemd_nearest(query_nodes, support_nodes, key, settings):
  """Computes DeepEMD's logit of each class's most similar support image."""
  del key
  way, shot = support_nodes.shape[:2]
  each = support_nodes.reshape(way * shot, *support_nodes.shape[2:])
  logits = matching.logits(query_nodes, each, **settings.matching)
  return logits.reshape(-1, way, shot).max(-1)


def prototype(query_nodes, support_nodes, key, settings):
  """Computes the prototype baseline, the cosine of pooled descriptors."""
  del key, settings
  return matching.prototype_logits(query_nodes, mean_prototypes(support_nodes))


def chamfer(query_nodes, support_nodes, key, settings):
  """Computes the Chamfer baseline, which has no plan; see `chamfer_logits`."""
  del key, settings
  return matching.chamfer_logits(query_nodes, mean_prototypes(support_nodes))


def logistic_regression(query_nodes, support_nodes, key, settings):
  """Computes the baseline of a linear classifier of pooled descriptors, which
  is trained on the support."""
  del key, settings
  return logistic.logits(query_nodes, support_nodes)


@dataclasses.dataclass(frozen=True)
class Head:
  """A head that can be named in a config.

  Attributes:
    title: title for tables and figures.
    function: the head itself; see the docstring of the module.
    title_of_shots: title for several shots, if it differs.
    is_pooled: whether it compares pooled descriptors. Then it is tested with
      the encoder of the stage that suits it best on validation episodes, for a
      fair comparison.
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
  """Returns the three heads that are compared unless a config names others."""
  second = "deepemd_equal_weights" if shot == 1 else "deepemd_mean"
  return "deepemd", second, "prototype"


def title(name: str, shot: int = 1) -> str:
  """Returns the title of a head for tables and figures."""
  head = HEADS[name]
  return (shot > 1 and head.title_of_shots) or head.title


def bind(name: str, settings: HeadSettings) -> Scorer:
  """Binds the settings of the head `name`: (query, support, key) -> logits."""
  return functools.partial(HEADS[name].function, settings=settings)
