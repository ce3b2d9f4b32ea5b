"""Decodes image files to upright 8-bit RGB, as a person sees them.

The EXIF orientation is applied, transparent parts become white, 16-bit gray is
scaled to 8 bits, and CMYK and palettes become RGB. Of an animation, only the
first frame is used. A file that is unreadable, truncated, without pixels or
larger than the limit is reported in a few words.

An image of more than `WHOLE` pixels is made smaller. A JPEG is decoded at a
half, a quarter or an eighth of its size. Any other image is decoded at full
size and then reduced, one at a time. The limit is `LIMIT` million pixels,
because a file of a few kilobytes can claim any number of pixels. The
environment variable `VARIABLE` sets another limit.
"""

import io
import os
import stat
import struct
import threading
import warnings

import numpy as np
from PIL import Image, ImageOps

from deepemd_jax.data import picture_files
from deepemd_jax.errors import InputError
from deepemd_jax.utils import files

LIMIT = 250  # million pixels, 750 MB of RGB; phones have up to 200
_FOR_PILLOW = "too many pixels for Pillow in this format; make it smaller"
VARIABLE = "DEEPEMD_MAX_MEGAPIXELS"
WHOLE = 89_478_485  # pixels, 256 MiB of RGB; Pillow's own limit
_LARGEST_FILE = 2**30  # bytes; real image files are smaller
_PIXELS_AT_ONCE = 2**16
# The numbers of TIFF tags.
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_PREVIEW, _CAMERA, _DNG = 254, 271, 50706
_LARGEST_TILE = 2**20  # pixels; usual tiles have 2**16
_ORIENTATION = 0x0112
_one_at_a_time = threading.Lock()


class TooLarge(ValueError):
  """An image has more pixels than the limit."""


def read_file(path: str | os.PathLike) -> bytes:
  """Returns the content of an image file, and opens no pipe or device.

  Raises:
    OSError, ValueError: the file cannot be read, is not a regular file, or is
      too large.
  """
  found = os.stat(path)
  if not stat.S_ISREG(found.st_mode):
    raise ValueError("not a file")
  if found.st_size > _LARGEST_FILE:
    raise ValueError("larger than 1 GiB")
  return files.read_regular(path, _LARGEST_FILE)


def open_image(source: str | os.PathLike | bytes) -> Image.Image:
  """Opens an image file, which must be closed after use.

  The format is one of `picture_files.FORMATS`, or one that an installed plug-in
  reads.

  Args:
    source: path of the file, or its bytes.

  Raises:
    OSError, ValueError and nearly anything else: the file is not an image;
      `reason` turns the exception into words.
  """
  content = source if isinstance(source, bytes) else read_file(source)
  if not content:
    raise ValueError("an empty file")
  image = _identified(content)
  if not image.width or not image.height:
    raise ValueError(f"no pixels: {image.width} x {image.height}")
  limit = _limit()
  if image.width * image.height > limit * 1e6:
    raise _too_large(f"{image.width} x {image.height} pixels")
  if image.format == "TIFF":
    picture_files.hush_libtiff()
    tags = image.tag_v2  # pyrefly: ignore[missing-attribute]: a TIFF has it
    tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
    if tile > 4 * image.width * image.height + _LARGEST_TILE:
      raise ValueError(f"tiles of {tile} pixels, larger than the image")
    preview = int(tags.get(_PREVIEW, 0)) & 1 and _CAMERA in tags
    if preview or _DNG in tags:  # Pillow would decode only a small preview
      raise ValueError(picture_files.RAW)
  return image


