"""A linear map behind a frozen backbone: fewer channels, which tell more.

`training.projection` learns it through the EMD. Together the two are a backbone
like any other, so whatever takes one takes this.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from deepemd_jax.models.backbone import Backbone, Variables


@functools.cache
def project(backbone: Backbone, channels: int) -> Backbone:
  """The backbone with a linear map of every cell behind it.

  Its variables hold the backbone's own, so it comes without published weights.
  Nodes get length 1, as they had while the map was learned.

  Args:
    backbone: from images to maps.
    channels: of the new maps.
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
  """Variables of the whole.

  Args:
    variables: of the backbone.
    projection: {"kernel": [c, channels], "bias": [channels]}.
  """
  params = {"backbone": variables["params"], "projection": projection}
  return {"params": params, "batch_stats": variables["batch_stats"]}


def linear(nodes: jax.Array, projection) -> jax.Array:
  """Nodes or maps [..., c] -> [..., channels]."""
  product = jnp.matmul(
    nodes, projection["kernel"], precision=jax.lax.Precision.HIGHEST
  )
  return product + projection["bias"]
