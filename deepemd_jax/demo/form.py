"""Reads the form that a browser sends: classes, images and settings.

The form has a field `name` for each class. The fields `support0`, `support1`,
... have the files of the first class, the second class, and so on. The field
`query` has one file. The fields `variant` and `solver` are optional. The names
of files appear only in messages; no file with such a name is opened.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image
from werkzeug import Request
from werkzeug.datastructures import FileStorage

from deepemd_jax.data import image_io
from deepemd_jax.data import names as names_of_files
from deepemd_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Limits:
  """The limits of one classification.

  Attributes:
    file: bytes of an image file.
    request: bytes of the whole request.
    classes: number of classes.
    images: number of images of one class.
    name: characters in the name of a class.
    pixels: pixels of one image, which are counted before decoding.
    all_pixels: pixels of all images together. They are in memory at the same
      time, with 3 bytes each.
  """

  file: int = 20 * 2**20
  request: int = 100 * 2**20
  classes: int = 10
  images: int = 10
  name: int = 60
  pixels: int = 50_000_000
  all_pixels: int = 300_000_000

  def parts(self) -> int:
    """Returns the largest number of fields and files of a form."""
    return self.classes * (self.images + 1) + 3


class Refused(InputError):
  """The form cannot be classified.

  Attributes:
    status: the HTTP status.
    where: the place of the error: {"class": number, "image": number},
      {"class": number}, {"query": True}, or {}. Numbers start at 0.
  """

  def __init__(self, status: int, message: str, **where):
    super().__init__(message)
    self.status = status
    self.where = where


class Upload(Request):
  """A request whose files stay in memory until it is closed."""

  def __init__(self, environ):
    # A reference from the environment back to the request would be a cycle,
    # and would keep the files until Python's garbage collection.
    super().__init__(environ, populate_request=False)

  def _get_file_stream(self, *arguments, **options) -> io.BytesIO:
    return io.BytesIO()


class Form(NamedTuple):
  """An image to classify, and the examples.

  Attributes:
    names: the names of the classes, in the order of the form.
    support: the RGB images of each class, at least one.
    query: the RGB image to classify.
    variant: the name of the kind of nodes, or None; not checked yet.
    solver: the name of the EMD solver, or None; not checked yet.
  """

  names: list[str]
  support: list[list[Image.Image]]
  query: Image.Image
  variant: str | None
  solver: str | None


def read(request: Upload, limits: Limits) -> Form:
  """Reads a form.

  Raises:
    Refused: a part is missing, too large or not an image, or there are too many
      parts.
    werkzeug.exceptions.RequestEntityTooLarge: there are more bytes or parts
      than the request's own limits.
  """
  if request.mimetype != "multipart/form-data":
    raise Refused(415, "send a multipart form (multipart/form-data)")
  names = _names(request.form.getlist("name"), limits)
  files = [
    _chosen(request.files.getlist(f"support{k}")) for k in range(len(names))
  ]
  known = {"query", *(f"support{k}" for k in range(len(names)))}
  for field in request.files:
    if field not in known:
      raise Refused(400, f"there is no class for the files {_quoted(field)}")
  for k, (name, uploads) in enumerate(zip(names, files, strict=True)):
    where = {"class": k}
    if not uploads:
      raise Refused(400, f"{_quoted(name)} has no image; add one", **where)
    if len(uploads) > limits.images:
      raise Refused(
        413,
        f"{len(uploads)} images of {_quoted(name)}; at most {limits.images} "
        "per class are allowed",
        **where,
      )
  queries = _chosen(request.files.getlist("query"))
  if len(queries) != 1:
    message = f"{len(queries)} queries; give one" if queries else "add a query"
    raise Refused(400, message, query=True)
  everything = [
    ({"class": k, "image": i}, file)
    for k, uploads in enumerate(files)
    for i, file in enumerate(uploads)
  ] + [({"query": True}, queries[0])]
  *support, query = _images(everything, limits)
  images = iter(support)
  return Form(
    names,
    [[next(images) for _ in uploads] for uploads in files],
    query,
    request.form.get("variant") or None,
    request.form.get("solver") or None,
  )


def _names(fields: list[str], limits: Limits) -> list[str]:
  if len(fields) > limits.classes:
    raise Refused(
      413, f"{len(fields)} classes; at most {limits.classes} are allowed"
    )
  names = [" ".join(name.split()) for name in fields]
  for k, name in enumerate(names):
    where = {"class": k}
    if not name:
      raise Refused(400, f"class {k + 1} has no name; give it one", **where)
    if len(name) > limits.name:
      raise Refused(
        400,
        f"this name has {len(name)} characters; at most {limits.name} are "
        "allowed",
        **where,
      )
    if names_of_files.same(name) in map(names_of_files.same, names[:k]):
      raise Refused(400, f"two classes are called {_quoted(name)}", **where)
  if len(names) < 2:
    raise Refused(400, "give at least two classes")
  return names


def _chosen(files: list[FileStorage]) -> list[FileStorage]:
  """Removes the empty file without a name that a browser sends for no file."""
  return [file for file in files if file.filename]


def _images(files: Iterable[tuple[dict, FileStorage]], limits: Limits):
  """Decodes files, each of which comes with its `Refused.where`."""
  left = limits.all_pixels
  for where, file in files:
    name = _quoted(file.filename or "")
    content = file.read()
    if len(content) > limits.file:
      raise Refused(
        413,
        f"{name} has {len(content) / 2**20:.1f} MiB; at most "
        f"{limits.file / 2**20:g} are allowed; send a smaller one",
        **where,
      )
    try:
      # `with image:` would close only the file and keep the pixels.
      with contextlib.closing(image_io.open_image(content)) as image:
        size = f"{image.width} x {image.height} pixels"
        image_io.shrink_while_decoding(image, limits.pixels)
        count = image.width * image.height
        if count <= min(limits.pixels, left):
          rgb = image_io.to_rgb(image)
    except image_io.TooLarge as error:
      raise Refused(413, f"{name}: {error}", **where) from error
    except Exception as error:  # decoders raise errors of many types
      raise Refused(
        415, f"{name} cannot be read: {image_io.reason(error)}", **where
      ) from error
    if count > limits.pixels:
      raise Refused(
        413,
        f"{name} has {size}; at most {limits.pixels / 1e6:g} million are "
        "allowed; make it smaller, or save it as JPEG",
        **where,
      )
    left -= count
    if left < 0:
      raise Refused(
        413,
        f"the images up to {name} have more than {limits.all_pixels / 1e6:g} "
        "million pixels together; give fewer or smaller ones",
        **where,
      )
    yield rgb  # pyrefly: ignore[unbound-name]: otherwise it was refused above


def _quoted(name: str) -> str:
  """Returns a name for messages, short and with printable characters only."""
  text = "".join(c if c.isprintable() else "\ufffd" for c in name)
  return f"“{text[:60]}{'…' if text[60:] else ''}”"
