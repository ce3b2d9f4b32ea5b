"""Images as users pass them: paths, Pillow images or arrays.

`read` identifies an image. `decode` makes it an upright RGB image whose size
fits in memory. `image_io` opens the files.
"""

import hashlib
import os
from collections.abc import Iterable

import numpy as np
from PIL import Image

from deepemd_jax.data import image_io
from deepemd_jax.errors import InputError


def several(images) -> list:
  """Returns a list of the images of an argument that contains several.

  Args:
    images: an iterable of paths, Pillow images or arrays; also an array
      [N, H, W, 3].

  Raises:
    InputError: the argument is a single image or not iterable.
  """
  single = isinstance(images, str | bytes | os.PathLike | Image.Image)
  if getattr(getattr(images, "dtype", None), "kind", "O") in "buif":
    # [H, W, 3] could be taken for H gray images of W x 3 pixels.
    single = images.ndim < 3 or (images.ndim == 3 and images.shape[2] < 5)
  if single:
    raise InputError("this is one image; give a list of images: [image]")
  if not isinstance(images, Iterable):
    raise InputError(
      f"images must be a list of paths, Pillow images or arrays, not a "
      f"{type(images).__name__}"
    )
  return list(images)


def name(source, number: int) -> str:
  """Returns the name of an image in messages: its path or its number."""
  if isinstance(source, str | os.PathLike):
    return repr(os.fspath(source))
  return f"image {number}"


def read(source) -> tuple[str, bytes | Image.Image]:
  """Reads an image without decoding a file.

  Args:
    source: a path; a Pillow image; or an array [H, W], [H, W, 1], [H, W, 3] or
      [H, W, 4] of whole numbers 0..255, uint16, booleans, or floats 0..1.

  Returns:
    The hexadecimal SHA-256 of the file or, if there is no file, of the RGB
    image (see `fingerprint`); and the input of `decode`, which is the file's
    bytes or the RGB image.

  Raises:
    OSError, ValueError and nearly anything else: see `image_io.open_image`.
  """
  if isinstance(source, str | os.PathLike):
    content = image_io.read_file(source)
    return hashlib.sha256(content).hexdigest(), content
  image = source if isinstance(source, Image.Image) else _from_array(source)
  image = image_io.to_rgb(image)
  return fingerprint(image), image


def decode(
  content: bytes | Image.Image,
) -> tuple[Image.Image, tuple[int, int]]:
  """Decodes the second value that `read` returns, as `image_io.read_upright`.

  Returns:
    The upright RGB image, and the height and width in pixels of its original.

  Raises:
    OSError, ValueError and nearly anything else: see `image_io.open_image`.
  """
  if isinstance(content, Image.Image):
    return image_io.upright(content)
  return image_io.read_upright(content)


def decode_small(content: bytes | Image.Image, most: int) -> Image.Image:
  """Decodes an image for display.

  A JPEG of more than `most` pixels is decoded at a half, a quarter or an eighth
  of its size.
  """
  if isinstance(content, Image.Image):
    return decode(content)[0]
  with image_io.open_image(content) as image:
    image_io.shrink_while_decoding(image, most)
    return image_io.upright(image)[0]


def fingerprint(image: Image.Image) -> str:
  """Returns the hexadecimal SHA-256 of the size and pixels of an RGB image."""
  digest = hashlib.sha256(repr(image.size).encode())
  digest.update(image.tobytes())
  return digest.hexdigest()


def _from_array(source) -> Image.Image:
  array = np.asarray(source)
  if array.ndim == 3 and array.shape[2] == 1:
    array = array[..., 0]
  if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
    raise ValueError(
      "an array must be [H, W], [H, W, 3] or [H, W, 4], not "
      f"{list(array.shape)}"
    )
  if not array.size:
    raise ValueError(f"an array without pixels: {list(array.shape)}")
  kind = array.dtype.kind
  if kind not in "buif":
    raise ValueError(f"an array of {array.dtype} is not an image")
  if kind == "b":
    return Image.fromarray(array.astype(np.uint8) * np.uint8(255))
  if array.dtype == np.uint16:
    return Image.fromarray(np.rint(array / 257).astype(np.uint8))
  top = 1 if kind == "f" else 255
  # The test is negated because `min < 0 or max > top` would accept NaN.
  if not (array.min() >= 0 and array.max() <= top):
    raise ValueError(
      f"values of {array.dtype} must lie in 0..{top}; they lie in "
      f"{array.min()}..{array.max()}"
    )
  if kind == "f":
    array = np.rint(array.astype(np.float64) * 255)
  return Image.fromarray(array.astype(np.uint8))