def _identified(content: bytes) -> Image.Image:
  """Opens the image in a file's bytes with the first format that fits.

  Unlike `Image.open`, it has our own limit of pixels, because Pillow's limit
  applies to all other code of the process, too.
  """
  head = content[: picture_files.HEAD]
  for name in picture_files.formats(head):
    if name not in Image.OPEN:
      Image.init()
    opening, accepts = Image.OPEN[name]
    try:
      fits = accepts is None or accepts(head[:16])
      if fits and not isinstance(fits, str):  # a string if Pillow lacks it
        return opening(io.BytesIO(content), "")
    except (SyntaxError, IndexError, TypeError, struct.error):
      continue  # Pillow, too, takes these errors as a sign of another format
    except Image.DecompressionBombError as error:  # raised by some formats
      raise TooLarge(_FOR_PILLOW) from error
  raise ValueError(picture_files.why_not_read(head))


def _limit() -> float:
  """Returns the largest number of pixels of an image, in millions."""
  given = os.environ.get(VARIABLE) or LIMIT
  try:
    limit = float(given)
  except ValueError:
    limit = 0
  if not limit > 0:  # also refuses NaN
    raise InputError(f"{VARIABLE} is {given!r}; use a number above 0")
  return limit


def _too_large(what: str) -> TooLarge:
  return TooLarge(
    f"{what}; at most {_limit():g} million are allowed: make it smaller, or "
    f"set the environment variable {VARIABLE} to a larger number"
  )


def to_rgb(image: Image.Image) -> Image.Image:
  """Returns the image as a person sees it, in RGB."""
  return _flat(ImageOps.exif_transpose(image))


