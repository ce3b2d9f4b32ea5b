"""Decides which files of a folder are pictures and which are system files.

A file is a picture if its first bytes or its name say so. So a damaged picture,
or one in an unsupported format, counts as a picture, and opening it reports an
error. No picture is omitted without a message.
"""

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
import re
import stat

# The formats that Pillow decodes by itself and recognizes by the first bytes.
# EPS and WMF are left out because they would run another program, and some
# formats because they have no decoder.
FORMATS = (
  *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"),
  *("PPM", "QOI", "PSD", "DIB", "ICO", "CUR", "ICNS", "DDS", "PCX", "DCX"),
  *("SGI", "SUN", "MSP", "XBM", "XPM", "TGA"),
)
# The formats that another package decodes: their usual name, the package's name
# for pip, and the module that registers the decoder with Pillow.
PLUGINS = {
  "HEIF": ("HEIC", "pillow-heif", "pillow_heif.HeifImagePlugin"),
  "JXL": ("JPEG XL", "pillow-jxl-plugin", "pillow_jxl"),
}
SAVE = "save it as JPEG or PNG"
RAW = f"a camera's raw file; {SAVE}"
_DRAWING = f"a drawing, not a photograph; {SAVE}"
_UNKNOWN = f"an image format that cannot be read; {SAVE}"
# The usual endings, for messages.
USUAL = ".jpg, .png, .webp, .heic and others"
_SUFFIXES = frozenset(
  (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng"),
    *(".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".qoi", ".psd", ".ico", ".cur", ".icns", ".dds", ".pcx", ".dcx"),
    *(".sgi", ".rgb", ".rgba", ".bw", ".ras", ".msp", ".xbm", ".xpm", ".tga"),
    *(".icb", ".vda", ".vst", ".heic", ".heics", ".heif", ".heifs", ".hif"),
    # These formats cannot be read without a plug-in, or at all. An error names
    # such files.
    *(".jxl", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".dng", ".cr2", ".cr3"),
    *(".crw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f", ".mrw", ".3fr"),
    *(".iiq", ".rwl", ".kdc", ".dcr", ".erf", ".mef", ".mos", ".svg", ".svgz"),
    *(".eps", ".wmf", ".emf", ".psb", ".xcf", ".exr", ".hdr", ".djvu", ".pcd"),
    *(".pfm", ".fit", ".fits", ".blp", ".ftc", ".ftu", ".fli", ".flc", ".pxr"),
  )
)
HEAD = 256  # the number of bytes that `kind` needs
_BEGINNINGS = (
  (rb"\xff\xd8\xff", "JPEG"),
  (rb"\x89PNG\r\n\x1a\n", "PNG"),
  (rb"GIF8[79]a", "GIF"),
  (rb"RIFF....WEBP", "WEBP"),
  (rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
  (rb"FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|II\*\0.{4}CR|\0MRM|FOVb", RAW),
  (rb"....ftypcrx |II\x1a\0\0\0HEAPCCDR", RAW),
  (rb"II[*+]\0|MM\0[*+]", "TIFF"),
  (rb"....ftypavi[fs]|....ftyp(?:mif1|msf1|miaf).{4,40}avi[fs]", "AVIF"),
  (rb"....ftyp(?:he[iv][cxms]|mif1|msf1)", "HEIF"),
  (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG2000"),
  (rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a", "JXL"),
  (rb"8BPS\0\x01", "PSD"),
  (rb"\0\0[\1\2]\0[\1-\x40]\0..[^\0]?\0", "ICO"),
  (rb"P[56]\s+[\d#]", "PPM"),
  (rb"\n[\0-\5]\x01[\1\2\4\x08]", "PCX"),
  (rb"\x01\xda[\0\1][\1\2]\0[\1-\3]", "SGI"),
  (rb"qoif", "QOI"),
  (rb"DDS ", "DDS"),
  (rb"icns", "ICNS"),
  (rb"\xb1\x68\xde\x3a", "DCX"),
  (rb"\x59\xa6\x6a\x95", "SUN"),
  (rb"DanM|LinS", "MSP"),
  (rb"/\* XPM \*/", "XPM"),
  (rb"%!PS-Adobe-[^\n]*EPSF|\xc5\xd0\xd3\xc6|\xd7\xcd\xc6\x9a", _DRAWING),
  (rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*?)?<svg[\s>]", _DRAWING),
  (rb"8BPS\0\x02|gimp xcf|v/1\x01|#\?RADIANCE|AT&TFORM|SIMPLE  =", _UNKNOWN),
  (rb"BLP[12]|FTEX|..[\x11\x12]\xaf", _UNKNOWN),
)
_KINDS = [(re.compile(begin, re.DOTALL), kind) for begin, kind in _BEGINNINGS]
# The files and folders of file systems, archives and programs, in lower case.
_SYSTEM = frozenset(
  (
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    *("@eadir", "#recycle", "@recycle", "__macosx", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__", "#snapshot"),
    *("network trash folder", "temporary items", "recycler"),
  )
)


def is_system(name: str) -> bool:
  """Returns whether a name is that of a hidden or system file or folder."""
  return name.startswith(".") or name.lower() in _SYSTEM


def kind(head: bytes) -> str | None:
  """Identifies a file by its first `HEAD` bytes.

  Returns:
    Pillow's name of the format, or a message about a picture that cannot be
    read, or None if these bytes do not look like a picture.
  """
  return next((name for begin, name in _KINDS if begin.match(head)), None)


def is_picture(path: str | os.PathLike) -> bool:
  """Returns whether a file is a picture.

  The function reads the first bytes only if the name does not decide. It opens
  no pipe or device.
  """
  if os.path.splitext(path)[1].lower() in _SUFFIXES:
    return True
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):
      return False
    with open(path, "rb") as file:
      return kind(file.read(HEAD)) is not None
  except OSError:
    return False


def formats(head: bytes) -> tuple[str, ...]:
  """Returns the formats to try on a file with these first bytes.

  The function loads the plug-in that the file needs, if it is installed.
  """
  name = kind(head)
  if name is None or not _has_plugin(name):
    return FORMATS
  importlib.import_module(PLUGINS[name][2])
  return (name,)


def why_not_read(head: bytes) -> str:
  """Returns the message if no format fits a file with these first bytes."""
  name = kind(head)
  if name is None:
    return "not an image"
  if name in PLUGINS and not _has_plugin(name):
    title, package, _ = PLUGINS[name]
    return f"{title} is not read yet; run pip install {package}, or {SAVE}"
  if name in FORMATS or name in PLUGINS:
    title = PLUGINS[name][0] if name in PLUGINS else name
    return f"{title}, damaged or of a rare type; {SAVE}"
  return name


def _has_plugin(name: str | None) -> bool:
  if name not in PLUGINS:
    return False
  module = PLUGINS[name][2].partition(".")[0]
  return importlib.util.find_spec(module) is not None


@functools.cache
def hush_libtiff() -> None:
  """Stops the messages of libtiff on stderr, because Pillow raises an error.

  This has no effect where Pillow hides libtiff, as on Windows.
  """
  from PIL import Image

  with contextlib.suppress(OSError, AttributeError):
    libtiff = ctypes.CDLL(Image.core.__file__)
    libtiff.TIFFSetErrorHandler(None)
    libtiff.TIFFSetWarningHandler(None)
