"""Makes views, the inputs of the network, for training and evaluation.

A `View` has the settings. From them the host draws boxes and flips, and the
device cuts the boxes out of squashed copies and normalizes the pixels.
`inference.crops` does the same on the host for single images of any size.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deepemd_jax.data import boxes
from deepemd_jax.data.crop_resize import (
  crop_resize,
  evaluation_images,
  large_side,
)
from deepemd_jax.data.image_set import ImageSet
from deepemd_jax.utils.random_streams import Stream, stream

__all__ = [
  "TrainingViews",
  "View",
  "crop_on_device",
  "crop_resize",
  "evaluation_boxes",
  "evaluation_side",
  "evaluation_view",
]


@dataclasses.dataclass(frozen=True)
class View:
  """The settings of views.

  Attributes:
    kind: "fcn", whose nodes are the cells of the whole image's feature map;
      "grid" or "sampling", whose nodes are crops in rows and columns or at
      random places.
    size: side in pixels of the network's input.
    whole_crop: the part of a whole image that is used at test time, "center" or
      "whole".
    scale: smallest and largest share of the area of a random crop.
    aspect: smallest and largest width / height of a random crop.
    flip: whether half of the random crops are mirrored.
    mean: gray levels (0 to 255) to subtract, for red, green and blue.
    std: gray levels to divide by, for red, green and blue.
    cells: the largest number of cells of "fcn" along a side; a larger feature
      map is averaged to this size. 0 keeps every map as it is.
    grid: number of cells of "grid" along a side, for each level.
    ratio: side of a crop of "grid" divided by the side of its cell, at test
      time.
    train_ratio: the range from which this ratio is drawn in training.
    patches: number of crops of "sampling" in training.
    test_patches: number of crops of "sampling" at test time.
    redraw: whether "sampling" draws new crops for every test episode.
    seed: seed of the crops at test time.
  """

  kind: str = "fcn"
  size: int = 84
  whole_crop: str = "center"
  scale: tuple[float, float] = (0.08, 1.0)
  aspect: tuple[float, float] = (0.75, 4 / 3)
  flip: bool = True
  mean: tuple[float, float, float] = (125.3, 123.0, 113.9)
  std: tuple[float, float, float] = (63.0, 62.1, 66.7)
  cells: int = 0
  grid: tuple[int, ...] = (2, 3)
  ratio: float = 2.0
  train_ratio: tuple[float, float] = (1.0, 3.0)
  patches: int = 9
  test_patches: int = 9
  redraw: bool = False
  seed: int = 0

  @property
  def is_whole(self) -> bool:
    """Whether the input at test time is whole images instead of crops."""
    return self.kind == "fcn"

  @property
  def crops_per_image(self) -> int:
    """The number of crops of an image at test time, 1 for whole images."""
    if self.kind == "grid":
      return sum(cells * cells for cells in self.grid)
    return self.test_patches if self.kind == "sampling" else 1

  @property
  def flip_probability(self) -> float:
    """The probability that a random crop is mirrored."""
    return 0.5 if self.flip else 0.0

  def normalize(self, images):
    """Converts gray levels [..., 3], of NumPy or JAX, to network input."""
    mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
    return (images - mean) / std

  def to_gray_levels(self, pixels: np.ndarray) -> np.ndarray:
    """Undoes `normalize`: float [..., 3] -> uint8 [..., 3]."""
    levels = pixels * np.array(self.std) + np.array(self.mean)
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class TrainingViews:
  """Random views of an image set, drawn on the host. They are picklable.

  Attributes:
    images: the images of the training split.
    view: the view settings.
    size: side in pixels of the network's input.
    of_episodes: True draws crops of the kind of `view`, for meta-training.
      "grid" and "sampling" then have one more axis, the crops, after the rows.
      False draws one random crop per image, for pre-training.
  """

  images: ImageSet
  view: View
  size: int
  of_episodes: bool = False

  def __call__(
    self, rng: np.random.Generator, rows: np.ndarray, local=slice(None)
  ) -> dict[str, np.ndarray]:
    """Draws views of `rows`, and reads the images of the local rows.

    Args:
      rng: the random generator. It draws for all rows, so that the draws do not
        depend on `local`.
      rows: int [...], rows of the image set.
      local: indices along the first axis of the rows that this process makes.

    Returns:
      {"images", "boxes", "flip"} for `crop_on_device`; each shape begins with
      that of `rows[local]`.
    """
    boxes_of_rows = self._boxes(rng, self.images.sizes[rows.ravel()])
    boxes_of_rows = boxes_of_rows.reshape(*rows.shape, *boxes_of_rows.shape[1:])
    flip = rng.random(boxes_of_rows.shape[:-1]) < self.view.flip_probability
    pixels, on_pixels = self.images.extract_crops(
      rows[local], boxes_of_rows[local], self.size
    )
    return {"images": pixels, "boxes": on_pixels, "flip": flip[local]}

  def _boxes(self, rng, sizes):
    """Draws boxes [N, 4] or [N, crops, 4] of images with the sizes [N, 2]."""
    view = self.view
    if not self.of_episodes or view.kind == "fcn":
      return boxes.random_resized_crop(
        rng, sizes, scale=view.scale, ratio=view.aspect
      )
    if view.kind == "grid":
      ratios = rng.uniform(*view.train_ratio, (len(sizes), len(view.grid)))
      return boxes.grid_boxes(sizes, view.grid, ratios)
    return random_crops(rng, sizes, view.patches, view)


def random_crops(
  rng: np.random.Generator, sizes: np.ndarray, crops: int, view: View
) -> np.ndarray:
  """Draws several boxes per image: sizes [N, 2] -> [N, crops, 4], in pixels."""
  drawn = boxes.random_resized_crop(
    rng, sizes.repeat(crops, 0), scale=view.scale, ratio=view.aspect
  )
  return drawn.reshape(len(sizes), crops, 4)


def evaluation_boxes(
  view: View, images: ImageSet, rows: np.ndarray, episode: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the crops of "grid" and "sampling" at test time.

  The crops of an image are a function of (seed, row), so the image is encoded
  only once. With an episode, "sampling" draws new crops for each episode.

  Args:
    view: the settings, of kind "grid" or "sampling".
    images: the image set.
    rows: int [N], rows of the image set.
    episode: number of the episode, or None.

  Returns:
    Boxes [N, crops, 4] in pixels of the originals; and bool [N, crops], whether
    each crop is mirrored.
  """
  sizes = images.sizes[rows]
  if view.kind == "grid":
    ratios = np.full((len(sizes), len(view.grid)), view.ratio)
    grid = boxes.grid_boxes(sizes, view.grid, ratios)
    return grid, np.zeros(grid.shape[:2], bool)
  crops, flips = [], []
  for row, size in zip(rows, sizes, strict=True):
    again = [] if episode is None else [episode]
    rng = stream(view.seed, Stream.TEST_CROPS, row, *again)
    crops.append(random_crops(rng, size[None], view.test_patches, view))
    flips.append(rng.random(crops[-1].shape[1]) < view.flip_probability)
  return np.concatenate(crops), np.stack(flips)


