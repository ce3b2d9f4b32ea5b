"""Makes, opens and compares copies of random pictures."""

import io

import numpy as np
from PIL import Image

from deepemd_jax.data import pixel_cache


def picture(seed, height=20, width=30, kind="PNG"):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  return file.getvalue()


def items(count, first=0):
  return [
    pixel_cache.ImageFile(
      picture(i, 10 + i % 7, 20 + i % 5), f"{i}.png", f"c{i % 3}"
    )
    for i in range(first, first + count)
  ]


class MadeAgain(Exception):
  """Copies were made again that should have been used as they are."""


def load(place, made, *, side=16, made_from="these", made_before=False):
  def make():
    if made_before:
      raise MadeAgain
    return iter(made)

  return pixel_cache.load(
    place,
    make,
    count=len(made),
    side=side,
    made_from=made_from,
    name="them",
    data_set="folder",
  )


def check(found, made, side=16):
  """Compares copies with those of a slow and simple version."""
  assert found.keys == tuple(item.key for item in made)
  assert found.labels == tuple(item.label for item in made)
  assert found.sizes.dtype == np.int32
  assert found.pixels.shape == (len(made), side, side, 3)
  for row, item in enumerate(made):
    image = Image.open(io.BytesIO(item.file))
    assert found.sizes[row].tolist() == [image.height, image.width]
    small = image.resize((side, side), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found.pixels[row], np.asarray(small))
