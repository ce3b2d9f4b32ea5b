"""Every kind of picture becomes what a person sees, or is reported as bad."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepemd_jax.data import image_io


def stored(image, kind, **options):
  """Writes an image to bytes and opens it again."""
  file = io.BytesIO()
  image.save(file, kind, **options)
  file.seek(0)
  return Image.open(file)


def gray(value, dtype):
  return Image.fromarray(np.full((4, 6), value, dtype))


def clear(mode, color):
  return Image.new(mode, (6, 4), color)


RED = Image.new("P", (6, 4), 1)
RED.putpalette([0, 0, 0, 255, 0, 0])
# The stored image, how it is stored, and the RGB that a person sees.
KINDS = {
  "gray": (clear("L", 77), "PNG", {}, (77, 77, 77)),
  "black and white": (clear("1", 1), "PNG", {}, (255, 255, 255)),
  "palette": (RED, "PNG", {}, (255, 0, 0)),
  "gif": (RED, "GIF", {}, (255, 0, 0)),
  "palette, clear": (RED, "PNG", {"transparency": 1}, (255, 255, 255)),
  "clear": (clear("RGBA", (9, 9, 9, 0)), "PNG", {}, (255, 255, 255)),
  "half clear": (clear("RGBA", (0, 0, 0, 128)), "PNG", {}, (127, 127, 127)),
  "gray, clear": (clear("LA", (9, 0)), "PNG", {}, (255, 255, 255)),
  "key color": (
    *(clear("RGB", (9, 8, 7)), "PNG"),
    *({"transparency": (9, 8, 7)}, (255, 255, 255)),
  ),
  "webp": (clear("RGBA", (0, 0, 0, 0)), "WEBP", {}, (255, 255, 255)),
  "cmyk": (clear("CMYK", (0, 255, 255, 0)), "JPEG", {}, (255, 0, 0)),
  "16 bit": (gray(0x8000, np.uint16), "PNG", {}, (128, 128, 128)),
  "dark 16 bit": (gray(514, np.uint16), "PNG", {}, (2, 2, 2)),
  "16 bit tiff": (gray(0xFFFF, np.uint16), "TIFF", {}, (255, 255, 255)),
  "32 bit": (gray(0x8000, np.int32), "TIFF", {}, (128, 128, 128)),
  "float": (gray(0.5, np.float32), "TIFF", {}, (128, 128, 128)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_any_kind_look_as_they_should(kind):
  image, suffix, options, expected = KINDS[kind]
  image = image_io.to_rgb(stored(image, suffix, **options))
  assert image.mode == "RGB" and image.size == (6, 4)
  np.testing.assert_allclose(np.asarray(image)[2, 3], expected, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation):
  """A photograph with an EXIF tag for its rotation looks like the scene."""
  scene = np.zeros((4, 6, 3), np.uint8)
  scene[0, :, 0], scene[:, 0, 1] = 255, 255
  # Ways to store the upright scene, by EXIF tag 274.
  as_stored = {
    1: scene,
    2: scene[:, ::-1],
    3: scene[::-1, ::-1],
    4: scene[::-1],
    5: scene.swapaxes(0, 1),
    6: np.rot90(scene),
    7: scene[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(scene, -1),
  }[orientation]
  exif = Image.Exif()
  exif[274] = orientation
  photo = stored(Image.fromarray(as_stored.copy()), "PNG", exif=exif)
  np.testing.assert_array_equal(np.asarray(image_io.to_rgb(photo)), scene)


def test_16_bits_become_8_a_piece_at_a_time():
  values = np.random.default_rng(0).integers(0, 2**16, (1501, 999), np.uint16)
  image = Image.fromarray(values)
  tracemalloc.start()
  found = image_io.to_rgb(image)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  expected = np.rint(values / 257).astype(np.uint8)
  np.testing.assert_array_equal(np.asarray(found)[..., 0], expected)
  assert peak < 6 * values.size  # bytes; float64 alone would need 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_large_clear_images_are_put_on_white_as_small_ones_are(mode):
  rng = np.random.default_rng(0)
  whole = Image.fromarray(rng.integers(0, 256, (700, 199, 4), np.uint8))
  if mode != "RGBA":
    whole = whole.convert(mode)
  white = Image.new("RGBA", whole.size, "white")
  at_once = Image.alpha_composite(white, whole.convert("RGBA")).convert("RGB")
  np.testing.assert_array_equal(
    np.asarray(image_io.to_rgb(whole)), np.asarray(at_once)
  )


def test_tiles_far_larger_than_the_image_are_refused():
  """A decoder allocates memory for a whole tile."""

  def tiff(tile):
    """Returns 100 x 100 pixels in one square tile, compressed by LZW."""
    tags = {256: 100, 257: 100, 258: 8, 259: 5, 262: 1, 277: 1}
    tags |= {322: tile, 323: tile, 324: 200, 325: 50}
    entries = (struct.pack("<HHII", k, 4, 1, v) for k, v in tags.items())
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return head + b"".join(entries) + bytes(54)

  assert "tiles of 900000000 pixels" in problem(tiff(30_000))
  assert "tiles of" not in problem(tiff(128))  # damaged in another way


def encoded(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def pixels(content):
  return np.asarray(Image.open(io.BytesIO(content)))


def problem(source):
  """Returns why an image cannot be read, or None."""
  try:
    image_io.read_rgb(source)
  except Exception as error:
    return image_io.reason(error)


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


PHOTO = Image.fromarray(noise(20, 30, 3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_plain_file_is_kept_byte_for_byte(kind, tmp_path):
  content = encoded(PHOTO, kind)
  assert image_io.as_rgb_file(content) == (content, 20, 30)
  (tmp_path / "photo").write_bytes(content)  # the name has no suffix
  assert image_io.as_rgb_file(tmp_path / "photo") == (content, 20, 30)


@pytest.mark.parametrize("kind", KINDS)
def test_any_other_file_becomes_a_png_of_the_same_pixels(kind):
  image, suffix, options, _ = KINDS[kind]
  content, height, width = image_io.as_rgb_file(
    encoded(image, suffix, **options)
  )
  again = Image.open(io.BytesIO(content))
  assert (again.format, again.mode, again.size) == ("PNG", "RGB", (6, 4))
  assert (height, width) == (4, 6)
  expected = image_io.to_rgb(stored(image, suffix, **options))
  np.testing.assert_array_equal(np.asarray(again), np.asarray(expected))


def test_a_photo_turned_by_its_tag_is_stored_upright():
  exif = Image.Exif()
  exif[274] = 6
  turned = encoded(PHOTO, "JPEG", exif=exif)
  content, height, width = image_io.as_rgb_file(turned)
  assert (height, width) == (30, 20) == pixels(content).shape[:2]
  flat = pixels(encoded(PHOTO, "JPEG"))
  np.testing.assert_array_equal(pixels(content), np.rot90(flat, -1))
  exif[274] = 1
  upright = encoded(PHOTO, "JPEG", exif=exif)
  assert image_io.as_rgb_file(upright)[0] == upright


def test_sixteen_bit_color_is_stored_in_eight():
  import struct
  import zlib

  def chunk(name, body):
    return (
      struct.pack(">I", len(body))
      + (name + body)
      + struct.pack(">I", zlib.crc32(name + body))
    )

  row = b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0x0100) * 2
  content = b"\x89PNG\r\n\x1a\n" + b"".join(
    [
      chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
      chunk(b"IDAT", zlib.compress(row)),
      chunk(b"IEND", b""),
    ]
  )
  kept, height, width = image_io.as_rgb_file(content)
  assert (height, width) == (1, 2) and kept != content
  assert pixels(kept).tolist() == [[[255, 128, 1]] * 2]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_kept(kind):
  frames = [Image.new("RGB", (6, 4), c) for c in ("red", "blue", "green")]
  options = {"lossless": True} if kind == "WEBP" else {}
  moving = encoded(
    frames[0], kind, save_all=True, append_images=frames[1:], **options
  )
  assert Image.open(io.BytesIO(moving)).n_frames == 3
  content, *_ = image_io.as_rgb_file(moving)
  assert (pixels(content) == (255, 0, 0)).all()
  assert getattr(Image.open(io.BytesIO(content)), "n_frames", 1) == 1


def test_an_image_in_memory_becomes_a_png():
  content, height, width = image_io.as_rgb_file(PHOTO)
  assert (height, width) == (20, 30)
  np.testing.assert_array_equal(pixels(content), np.asarray(PHOTO))


@settings(deadline=None, max_examples=60)
@given(
  x=st.floats(-5, 40),
  y=st.floats(-5, 30),
  w=st.floats(0, 60),
  h=st.floats(0, 60),
)
def test_crops_are_at_whole_pixels_and_inside(x, y, w, h):
  columns = [i for i in range(30) if max(int(x), 0) <= i < int(x + w)]
  rows = [i for i in range(20) if max(int(y), 0) <= i < int(y + h)]
  source = encoded(PHOTO, "PNG")
  if not rows or not columns:
    with pytest.raises(ValueError, match="holds no pixel of 30 x 20"):
      image_io.as_rgb_file(source, (x, y, w, h))
    return
  content, height, width = image_io.as_rgb_file(source, (x, y, w, h))
  assert (height, width) == (len(rows), len(columns))
  expected = np.asarray(PHOTO)[np.ix_(rows, columns)]
  np.testing.assert_array_equal(pixels(content), expected)


def without_pixels():
  """Returns a BMP whose header has a width of 0 pixels."""
  content = bytearray(encoded(PHOTO, "BMP"))
  content[18:22] = bytes(4)
  return bytes(content)


BAD = {
  "empty": (b"", "an empty file"),
  "text": (b"not a picture", "not an image"),
  "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a drawing"),
  "cut": (encoded(PHOTO, "JPEG")[:1000], "truncated"),
  "cut in its head": (encoded(PHOTO, "PNG")[:20], ""),
  "no pixels": (without_pixels(), "no pixels|BMP, damaged"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_pictures_are_explained(kind, tmp_path):
  content, words = BAD[kind]
  (tmp_path / "bad.jpg").write_bytes(content)
  for source in (content, tmp_path / "bad.jpg"):
    found = problem(source)
    assert found and "\n" not in found
    assert any(word in found for word in words.split("|"))
    with pytest.raises(Exception) as refused:  # noqa: B017
      image_io.as_rgb_file(source)
    assert image_io.reason(refused.value) == found


def test_a_missing_file_is_explained(tmp_path):
  assert problem(tmp_path / "no.jpg") == "No such file or directory"


def test_damage_in_a_tiff_is_told_once(capfd):
  """Without a precaution, libtiff would print more lines."""
  content = bytearray(encoded(PHOTO, "TIFF", compression="tiff_lzw"))
  content[100:110] = b"\xff" * 10
  assert problem(bytes(content)) == "damaged"
  assert capfd.readouterr().err == ""
