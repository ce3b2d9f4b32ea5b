"""Every kind of input becomes the same RGB image, or is refused."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from deepemd_jax.data import image_input
from deepemd_jax.errors import InputError


@pytest.fixture
def pixels():
  return np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def decoded(source):
  image, size = image_input.decode(image_input.read(source)[1])
  assert size == (image.height, image.width)
  return np.asarray(image)


def test_a_path_a_picture_and_arrays_show_the_same(pixels, tmp_path):
  Image.fromarray(pixels).save(tmp_path / "a.png")
  opaque = np.concatenate([pixels, np.full((5, 7, 1), 255, np.uint8)], 2)
  for source in (
    tmp_path / "a.png",
    str(tmp_path / "a.png"),
    Image.fromarray(pixels),
    pixels,
    opaque,
    pixels.astype(np.int64),
    pixels.astype(np.uint16) * 257,
    (pixels / 255).astype(np.float32),
  ):
    np.testing.assert_array_equal(decoded(source), pixels)


def test_gray_arrays(pixels):
  gray = pixels[..., 0]
  expected = np.repeat(gray[..., None], 3, 2)
  np.testing.assert_array_equal(decoded(gray), expected)
  np.testing.assert_array_equal(decoded(gray[..., None]), expected)
  np.testing.assert_array_equal(decoded(gray > 99), 255 * (expected > 99))


@pytest.mark.parametrize(
  ("source", "reason"),
  [
    (np.zeros((4, 4, 5), np.uint8), r"not \[4, 4, 5\]"),
    (np.zeros(9), r"not \[9\]"),
    (np.zeros((0, 4)), "without pixels"),
    (np.full((4, 4), 2.0), r"must lie in 0\.\.1"),
    (np.full((4, 4), np.nan), r"must lie in 0\.\.1"),
    (np.full((4, 4), -1), r"must lie in 0\.\.255"),
    (np.full((4, 4), "x"), "is not an image"),
    (None, "not"),
  ],
)
def test_arrays_that_are_no_image(source, reason):
  with pytest.raises(ValueError, match=reason):
    image_input.read(source)


def test_paths_that_are_no_image(tmp_path):
  os.mkfifo(tmp_path / "pipe.png")
  (tmp_path / "folder.png").mkdir()
  with open(tmp_path / "large.png", "wb") as file:
    file.truncate(2**30 + 1)
  for name in ("pipe.png", "folder.png"):
    with pytest.raises(ValueError, match="not a file"):
      image_input.read(tmp_path / name)
  with pytest.raises(ValueError, match="1 GiB"):
    image_input.read(tmp_path / "large.png")
  with pytest.raises(OSError, match="No such file"):
    image_input.read(tmp_path / "absent.png")


def test_what_identifies_an_image(pixels, tmp_path):
  """A file is identified by its bytes, and an array by its pixels and shape."""
  Image.fromarray(pixels).save(tmp_path / "a.png")
  (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
  first, second = (
    image_input.read(tmp_path / x)[0] for x in ("a.png", "b.png")
  )
  assert first == second
  assert (
    image_input.read(pixels)[0] == image_input.read(Image.fromarray(pixels))[0]
  )
  turned = pixels.reshape(7, 5, 3)
  assert image_input.read(turned)[0] != image_input.read(pixels)[0]


def test_several(pixels):
  stack = np.stack([pixels] * 2)
  assert len(image_input.several(stack)) == 2
  assert len(image_input.several(stack[..., 0])) == 2
  assert image_input.several(np.array(["a.png", "b.png"])) == ["a.png", "b.png"]
  assert image_input.several(("a.png",)) == ["a.png"]
  one = [pixels, pixels[..., 0], "a.png", Image.fromarray(pixels)]
  for image in one:
    with pytest.raises(InputError, match="one image"):
      image_input.several(image)
  with pytest.raises(InputError, match="not a int"):
    image_input.several(5)


def test_a_small_copy_to_look_at_is_turned_as_the_image():
  rng = np.random.default_rng(0)
  coarse = Image.fromarray(rng.integers(0, 256, (5, 8, 3), np.uint8))
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter turn
  file = io.BytesIO()
  coarse.resize((800, 500)).save(file, "JPEG", exif=exif, quality=95)
  content = file.getvalue()
  whole = image_input.decode(content)[0]
  small = image_input.decode_small(content, 200 * 200)
  assert whole.size == (500, 800) and small.size == (125, 200)
  found, expected = (
    np.asarray(x.resize((10, 16)), int) for x in (small, whole)
  )
  assert np.abs(found - expected).mean() < 3
  assert image_input.decode_small(whole, 200 * 200).size == (500, 800)
