"""Cuts the crops of one image from its original pixels, on the host.

`data.views` cuts crops on the device from many images squashed to one size.
Here single images come in any size, so Pillow cuts the crops exactly from all
pixels of the original.
"""

import numpy as np
from PIL import Image

from deepemd_jax.data import boxes, image_input
from deepemd_jax.data.views import View, evaluation_side, random_crops
from deepemd_jax.utils.random_streams import Stream, stream


def extract_crops(
  view: View, image: Image.Image
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the test-time crops of an image; for "fcn", the whole image.

  Random crops depend only on the view's seed and the image's pixels, so an
  image has the same crops each time.

  Args:
    view: the settings of the view.
    image: an RGB image of any size.

  Returns:
    The crops, uint8 [crops, size, size, 3]; their boxes, float64 [crops, 4],
    left, top, right, bottom in pixels of the image; and whether each crop is
    mirrored, bool [crops].
  """
  if view.is_whole:
    return _whole(view, image)
  places, flip = _places(view, image)
  crops = []
  for box, mirrored in zip(places, flip, strict=True):
    left, top, right, bottom = (int(x) for x in box)
    part = image.crop((left, top, right, bottom))
    pixels = _resized(part, view.size)
    crops.append(pixels[:, ::-1] if mirrored else pixels)
  return np.stack(crops), places, flip


def _whole(view: View, image: Image.Image):
  large = evaluation_side(view)
  edge = (large - view.size) // 2
  inside = np.s_[edge : edge + view.size]
  pixels = _resized(image, large)[inside, inside]
  box = np.array([edge, edge, edge + view.size, edge + view.size]) / large
  box = box * np.array([*image.size, *image.size])
  return pixels[None], box[None], np.zeros(1, bool)


def _places(view: View, image: Image.Image):
  """Returns boxes [crops, 4] and whether each crop is mirrored, [crops]."""
  size = np.array([[image.height, image.width]])
  if view.kind == "grid":
    ratios = np.full((1, len(view.grid)), view.ratio)
    places = boxes.grid_boxes(size, view.grid, ratios)[0]
    flip = np.zeros(len(places), bool)
  else:
    start = int(image_input.fingerprint(image)[:16], 16)
    rng = stream(view.seed, Stream.IMAGE_CROPS, start)
    places = random_crops(rng, size, view.test_patches, view)[0]
    flip = rng.random(view.test_patches) < view.flip_probability
  # In an image of a few pixels, a cell may be empty.
  places[:, :2] = np.minimum(places[:, :2], size[0, ::-1] - 1)
  places[:, 2:] = np.maximum(places[:, 2:], places[:, :2] + 1)
  return places, flip


def _resized(image: Image.Image, side: int) -> np.ndarray:
  return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
