"""A backbone of one block of ResNet-12, and the command with this backbone.

    python -m tests.one_block ...           # like python -m deepemd_jax.main

The block has batch norm, a shortcut and a pool, as the whole network has. It
takes a third of the time to trace and to compile. It is for tests in which the
network itself does not matter.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from deepemd_jax import main
from deepemd_jax.models import backbone, resnet12

NAME = "one_block"
MODULE = "tests.one_block"
# The side of the patches that the block gets, and the channels of its maps.
SIDE, CHANNELS = 8, 16


def make(rngs, precision="float32"):
  return resnet12.Block(3 * SIDE**2, CHANNELS, precision=precision, rngs=rngs)


@jax.jit
def init(key):
  return resnet12.to_variables(make(nnx.Rngs(key)))


@functools.cache
def _abstract(precision):
  block = nnx.eval_shape(lambda: make(nnx.Rngs(0), precision))
  return nnx.split(block, nnx.Param, nnx.BatchStat)


def apply(variables, images, *, train, precision="float32"):
  """Maps images [..., N, H, W, 3] to [..., N, H // 16, W // 16, 16]."""
  graph, *states = _abstract(precision)
  states = [jax.tree.map(lambda x: x, state) for state in states]
  for state, name in zip(states, ("params", "batch_stats"), strict=True):
    values = jax.tree.map(jnp.asarray, variables[name])
    nnx.replace_by_pure_dict(state, values)
  block = nnx.merge(graph, *states, copy=True)
  *batch, height, width, colors = images.shape
  h, w = height // SIDE, width // SIDE
  patches = images.reshape(*batch, h, SIDE, w, SIDE, colors)
  patches = jnp.moveaxis(patches, -4, -3).reshape(*batch, h, w, -1)
  maps = block(patches, train=train).astype(jnp.float32)
  return maps, resnet12.to_variables(block)["batch_stats"]


@functools.cache
def create(*, precision="float32"):
  return backbone.Backbone(
    init=init,
    apply=functools.partial(apply, precision=precision),
    stride=2 * SIDE,
    channels=CHANNELS,
    image_size=32,
    mean=(125.3, 123.0, 113.9),
    std=(63.0, 62.1, 66.7),
  )


ENTRY = backbone.Entry("one block, for tests", f"{MODULE}:create")


def register(monkeypatch):
  """Adds this backbone to those that a config can name, until the test ends."""
  monkeypatch.setitem(backbone.BACKBONES, NAME, ENTRY)


if __name__ == "__main__":
  backbone.BACKBONES[NAME] = ENTRY
  main.entry()
