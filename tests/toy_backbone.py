"""A second backbone with two convolutions and no batch norm.

It compiles fast. It shows if the program assumes something that only holds for
ResNet-12.
"""

import functools

import jax
import jax.numpy as jnp

from deepemd_jax.models.backbone import BACKBONES, Backbone, Entry

NAME = "toy"
STRIDE = 8
CHANNELS = 6


def init(key):
  """Makes fresh variables; there are no running statistics."""
  first, second = jax.random.split(key)
  shapes = (STRIDE, STRIDE, 3, 4), (2, 2, 4, CHANNELS)
  kernels = [
    jax.random.normal(key, shape, jnp.float32)
    / (shape[0] * shape[1] * shape[2]) ** 0.5
    for key, shape in zip((first, second), shapes, strict=True)
  ]
  params = {"patches": {"kernel": kernels[0]}, "mix": {"kernel": kernels[1]}}
  return {"params": params, "batch_stats": {}}


def apply(variables, images, *, train):
  """Maps images [..., N, H, W, 3] to [..., N, H // 8, W // 8, 6]."""
  del train
  params = variables["params"]
  x = images.reshape(-1, *images.shape[-3:])
  x = _convolve(x, params["patches"]["kernel"], STRIDE)
  x = jax.nn.leaky_relu(x, 0.1)
  x = _convolve(x, params["mix"]["kernel"], 1)
  maps = x.reshape(*images.shape[:-3], *x.shape[1:])
  return maps, variables["batch_stats"]


def _convolve(images, kernel, stride):
  return jax.lax.conv_general_dilated(
    images,
    kernel,
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


@functools.cache
def create(**settings):
  """Returns the backbone, which takes no settings."""
  assert not settings
  return Backbone(
    init=jax.jit(init),
    apply=apply,
    stride=STRIDE,
    channels=CHANNELS,
    image_size=16,
    mean=(120.0, 120.0, 120.0),
    std=(60.0, 60.0, 60.0),
  )


def register(monkeypatch):
  """Adds this backbone to those that a config can name, until the test ends."""
  entry = Entry("two layers, for tests", "toy_backbone:create")
  monkeypatch.setitem(BACKBONES, NAME, entry)


def variables(seed=0):
  """Returns fresh variables as NumPy arrays, as a checkpoint has them."""
  return jax.tree.map(jnp.asarray, create().init(jax.random.key(seed)))
