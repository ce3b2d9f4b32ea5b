"""Pictures as people see them: any readable file becomes upright 8-bit RGB.

Turned by their EXIF tag, alpha on white, 16-bit gray scaled to 8, CMYK and
palettes resolved; of an animation the first frame, as a thumbnail shows it.
Whatever is not such a picture (unreadable, cut off, without pixels, too large
to be honest) is reported in a few words.
"""

import io
import os

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# What these suffixes stand for, whatever a file is called. Pillow's other
# decoders stay out: the one for EPS would run another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


def open_image(source: str | os.PathLike | bytes) -> Image.Image:
  """Opens a file, or its bytes, of one of `FORMATS`; close it after use.

  Raises:
    OSError, ValueError and nearly anything else: it is no picture; `reason`
      turns the exception into words.
  """
  if isinstance(source, bytes):
    if not source:
      raise ValueError("an empty file")
    source = io.BytesIO(source)
  elif not os.path.getsize(source):
    raise ValueError("an empty file")
  image = Image.open(source, formats=FORMATS)
  if not image.width or not image.height:
    raise ValueError(f"no pixels: {image.width} x {image.height}")
  limit = Image.MAX_IMAGE_PIXELS
  if limit and image.width * image.height > limit:  # Pillow waits for twice it
    raise Image.DecompressionBombError(
      f"{image.width} x {image.height} pixels: taken for a decompression bomb"
    )
  return image


def to_rgb(image: Image.Image) -> Image.Image:
  """The picture as a person sees it, in RGB."""
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I") or image.mode == "F":
    return _eight_bit(image).convert("RGB")
  if "A" in image.getbands() or "transparency" in image.info:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
  return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
  """Gray of more than 8 bit. Its white is 65535 in 16 bit; 32 bit does not say,
  so there it is the smallest of the usual ones, 1, 255 and 65535, that fits."""
  values = np.nan_to_num(np.asarray(image, np.float64))
  white = 65535.0
  if not image.mode.startswith("I;16"):
    white = next((w for w in (1.0, 255.0) if values.max() <= w), white)
  levels = np.clip(np.rint(values * (255 / white)), 0, 255)
  return Image.fromarray(levels.astype(np.uint8))


def problem(source: str | os.PathLike | bytes) -> str | None:
  """Why a picture (its path or its bytes) cannot be read, or None."""
  try:
    with open_image(source) as image:
      to_rgb(image)
  except Exception as error:  # decoders raise nearly anything on broken files
    return reason(error)
  return None


def reason(error: Exception) -> str:
  """What an exception of a decoder means, in one line."""
  if isinstance(error, Image.UnidentifiedImageError):
    return "not an image"
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return " ".join(str(error).split()) or type(error).__name__


def as_rgb_file(
  source: str | os.PathLike | bytes | Image.Image,
  box: tuple[float, float, float, float] | None = None,
) -> tuple[bytes, int, int]:
  """A file with the pixels a person sees: an upright RGB JPEG or PNG.

  A file that is one already is returned as it is, byte for byte; anything else
  is written anew as PNG, so nothing is lost.

  Args:
    source: a path, a file's bytes, or an image in memory.
    box: left, top, width and height in pixels of the crop to keep, or None. Cut
      at whole pixels (towards zero) and at the edge of the picture.

  Returns:
    The bytes, and the height and width in pixels.

  Raises:
    OSError, ValueError and nearly anything else: as `open_image`; also when the
      box holds no pixel of the picture.
  """
  if not isinstance(source, bytes | Image.Image):
    with open(source, "rb") as file:
      source = file.read()
  image = source if isinstance(source, Image.Image) else open_image(source)
  with image:
    rgb = to_rgb(image)
    kept = (
      isinstance(source, bytes) and box is None and _is_plain(image, source)
    )
  if kept:
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
