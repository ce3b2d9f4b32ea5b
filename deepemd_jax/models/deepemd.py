"""DeepEMD as one Flax module: backbone, cross-reference weights, EMD layer."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from deepemd_jax.models import matching, nodes, resnet12


class DeepEMD(nnx.Module):
  """A module that scores query images against the classes of their episode.

      model = DeepEMD(rngs=nnx.Rngs(0))
      logits = model(support, query)      # [way, n_query, way]

  For trained variables, use `DeepEMD(resnet12.to_module(variables))`.

  The gradient through the EMD layer reaches the backbone in two ways: through
  the cost and through the weights.

  Attributes:
    encoder: the module from images to maps; by default a ResNet-12.

  References:
    Zhang, Cai, Lin, Shen, "DeepEMD", CVPR 2020.
  """

  def __init__(
    self,
    encoder: nnx.Module | None = None,
    *,
    width: float = 1.0,
    precision: str = "float32",
    solver=None,
    temperature: float = matching.TEMPERATURE,
    weights: str = "cross_reference",
    gradient: str = "exact",
    pyramid: Sequence[int] = (),
    rngs: nnx.Rngs | None = None,
  ) -> None:
    """Makes the module.

    Args:
      encoder: a module from images [N, H, W, 3] to maps [N, h, w, c], called
        with `train=`. None makes a ResNet-12 from `rngs`.
      width: width of the ResNet-12, as a multiple of the published channels.
      precision: precision of the ResNet-12, "float32" or "bfloat16"; weights,
        costs, EMD and logits are always float32.
      solver: solver of the EMD; None is the best one for this platform.
      temperature: factor of the logits, a positive number.
      weights: weights of the nodes, "cross_reference" or "equal".
      gradient: gradient through the EMD, "exact" or "flow"; see
        `matching.logits`.
      pyramid: levels of the pyramid, for whole images only; see
        `nodes.pyramid`.
      rngs: random streams; required if encoder is None.
    """
    if encoder is None:
      if rngs is None:
        raise ValueError("DeepEMD needs an encoder, or rngs to make one")
      encoder = resnet12.ResNet12(
        resnet12.channels_for(width), precision=precision, rngs=rngs
      )
    self.encoder = encoder
    self.solver = solver
    self.temperature = temperature
    self.weights = weights
    self.gradient = gradient
    self.pyramid = tuple(pyramid)

  def __call__(
    self, support: jax.Array, query: jax.Array, *, train: bool = False
  ) -> jax.Array:
    """Computes the logits of one episode.

    Args:
      support: [way, shot, H, W, 3] normalized images, whose nodes are the cells
        of their maps (FCN), or [way, shot, crops, H, W, 3], where each crop is
        a node (Grid, Sampling).
      query: [way, n_query, ...] of the same kind. The leading axis is the true
        class. The module does not use it, so that images of unknown class may
        be in any order.
      train: whether batch norm uses the statistics of all images of the episode
        together, as in the original, and updates the running statistics.

    Returns:
      The logits [way, n_query, way]. The last axis is the class that is
      compared.
    """
    images = _concatenate(support, query)
    crops = support.ndim == 6
    encode = functools.partial(self._apply, train=train)
    encoded, _ = _nodes(encode, images, crops, self.pyramid)
    counts = support.shape[:2], query.shape[:2]
    return _logits(encoded, *counts, **self._options())

  def episodes(
    self, support: jax.Array, query: jax.Array, *, train: bool = False
  ) -> jax.Array:
    """Computes the logits of several episodes, [e, way, n_query, way].

    The arguments are those of `__call__` with a leading axis, [e, ...]. The
    result is that of `jax.vmap`, but the encoder gets all images together, as
    several batches [e, N, H, W, 3], which it must support (see
    `resnet12.ResNet12`). With `train`, each running statistic becomes [e, C],
    one for each episode.
    """
    logits, _ = episode_logits(
      functools.partial(self._apply, train=train),
      support,
      query,
      crops=support.ndim == 7,
      pyramid=self.pyramid,
      **self._options(),
    )
    return logits

  def _apply(self, images: jax.Array, train: bool):
    return self.encoder(images, train=train), None

  def _options(self) -> dict:
    return {
      "solver": self.solver,
      "temperature": self.temperature,
      "weights": self.weights,
      "gradient": self.gradient,
    }


def episode_logits(
  apply: Callable,
  support: jax.Array,
  query: jax.Array,
  *,
  crops: bool,
  pyramid: Sequence[int] = (),
  **options,
) -> tuple[jax.Array, Any]:
  """Computes DeepEMD's logits of several episodes, with any backbone.

  Args:
    apply: maps images [e, N, H, W, 3] to (maps [e, N, h, w, c], state). It must
      treat each of the e episodes as a batch of its own.
    support: the normalized support images, [e, way, shot, H, W, 3]; with
      `crops`, [e, way, shot, crops, H, W, 3].
    query: the query images, [e, way, n_query, ...], of the same kind.
    crops: if True, each crop is a node; if False, each cell of a map is.
    pyramid: the levels of the pyramid; see `nodes.pyramid`.
    **options: see `matching.logits`.

  Returns:
    The logits [e, way, n_query, way], whose last axis is the class that is
    compared, and the state that `apply` returned.
  """
  images = jax.vmap(_concatenate)(support, query)
  encoded, state = _nodes(apply, images, crops, pyramid)
  counts = support.shape[1:3], query.shape[1:3]
  logits = jax.vmap(lambda own: _logits(own, *counts, **options))(encoded)
  return logits, state


def _nodes(apply: Callable, images: jax.Array, crops: bool, pyramid):
  """Returns the nodes and the state of images [..., N, H, W, 3] or, with crops,
  [..., N, crops, H, W, 3]."""
  if not crops:
    maps, state = apply(images)
    return nodes.pyramid(maps, pyramid), state
  *batch, count, each = images.shape[:-3]
  flat = images.reshape(*batch, count * each, *images.shape[-3:])
  maps, state = apply(flat)
  maps = maps.reshape(*batch, count, each, *maps.shape[-3:])
  return nodes.from_crops(maps), state


def _logits(encoded: jax.Array, support, query, **options) -> jax.Array:
  """Computes the logits of nodes [way * shot + way * n_query, n, c]; support is
  (way, shot), and query is (way, n_query)."""
  way, shot = support
  n, c = encoded.shape[1:]
  class_nodes = encoded[: way * shot].reshape(way, shot, n, c).mean(1)
  scores = matching.logits(encoded[way * shot :], class_nodes, **options)
  return scores.reshape(*query, way)


def _concatenate(support: jax.Array, query: jax.Array) -> jax.Array:
  """Joins all images of an episode to [way * shot + way * n_query, ...]."""
  if query.shape[2:] != support.shape[2:]:
    raise ValueError(
      f"support images are {support.shape[2:]}, query images "
      f"{query.shape[2:]}; resize them to one size"
    )
  images = [x.reshape(-1, *x.shape[2:]) for x in (support, query)]
  return jnp.concatenate(images)