def crop_on_device(view: View, size: int, drawn: dict) -> jax.Array:
  """Cuts and normalizes the crops that `TrainingViews` has drawn.

  Args:
    view: the settings of the normalization.
    size: side of the result in pixels.
    drawn: "images" uint8 [..., S, S, 3], "boxes" [..., 4] in pixels of these
      images, "flip" bool [...]. Boxes and flips may have one more axis than the
      images, for several crops of each image.

  Returns:
    Network input, float32 [..., size, size, 3].
  """
  images, crop_boxes, flip = drawn["images"], drawn["boxes"], drawn["flip"]
  if flip.ndim > images.ndim - 3:
    images = jnp.broadcast_to(
      images[..., None, :, :, :], (*flip.shape, *images.shape[-3:])
    )
  pixels = crop_resize(
    images.reshape(-1, *images.shape[-3:]),
    crop_boxes.reshape(-1, 4),
    flip.reshape(-1),
    size=size,
  )
  return view.normalize(pixels.reshape(*flip.shape, size, size, 3))


def evaluation_side(view: View) -> int:
  """Returns the side of whole images that `evaluation_view` need not resize."""
  return view.size if view.whole_crop == "whole" else large_side(view.size)


def evaluation_view(view: View, images: jax.Array | np.ndarray) -> jax.Array:
  """Makes the network input of whole images at test time, without randomness.

  Args:
    view: the settings of the view.
    images: uint8 [N, H, W, 3].

  Returns:
    Network input, float32 [N, size, size, 3].
  """
  if view.whole_crop == "center":
    return view.normalize(evaluation_images(images, view.size))
  count, height, width = images.shape[:3]
  whole = jnp.tile(jnp.array([0.0, 0.0, width, height]), (count, 1))
  upright = jnp.zeros(count, bool)
  return view.normalize(crop_resize(images, whole, upright, size=view.size))
