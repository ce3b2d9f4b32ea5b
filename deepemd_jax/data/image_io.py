"""Image files as people see them: any readable file becomes upright 8-bit RGB.

The EXIF tag turns an image, alpha lies on white, 16-bit gray is scaled to 8
bits, CMYK and palettes become RGB, and an animation is its first frame, as in a
thumbnail. A file that is not such an image (unreadable, cut off, without
pixels, or suspiciously large) is reported in a few words.
"""

import io
import os
import stat

import numpy as np
from PIL import Image, ImageOps

from deepemd_jax.utils import files

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# What these suffixes stand for, whatever a file is called. Pillow's other
# decoders stay out: the one for EPS would run another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_LARGEST_FILE = 2**30  # bytes; no honest image file is larger
_PIXELS_AT_ONCE = 2**16
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of a TIFF
_LARGEST_TILE = 2**20  # pixels; the usual ones have 2**16


def read_file(path: str | os.PathLike) -> bytes:
  """Returns the content of an image file; opens no pipe or device.

  Raises:
    OSError, ValueError: it cannot be read, is no regular file, or is too large.
  """
  found = os.stat(path)
  if not stat.S_ISREG(found.st_mode):
    raise ValueError("not a file")
  if found.st_size > _LARGEST_FILE:
    raise ValueError("larger than 1 GiB")
  return files.read_regular(path, _LARGEST_FILE)


def open_image(source: str | os.PathLike | bytes) -> Image.Image:
  """Opens an image file of one of `FORMATS`; close it after use.

  Args:
    source: its path, or its bytes.

  Raises:
    OSError, ValueError and nearly anything else: it is not an image; `reason`
      turns the exception into words.
  """
  content = source if isinstance(source, bytes) else read_file(source)
  if not content:
    raise ValueError("an empty file")
  image = Image.open(io.BytesIO(content), formats=FORMATS)
  if not image.width or not image.height:
    raise ValueError(f"no pixels: {image.width} x {image.height}")
  limit = Image.MAX_IMAGE_PIXELS
  if limit and image.width * image.height > limit:  # Pillow waits for twice it
    raise Image.DecompressionBombError(
      f"{image.width} x {image.height} pixels: taken for a decompression bomb"
    )
  if image.format == "TIFF":
    tags = image.tag_v2
    tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
    if tile > 4 * image.width * image.height + _LARGEST_TILE:
      raise ValueError(f"tiles of {tile} pixels, which is more than the image")
  return image


def to_rgb(image: Image.Image) -> Image.Image:
  """Returns the image as a person sees it, in RGB."""
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I") or image.mode == "F":
    return _eight_bit(image).convert("RGB")
  if "A" in image.getbands() or "transparency" in image.info:
    return _on_white(image)
  return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
  """Makes what is clear white; some rows at a time, as `_eight_bit`."""
  rgb = Image.new("RGB", image.size)
  step = max(1, _PIXELS_AT_ONCE // image.width)
  for top in range(0, image.height, step):
    bottom = min(top + step, image.height)
    rows = image.crop((0, top, image.width, bottom)).convert("RGBA")
    white = Image.new("RGBA", rows.size, "white")
    rgb.paste(Image.alpha_composite(white, rows).convert("RGB"), (0, top))
  return rgb


def _eight_bit(image: Image.Image) -> Image.Image:
  """Scales gray of more than 8 bits to 8.

  White is 65535 in 16 bits. A 32-bit file does not say what white is, so the
  smallest of the usual values 1, 255 and 65535 that fits is taken.
  """
  pixels = np.asarray(image)
  white = 65535.0
  if not image.mode.startswith("I;16"):
    largest = np.max(pixels, initial=0, where=~np.isnan(pixels))
    white = next((w for w in (1.0, 255.0) if largest <= w), white)
  levels = np.empty(pixels.shape, np.uint8)
  # Some rows at a time: the float64 of 50 megapixels would be 400 MB, twice.
  step = max(1, _PIXELS_AT_ONCE // image.width)
  for start in range(0, image.height, step):
    rows = slice(start, start + step)
    values = np.nan_to_num(pixels[rows].astype(np.float64))
    levels[rows] = np.clip(np.rint(values * (255 / white)), 0, 255)
  return Image.fromarray(levels)


def read_rgb(source: str | os.PathLike | bytes) -> Image.Image:
  """Decodes a file, given by its path or its bytes, to an upright RGB image.

  Raises:
    OSError, ValueError and nearly anything else: as `open_image`.
  """
  with open_image(source) as image:
    return to_rgb(image)


def reason(error: Exception) -> str:
  """Returns what an exception of a decoder means, in one line."""
  if isinstance(error, Image.UnidentifiedImageError):
    return "not an image"
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return " ".join(str(error).split()) or type(error).__name__


def as_rgb_file(
  source: str | os.PathLike | bytes | Image.Image,
  box: tuple[float, float, float, float] | None = None,
) -> tuple[bytes, int, int]:
  """Returns an upright RGB JPEG or PNG file with the pixels that a person sees.

  A file that is one already is returned as it is, byte for byte. Anything else
  is encoded again as PNG, so nothing is lost.

  Args:
    source: a path, a file's bytes, or an image in memory.
    box: left, top, width and height in pixels of the crop to keep, or None. The
      crop ends at whole pixels (rounded towards zero) and at the image's edge.

  Returns:
    The file's bytes, and the image's height and width in pixels.

  Raises:
    OSError, ValueError and nearly anything else: as `open_image`; also if the
      box holds no pixel of the image.
  """
  if not isinstance(source, bytes | Image.Image):
    source = read_file(source)
  image = source if isinstance(source, Image.Image) else open_image(source)
  with image:
    rgb = to_rgb(image)
    keep = (
      isinstance(source, bytes) and box is None and _is_plain(image, source)
    )
  if keep:
    return source, rgb.height, rgb.width
  if box is not None:
    rgb = _crop(rgb, box)
  file = io.BytesIO()
  # Without the color profile and comments: decoders differ in what they do.
  Image.fromarray(np.asarray(rgb)).save(file, "PNG")
  return file.getvalue(), rgb.height, rgb.width


def _is_plain(image: Image.Image, content: bytes) -> bool:
  """Whether every decoder will show this file the way `to_rgb` does."""
  eight_bit = image.format == "JPEG" or (
    image.format == "PNG" and content[24] == 8
  )
  return (
    eight_bit
    and image.mode == "RGB"
    and "transparency" not in image.info
    and getattr(image, "n_frames", 1) == 1
    and image.getexif().get(0x0112, 1) == 1  # the orientation
  )


def _crop(image: Image.Image, box) -> Image.Image:
  x, y, width, height = box
  left, top = max(int(x), 0), max(int(y), 0)
  right = min(int(x + width), image.width)
  bottom = min(int(y + height), image.height)
  if left >= right or top >= bottom:
    raise ValueError(
      f"its box {tuple(box)} holds no pixel of {image.width} x {image.height}"
    )
  return image.crop((left, top, right, bottom))
