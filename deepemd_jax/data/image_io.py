"""Image files as people see them: any readable file becomes upright 8-bit RGB.

The EXIF tag turns an image, alpha lies on white, 16-bit gray is scaled to 8
bits, CMYK and palettes become RGB, and an animation is its first frame, as in a
thumbnail. A file that is not such an image (unreadable, cut off, without
pixels, or larger than the limit) is reported in a few words.

An image of more than `WHOLE` pixels becomes a smaller one: a JPEG is decoded at
half its size, or a quarter; another is decoded whole, one at a time, and then
made smaller. No more than `LIMIT` million pixels are taken, because a file of a
few kilobytes may ask for any number; the environment variable `VARIABLE` sets
another limit.
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

LIMIT = 250  # million pixels: phones have 200; 750 MB of RGB
VARIABLE = "DEEPEMD_MAX_MEGAPIXELS"
WHOLE = 89_478_485  # pixels, 256 MiB of RGB: Pillow's own limit
_LARGEST_FILE = 2**30  # bytes; no honest image file is larger
_PIXELS_AT_ONCE = 2**16
# Tags of a TIFF.
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_PREVIEW, _CAMERA, _DNG = 254, 271, 50706
_LARGEST_TILE = 2**20  # pixels; the usual ones have 2**16
_ORIENTATION = 0x0112
_one_at_a_time = threading.Lock()


class TooLarge(ValueError):
  """An image has more pixels than are taken."""


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
  """Opens an image file of `picture_files.FORMATS`, or one that an installed
  plug-in reads; close it after use.

  Args:
    source: its path, or its bytes.

  Raises:
    OSError, ValueError and nearly anything else: it is not an image; `reason`
      turns the exception into words.
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
      raise ValueError(f"tiles of {tile} pixels, which is more than the image")
    preview = int(tags.get(_PREVIEW, 0)) & 1 and _CAMERA in tags
    if preview or _DNG in tags:  # Pillow would show a preview of a few pixels
      raise ValueError(picture_files.RAW)
  return image


def _identified(content: bytes) -> Image.Image:
  """The image in a file's bytes, by the first format that fits.

  As `Image.open` does, but with a limit of ours: Pillow's holds for the whole
  process, in which others may have images too.
  """
  head = content[: picture_files.HEAD]
  for name in picture_files.formats(head):
    if name not in Image.OPEN:
      Image.init()
    opening, accepts = Image.OPEN[name]
    try:
      fits = accepts is None or accepts(head[:16])
      if fits and not isinstance(fits, str):  # text: Pillow was built without
        return opening(io.BytesIO(content), "")
    except (SyntaxError, IndexError, TypeError, struct.error):
      continue  # as Pillow takes it: of another format
    except Image.DecompressionBombError as error:  # some formats have their own
      raise _too_large(
        "more pixels than Pillow takes of this format"
      ) from error
  raise ValueError(picture_files.why_not_read(head))


def _limit() -> float:
  """The most pixels that an image may have, in millions."""
  given = os.environ.get(VARIABLE) or LIMIT
  try:
    limit = float(given)
  except ValueError:
    limit = 0
  if not limit > 0:  # nor NaN
    raise InputError(f"{VARIABLE} is {given!r}; use a number above 0")
  return limit


def _too_large(what: str) -> TooLarge:
  return TooLarge(
    f"{what}; at most {_limit():g} million are taken: make it smaller, or set "
    f"the environment variable {VARIABLE} to more"
  )


def to_rgb(image: Image.Image) -> Image.Image:
  """Returns the image as a person sees it, in RGB."""
  return _flat(ImageOps.exif_transpose(image))


def _flat(image: Image.Image) -> Image.Image:
  """Returns the image in RGB, without regard to how it is turned."""
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
  """Decodes a file, given by its path or its bytes, to an upright RGB image,
  which may be smaller than the original; see `read_upright`.

  Raises:
    OSError, ValueError and nearly anything else: as `open_image`.
  """
  return read_upright(source)[0]


def read_upright(
  source: str | os.PathLike | bytes,
) -> tuple[Image.Image, tuple[int, int]]:
  """Decodes a file to an upright RGB image.

  Args:
    source: its path, or its bytes.

  Returns:
    The image, of at most `WHOLE` pixels; and the height and width in pixels of
    the upright original.

  Raises:
    OSError, ValueError and nearly anything else: as `open_image`.
  """
  with open_image(source) as image:
    return upright(image)


def upright(image: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
  """As `read_upright`, of an image that is open; it may come out changed."""
  width, height = image.size
  if shrink_while_decoding(image, WHOLE):
    rgb = to_rgb(image)
    turned = rgb.size != image.size
  else:
    with _one_at_a_time:  # else several threads would need as many times 1 GB
      rgb = _smaller(image)
    turned = (rgb.width > rgb.height) != (width > height)
  return rgb, (width, height) if turned else (height, width)


def _smaller(image: Image.Image) -> Image.Image:
  """Decodes an image whole, and returns `to_rgb` of it with at most `WHOLE`
  pixels; some rows at a time, so that there is no second copy."""
  try:
    with warnings.catch_warnings():  # of TIFF, at Pillow's own limit
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      image.load()
  except Image.DecompressionBombError as error:
    raise _too_large("more pixels than Pillow takes of this format") from error
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
  """Has a JPEG decoded at half its size, a quarter or an eighth, if it has more
  than `most` pixels; returns whether the image then has no more."""
  factor = _factor(image, most)
  if factor > 1 and image.format in ("JPEG", "MPO"):
    factor = next((k for k in (2, 4, 8) if k >= factor), 8)
    width, height = (-(-side // factor) for side in image.size)
    image.draft(None, (width, height))
  return _factor(image, most) == 1


def _factor(image: Image.Image, most: int) -> int:
  """By which both sides are divided, so that `most` pixels are left."""
  factor = 1
  while -(-image.width // factor) * -(
    -image.height // factor
  ) > most and factor < max(image.size):
    factor += 1
  return factor


def reason(error: Exception) -> str:
  """Returns what an exception of a decoder means, in one line."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if str(error).startswith("decoder error"):  # and a number of Pillow's
    return "damaged"
  if "truncated" in str(error):  # Pillow adds how many bytes it holds
    return "truncated: the file ends too early"
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