def _flat(image: Image.Image) -> Image.Image:
  """Returns the image in RGB and ignores its EXIF orientation."""
  if image.mode.startswith("I") or image.mode == "F":
    return _eight_bit(image).convert("RGB")
  if "A" in image.getbands() or "transparency" in image.info:
    return _on_white(image)
  return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
  """Puts a transparent image on white, some rows at a time to save memory."""
  rgb = Image.new("RGB", image.size)
  step = max(1, _PIXELS_AT_ONCE // image.width)
  for top in range(0, image.height, step):
    bottom = min(top + step, image.height)
    rows = image.crop((0, top, image.width, bottom)).convert("RGBA")
    white = Image.new("RGBA", rows.size, "white")
    rgb.paste(Image.alpha_composite(white, rows).convert("RGB"), (0, top))
  return rgb


def _eight_bit(image: Image.Image) -> Image.Image:
  """Scales gray levels of more than 8 bits to 8 bits.

  White is 65535 in 16 bits. A 32-bit file does not state the value of white, so
  it is the smallest of the usual values 1, 255 and 65535 that fits.
  """
  pixels = np.asarray(image)
  white = 65535.0
  if not image.mode.startswith("I;16"):
    largest = np.max(pixels, initial=0, where=~np.isnan(pixels))
    white = next((w for w in (1.0, 255.0) if largest <= w), white)
  levels = np.empty(pixels.shape, np.uint8)
  # Some rows at a time: 50 megapixels in float64 would take 400 MB, twice.
  step = max(1, _PIXELS_AT_ONCE // image.width)
  for start in range(0, image.height, step):
    rows = slice(start, start + step)
    values = np.nan_to_num(pixels[rows].astype(np.float64))
    levels[rows] = np.clip(np.rint(values * (255 / white)), 0, 255)
  return Image.fromarray(levels)


def read_rgb(source: str | os.PathLike | bytes) -> Image.Image:
  """Decodes a file, given by its path or its bytes, to an upright RGB image.

  The image may be smaller than the original; see `read_upright`.

  Raises:
    OSError, ValueError and nearly anything else: see `open_image`.
  """
  return read_upright(source)[0]


def read_upright(
  source: str | os.PathLike | bytes,
) -> tuple[Image.Image, tuple[int, int]]:
  """Decodes a file to an upright RGB image.

  Args:
    source: path of the file, or its bytes.

  Returns:
    The image, of at most `WHOLE` pixels; and the height and width in pixels of
    the upright original.

  Raises:
    OSError, ValueError and nearly anything else: see `open_image`.
  """
  with open_image(source) as image:
    return upright(image)


def upright(image: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
  """Decodes an open image as `read_upright`; this may change `image` itself."""
  width, height = image.size
  if shrink_while_decoding(image, WHOLE):
    rgb = to_rgb(image)
    turned = rgb.size != image.size
  else:
    with _one_at_a_time:  # each thread would need 1 GB
      rgb = _smaller(image)
    turned = (rgb.width > rgb.height) != (width > height)
  return rgb, (width, height) if turned else (height, width)


def _smaller(image: Image.Image) -> Image.Image:
  """Decodes an image and returns it in RGB, reduced to at most `WHOLE` pixels.

  It converts some rows at a time, so that there is no second copy.
  """
  try:
    with warnings.catch_warnings():  # a TIFF above Pillow's own limit warns
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      image.load()
  except Image.DecompressionBombError as error:
    raise TooLarge(_FOR_PILLOW) from error
  orientation = image.getexif().get(_ORIENTATION, 1)
  if image.mode.startswith("I") or image.mode == "F":
    image = _eight_bit(image)
  factor = _factor(image, WHOLE)
  width, height = (-(-side // factor) for side in image.size)
  small = Image.new("RGB", (width, height))
  step = factor * max(1, _PIXELS_AT_ONCE // (image.width * factor))
  for top in range(0, image.height, step):
    bottom = min(top + step, image.height)
    rows = _flat(image.crop((0, top, image.width, bottom)))
    small.paste(rows.reduce(factor), (0, top // factor))
  small.getexif()[_ORIENTATION] = orientation
  return ImageOps.exif_transpose(small)


def shrink_while_decoding(image: Image.Image, most: int) -> bool:
  """Sets a JPEG of more than `most` pixels to be decoded at a smaller size.

  The scale is 1/2, 1/4 or 1/8. Returns whether at most `most` pixels are left.
  """
  factor = _factor(image, most)
  if factor > 1 and image.format in ("JPEG", "MPO"):
    factor = next((k for k in (2, 4, 8) if k >= factor), 8)
    width, height = (-(-side // factor) for side in image.size)
    image.draft(None, (width, height))
  return _factor(image, most) == 1


def _factor(image: Image.Image, most: int) -> int:
  """Returns the divisor of both sides that leaves at most `most` pixels."""
  factor = 1
  while -(-image.width // factor) * -(
    -image.height // factor
  ) > most and factor < max(image.size):
    factor += 1
  return factor


def reason(error: Exception) -> str:
  """Describes an exception of a decoder in one line."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if str(error).startswith("decoder error"):  # a number of Pillow follows
    return "damaged"
  if "truncated" in str(error):  # Pillow adds a number of bytes
    return "truncated: the file ends too early"
  return " ".join(str(error).split()) or type(error).__name__


def as_rgb_file(
  source: str | os.PathLike | bytes | Image.Image,
  box: tuple[float, float, float, float] | None = None,
) -> tuple[bytes, int, int]:
  """Returns an upright RGB JPEG or PNG file with the pixels that a person sees.

  A file that is already of this kind is returned byte for byte. Any other image
  is encoded again as PNG, which is lossless.

  Args:
    source: a path, a file's bytes, or an image in memory.
    box: left, top, width and height in pixels of the crop to keep, or None. The
      crop ends at whole pixels (rounded toward zero) and at the image's edge.

  Returns:
    The file's bytes, and the image's height and width in pixels.

  Raises:
    OSError, ValueError and nearly anything else: see `open_image`; also if the
      box contains no pixel of the image.
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
  # Decoders use color profiles and comments differently, so they are dropped.
  Image.fromarray(np.asarray(rgb)).save(file, "PNG")
  return file.getvalue(), rgb.height, rgb.width


def _is_plain(image: Image.Image, content: bytes) -> bool:
  """Returns whether every decoder gives the same pixels as `to_rgb`."""
  eight_bit = image.format == "JPEG" or (
    image.format == "PNG" and content[24] == 8
  )
  return (
    eight_bit
    and image.mode == "RGB"
    and "transparency" not in image.info
    and getattr(image, "n_frames", 1) == 1
    and image.getexif().get(_ORIENTATION, 1) == 1
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
