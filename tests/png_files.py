"""Encoded images in memory, for tests of image sets."""

import io

from PIL import Image


class PngFiles:
  """A list of PNG files in memory."""

  def __init__(self, pixels):
    self._files = []
    for each in pixels:
      file = io.BytesIO()
      Image.fromarray(each).save(file, "PNG")
      self._files.append(file.getvalue())

  def read(self, rows):
    return [self._files[row] for row in rows]
