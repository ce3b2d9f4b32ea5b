"""Views: what the network sees of an image, in training and in evaluation.

A `View` says it in numbers. The host draws boxes and flips from it; the device
cuts them out of squashed copies and normalizes them. `inference.crops` does the
same on the host for single images of any size.
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
  """How images are looked at.

  Attributes:
    kind: "fcn", whose nodes are the cells of the whole image's feature map;
      "grid" or "sampling", whose nodes are crops in rows and columns or at
      random places.
    size: side in pixels of what the network sees.
    whole_crop: what is kept of a whole image at test time, "center" or "whole".
    scale: smallest and largest share of the area of a random crop.
    aspect: smallest and largest width / height of a random crop.
    flip: mirror half of the random crops.
    mean: gray levels (0 to 255) that are subtracted, red, green, blue.
    std: gray levels that are divided by.
    cells: of "fcn" along a side: a map of more is averaged to so many. 0 is the
      map as it is.
    grid: cells of "grid" along a side, one number per level.
    ratio: side of a crop of "grid" over side of its cell at test time.
    train_ratio: the range that it is drawn from in training.
    patches: crops of "sampling" in training.
    test_patches: the same at test time.
    redraw: "sampling" draws other crops for every test episode.
    seed: of test-time crops.
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
    """Whether the network sees whole images, not crops, at test time."""
    return self.kind == "fcn"

  @property
  def crops_per_image(self) -> int:
    """Crops of an image at test time; 1 for whole images."""
    if self.kind == "grid":
      return sum(cells * cells for cells in self.grid)
    return self.test_patches if self.kind == "sampling" else 1

  @property
  def flip_probability(self) -> float:
    """Of a random crop."""
    return 0.5 if self.flip else 0.0

  def normalize(self, images):
    """Gray levels [..., 3] to network input; of NumPy and JAX arrays."""
    mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
    return (images - mean) / std

  def to_gray_levels(self, pixels: np.ndarray) -> np.ndarray:
    """Undoes `normalize`: float [..., 3] -> uint8 [..., 3]."""
    levels = pixels * np.array(self.std) + np.array(self.mean)
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class TrainingViews:
  """Random views of an image set, drawn on the host; picklable.

  Attributes:
    images: of the training split.
    view: how they are looked at.
    size: side in pixels of what the network sees.
    of_episodes: crops of the kind that `view` matches, for meta-training; if
      not, one random crop an image, for pre-training. Grid and sampling have
      one more axis, the crops, behind the rows.
  """

  images: ImageSet
  view: View
  size: int
  of_episodes: bool = False

  def __call__(
    self, rng: np.random.Generator, rows: np.ndarray, local=slice(None)
  ) -> dict[str, np.ndarray]:
    """Draws views of `rows`, and reads the images of those that are local.

    Args:
      rng: draws for all rows, so that the draws do not depend on `local`.
      rows: int [...], of the image set.
      local: which of them, along the first axis, this process makes.

    Returns:
      {"images", "boxes", "flip"} for `crop_on_device`; the shape of
      `rows[local]` stands in front of each.
    """
    boxes_of_rows = self._boxes(rng, self.images.sizes[rows.ravel()])
    boxes_of_rows = boxes_of_rows.reshape(*rows.shape, *boxes_of_rows.shape[1:])
    flip = rng.random(boxes_of_rows.shape[:-1]) < self.view.flip_probability
    pixels, on_pixels = self.images.extract_crops(
      rows[local], boxes_of_rows[local], self.size
    )
    return {"images": pixels, "boxes": on_pixels, "flip": flip[local]}

  def _boxes(self, rng, sizes):
    """[N, 4], or [N, crops, 4], of images with the sizes [N, 2]."""
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
  """Several random boxes an image: sizes [N, 2] -> [N, crops, 4]."""
  drawn = boxes.random_resized_crop(
    rng, sizes.repeat(crops, 0), scale=view.scale, ratio=view.aspect
  )
  return drawn.reshape(len(sizes), crops, 4)


def evaluation_boxes(
  view: View, images: ImageSet, rows: np.ndarray, episode: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Crops of grid and sampling at test time.

  Those of an image are a function of (seed, row), so it is encoded once. With
  an episode's number, sampling draws others for each episode.

  Args:
    view: of kind "grid" or "sampling".
    images: the image set.
    rows: int [N].
    episode: its number, or None.

  Returns:
    Boxes [N, crops, 4] in pixels of the originals, and bool [N, crops], which
    crops are mirrored.
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
  """Cuts and normalizes what `TrainingViews` has drawn.

  Args:
    view: says how to normalize.
    size: side of the result.
    drawn: "images" uint8 [..., S, S, 3], "boxes" [..., 4], "flip" bool [...];
      boxes and flips may have one more axis than images: several crops of one.

  Returns:
    Network input [..., size, size, 3].
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
  """Side of whole images that `evaluation_view` does not resize."""
  return view.size if view.whole_crop == "whole" else large_side(view.size)


def evaluation_view(view: View, images: jax.Array | np.ndarray) -> jax.Array:
  """Whole images at test time, without randomness.

  Args:
    view: how to look at them.
    images: uint8 [N, H, W, 3].

  Returns:
    Network input [N, size, size, 3].
  """
  if view.whole_crop == "center":
    return view.normalize(evaluation_images(images, view.size))
  count, height, width = images.shape[:3]
  whole = jnp.tile(jnp.array([0.0, 0.0, width, height]), (count, 1))
  upright = jnp.zeros(count, bool)
  return view.normalize(crop_resize(images, whole, upright, size=view.size))
