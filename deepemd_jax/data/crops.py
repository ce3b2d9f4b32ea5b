"""What the network sees of one image, cut on the host from the original.

`views` does the same on the device, for many images squashed to one size. Here
images come one by one in all sizes, so Pillow cuts: exactly, and from every
pixel of the original.
"""

import dataclasses

import numpy as np
from PIL import Image

from deepemd_jax.data import uploads, views


@dataclasses.dataclass(frozen=True)
class Crops:
  """How to look at an image; the fields of `config.image` and `config.nodes`.

  Attributes:
    kind: "fcn" (the whole image), "grid" or "sampling".
    size: side in pixels of each crop.
    crop: "center" or "whole": the view of "fcn".
    grid: cells along a side, one number per level.
    ratio: side of a crop over side of its cell.
    patches: of "sampling".
    scale: smallest and largest share of the area of those.
    aspect: smallest and largest width / height of those.
    flip: mirror half of those.
    seed: they follow from it and from the image's pixels, so an image has the
      same ones each time.
  """

  kind: str
  size: int
  crop: str
  grid: tuple[int, ...]
  ratio: float
  patches: int
  scale: tuple[float, float]
  aspect: tuple[float, float]
  flip: bool
  seed: int

  @property
  def count(self) -> int:
    """Crops of an image."""
    return {
      "fcn": 1,
      "grid": sum(cells * cells for cells in self.grid),
      "sampling": self.patches,
    }[self.kind]

  def cut(
    self, image: Image.Image
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops of an RGB image.

    Returns:
      uint8 [crops, size, size, 3]; where they are: float64 [crops, 4] left,
      top, right, bottom in pixels of the image; bool [crops], which of them are
      mirrored.
    """
    if self.kind == "fcn":
      return self._whole(image)
    boxes, flip = self._boxes(image)
    crops = []
    for box, mirrored in zip(boxes, flip, strict=True):
      part = image.crop(tuple(int(x) for x in box))
      pixels = self._resized(part, self.size)
      crops.append(pixels[:, ::-1] if mirrored else pixels)
    return np.stack(crops), boxes, flip

  def _whole(self, image):
    large = self.size if self.crop == "whole" else views.large_side(self.size)
    edge = (large - self.size) // 2
    kept = np.s_[edge : edge + self.size]
    pixels = self._resized(image, large)[kept, kept]
    box = np.array([edge, edge, edge + self.size, edge + self.size]) / large
    box = box * np.array([*image.size, *image.size])
    return pixels[None], box[None], np.zeros(1, bool)

  def _boxes(self, image):
    size = np.array([[image.height, image.width]])
    if self.kind == "grid":
      ratios = np.full((1, len(self.grid)), self.ratio)
      boxes = views.grid_boxes(size, self.grid, ratios)[0]
      flip = np.zeros(len(boxes), bool)
    else:
      start = int(uploads.fingerprint(image)[:16], 16)
      rng = np.random.default_rng([self.seed, start])
      boxes = views.random_resized_crop(
        rng, size.repeat(self.patches, 0), scale=self.scale, ratio=self.aspect
      )
      flip = rng.random(self.patches) < (0.5 if self.flip else 0.0)
    # Cells of an image of a few pixels may have none.
    boxes[:, :2] = np.minimum(boxes[:, :2], size[0, ::-1] - 1)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return boxes, flip

  @staticmethod
  def _resized(image, side):
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
