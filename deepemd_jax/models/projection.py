"""A linear map behind a frozen backbone, to fewer and more useful channels.

`training.projection` learns the map through the EMD. The backbone and the map
together are a `Backbone`, and can be used wherever one can.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from deepemd_jax.models.backbone import Backbone, Variables


@functools.cache
def project(backbone: Backbone, channels: int) -> Backbone:
  """Returns the backbone followed by a linear map of each cell.

  Its variables contain those of the backbone, so it has no published weights.
  Nodes get length 1, as they had while the map was learned.

  Args:
    backbone: the backbone from images to maps.
    channels: the number of channels of the new maps.
  """

  def init(key) -> Variables:
    own, other = jax.random.split(key)
    inner = backbone.init(own)
    shape = (backbone.channels, channels)
    kernel = jax.random.normal(other, shape, jnp.float32)
    kernel = kernel / backbone.channels**0.5
    bias = jnp.zeros(channels, jnp.float32)
    return join(inner, {"kernel": kernel, "bias": bias})

  def apply(variables, images, *, train):
    params = variables["params"]
    inner = {
      "params": params["backbone"],
      "batch_stats": variables["batch_stats"],
    }
    maps, stats = backbone.apply(inner, images, train=train)
    return linear(maps, params["projection"]), stats

  return dataclasses.replace(
    backbone,
    init=init,
    apply=apply,
    channels=channels,
    weights=None,
    unit_nodes=True,
  )


def join(variables: Variables, projection) -> Variables:
  """Joins the variables of a backbone and those of a linear map.

  Args:
    variables: the variables of the backbone.
    projection: {"kernel": [c, channels], "bias": [channels]}.
  """
  params = {"backbone": variables["params"], "projection": projection}
  return {"params": params, "batch_stats": variables["batch_stats"]}


def linear(nodes: jax.Array, projection) -> jax.Array:
  """Applies the linear map to nodes or maps: [..., c] -> [..., channels]."""
  product = jnp.matmul(
    nodes, projection["kernel"], precision=jax.lax.Precision.HIGHEST
  )
  return product + projection["bias"]
