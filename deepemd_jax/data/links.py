"""Refuses links that lead out of a folder of images.

In a folder from a stranger, such a link may expose any file of this machine. A
link that stays inside is followed. The folder itself may also be a link.
"""

import os
import pathlib

from deepemd_jax.errors import InputError


def refuse_outside(path: str | os.PathLike, inside: str) -> None:
  """Raises an error if a link in any part of a path leads out of a folder.

  A broken link or a link to itself passes, because reading it raises an
  `OSError`.

  Args:
    path: a path in the folder.
    inside: the folder without links, its `os.path.realpath`.

  Raises:
    InputError: the path leads out of the folder.
  """
  real = os.path.realpath(path)
  if not pathlib.Path(real).is_relative_to(inside):
    raise InputError(
      f"{os.fspath(path)!r} is a path or link out of the image folder, to "
      f"{real!r}; copy the files into the folder, or give that place instead"
    )
