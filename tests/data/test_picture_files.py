"""Pictures are recognized by their first bytes, whatever their names.

For those that cannot be read, the message says what to do. Files of the system
are not pictures.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from deepemd_jax.data import folder, image_io, image_set, picture_files

# Formats that are not read. They run another program, have no decoder, unpack
# without a limit, or have no fixed first bytes.
NOT_TAKEN = {
  *("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FITS", "SPIDER", "IM"),
  *("BLP", "FLI", "FTEX", "GBR", "IMT", "IPTC", "MCIDAS", "PCD", "PIXAR"),
  *("XVTHUMB", "MPO", "HEIF"),  # MPO opens as the JPEG that it begins with
}
BY_NAME = {"DIB", "TGA", "XBM", "CUR"}  # their first bytes are not fixed
PHOTO = Image.new("RGB", (16, 16), (200, 40, 40))
HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(99)
FILES = ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini")
FOLDERS = (
  *("@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "#recycle"),
  *("lost+found", "System Volume Information"),
)


def encoded(kind):
  """Returns a small picture in a format, or None if Pillow cannot write it."""
  for image in (PHOTO, PHOTO.convert("1")):
    file = io.BytesIO()
    try:
      image.save(file, kind)
      return file.getvalue()
    except (OSError, KeyError, ValueError):
      continue


def test_every_format_of_pillow_is_taken_or_left_out_on_purpose():
  Image.init()
  assert set(picture_files.FORMATS) == set(Image.OPEN) - NOT_TAKEN
  written = set(picture_files.FORMATS) & set(Image.SAVE)
  assert len(written) > 15
  for kind in sorted(written):
    content = encoded(kind)
    image, size = image_io.read_upright(content)
    assert image.mode == "RGB" and size == image.size[::-1], kind
    found = picture_files.kind(content[: picture_files.HEAD])
    assert found == (None if kind in BY_NAME else kind)


def test_every_name_that_pillow_knows_counts(tmp_path):
  Image.init()
  for suffix, kind in Image.registered_extensions().items():
    if kind in picture_files.FORMATS or kind == "HEIF":
      assert picture_files.is_picture(tmp_path / f"a{suffix.upper()}"), suffix


@pytest.mark.parametrize("name", ["x.jfif", "x.jpe", "x.JPEG~", "x", "x.heic"])
def test_a_jpeg_of_any_name_is_an_image_everywhere(name, tmp_path):
  path = tmp_path / "cats" / name
  path.parent.mkdir()
  path.write_bytes(encoded("JPEG"))
  (path.parent / "notes").write_text("P1 is not a picture, nor BM, nor II*")
  assert folder.below(tmp_path) == [path]
  assert folder.classes(tmp_path) == {"cats": [path]}
  assert folder.listing(tmp_path)["train"] == {"cats": [path]}
  assert image_io.read_rgb(path).size == (16, 16)


def tiff(**tags):
  """Returns a TIFF with additional tags."""
  file = io.BytesIO()
  info = {int(name[1:]): value for name, value in tags.items()}
  PHOTO.save(file, "TIFF", tiffinfo=info)
  return file.getvalue()


@pytest.mark.parametrize(
  ("name", "content", "reason"),
  [
    ("a.heic", HEIC, "HEIC is not read yet; run pip install pillow-heif"),
    ("a", HEIC.replace(b"heic", b"mif1", 1), "pip install pillow-heif"),
    ("a.jxl", b"\xff\x0a" + bytes(60), "pip install pillow-jxl-plugin"),
    ("a.cr2", b"II*\0\x10\0\0\0CR\2\0" + bytes(60), "a camera's raw file"),
    ("a.raf", b"FUJIFILMCCD-RAW 0201" + bytes(60), "a camera's raw file"),
    ("a.nef", tiff(_271="NIKON", _254=1), "a camera's raw file; save it as"),
    ("a.dng", tiff(_50706=b"\1\4\0\0"), "a camera's raw file; save it as"),
    ("a.svg", b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "a drawing"),
    ("a.psb", b"8BPS\0\2" + bytes(60), "an image format that cannot be read"),
    ("a.avif", b"\0\0\0\x1cftypavif" + bytes(60), "AVIF, damaged or of a rare"),
    ("a.jpg", b"words", "not an image"),
  ],
)
def test_pictures_that_cannot_be_read_are_named(
  name, content, reason, tmp_path, monkeypatch
):
  monkeypatch.setattr(picture_files, "_has_plugin", lambda name: False)
  (tmp_path / name).write_bytes(content)
  assert folder.below(tmp_path) == [tmp_path / name]
  with pytest.raises(ValueError) as refused:
    image_io.read_rgb(tmp_path / name)
  assert reason in image_io.reason(refused.value)


def test_an_installed_plug_in_reads_its_kind(tmp_path, monkeypatch):
  """The plug-in reads a PNG after the head of a HEIC, like pillow-heif."""
  (tmp_path / "stub_heif.py").write_text(
    "import io\n"
    "from PIL import Image, PngImagePlugin\n"
    "def opening(file, name):\n"
    "  content = io.BytesIO(file.getvalue()[16:])\n"
    "  return PngImagePlugin.PngImageFile(content)\n"
    "Image.register_open('HEIF', opening, lambda x: x[4:8] == b'ftyp')\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  plugin = ("HEIC", "pillow-heif", "stub_heif")
  monkeypatch.setitem(picture_files.PLUGINS, "HEIF", plugin)
  monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
  monkeypatch.setattr(Image, "ID", list(Image.ID))
  image = image_io.read_rgb(HEIC[:16] + encoded("PNG"))
  assert image.getpixel((3, 3)) == (200, 40, 40)


@pytest.mark.parametrize("name", FILES + FOLDERS)
def test_system_files_are_neither_images_nor_classes(name, tmp_path, capfd):
  path = tmp_path / "cats" / "1.png"
  path.parent.mkdir()
  PHOTO.save(path)
  for place in (tmp_path, path.parent):
    if name in FOLDERS:
      (place / name).mkdir()
      PHOTO.save(place / name / "0.png")
    else:
      (place / name).write_bytes(encoded("PNG"))
  assert folder.below(tmp_path) == [path]
  assert folder.classes(tmp_path) == {"cats": [path]}
  assert folder.listing(tmp_path)["train"] == {"cats": [path]}
  assert capfd.readouterr().err == ""


def test_directories_without_pictures_are_no_classes(tmp_path, capfd):
  path = tmp_path / "cats" / "1.png"
  path.parent.mkdir()
  PHOTO.save(path)
  (tmp_path / "dogs").mkdir()
  (tmp_path / "notes").mkdir()
  (tmp_path / "notes" / "a.txt").write_text("not a picture")
  assert folder.classes(tmp_path) == {"cats": [path]}
  said = capfd.readouterr().err.splitlines()
  assert [line.split("/")[-1] for line in said] == [
    f"{name}' is not a class: it holds no images" for name in ("dogs", "notes")
  ]
  assert folder.listing(tmp_path)["train"] == {"cats": [path]}


def png_of(width, height):
  """Returns a PNG whose header has so many pixels, but which has no pixels."""
  head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b""))
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(content))
    + kind
    + content
    + struct.pack(">I", zlib.crc32(kind + content))
    for kind, content in chunks
  )


@pytest.fixture
def of_100_pixels(monkeypatch):
  """Makes images of more than 100 pixels count as large."""
  monkeypatch.setattr(image_io, "WHOLE", 100)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turned", [False, True])
def test_large_images_become_smaller_ones(kind, turned, of_100_pixels):
  """The size that is returned is that of the upright original."""
  exif = Image.Exif()
  exif[274] = 6 if turned else 1
  picture = Image.new("RGB", (40, 20), "blue")
  picture.paste("red", (0, 0, 20, 20))
  file = io.BytesIO()
  picture.save(file, kind, exif=exif, quality=100)
  image, size = image_io.read_upright(file.getvalue())
  assert size == ((40, 20) if turned else (20, 40))
  width, height = image.size
  assert 25 <= width * height <= 100
  assert (width > height) == (not turned)
  red, blue = image.getpixel((0, 0)), image.getpixel((width - 1, height - 1))
  assert red[0] > 200 > 60 > red[2] and blue[2] > 200 > 60 > blue[0]


def test_other_modes_become_smaller_too(of_100_pixels):
  for mode in ("1", "P", "LA", "RGBA", "I;16", "CMYK"):
    file = io.BytesIO()
    kind = "TIFF" if mode == "CMYK" else "PNG"
    Image.new(mode, (41, 23)).save(file, kind)
    image, size = image_io.read_upright(file.getvalue())
    assert size == (23, 41) and image.mode == "RGB", mode
    assert image.width * image.height <= 100


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ("", "16000 x 16000 pixels; at most 250 million are allowed: make it sm"),
    (
      "0.5",
      "at most 0.5 million are allowed.* DEEPEMD_MAX_MEGAPIXELS to a larger",
    ),
    ("lots", "DEEPEMD_MAX_MEGAPIXELS is 'lots'; use a number above 0"),
    ("nan", "DEEPEMD_MAX_MEGAPIXELS is 'nan'"),
  ],
)
def test_the_limit_is_said_and_can_be_set(given, message, monkeypatch):
  monkeypatch.setenv(image_io.VARIABLE, given)
  with pytest.raises(Exception, match=message):  # noqa: B017
    image_io.read_rgb(png_of(16_000, 16_000))


def test_200_megapixels_are_opened_beside_a_limit_of_somebody_else():
  """Pillow's limit for the whole process would refuse them."""
  assert Image.MAX_IMAGE_PIXELS < 1e8
  with image_io.open_image(png_of(16_320, 12_240)) as image:
    assert image.size == (16_320, 12_240)
  with pytest.raises(image_io.TooLarge, match="at most 250"):
    image_io.open_image(png_of(2**16, 2**16))


def test_boxes_are_in_pixels_of_the_original(of_100_pixels, tmp_path):
  picture = Image.new("RGB", (400, 200), "blue")
  picture.paste("red", (0, 0, 200, 200))
  picture.save(tmp_path / "a.png")
  boxes = np.array([[0, 0, 150, 200], [250, 0, 400, 200]])
  left, right = image_set._resized_crops(str(tmp_path / "a.png"), boxes, 4)
  assert (left == (255, 0, 0)).all() and (right == (0, 0, 255)).all()
  copy, size = image_set.decode_copy(str(tmp_path / "a.png"), 4)
  assert size == (200, 400) and copy.shape == (4, 4, 3)
