"""Links in a folder of images: one that leads out of the folder is refused.

In a stranger's folder such a link may show any file of this machine. A link
that stays inside is followed, and so is one that is given as the folder itself.
"""

import os
import pathlib

from deepemd_jax.errors import InputError


def refuse_outside(path: str | os.PathLike, inside: str) -> None:
  """Refuses a path that a link, at its end or before, leads out of a folder.

  A link to nothing, or to itself, passes: whoever reads it gets an `OSError`.

  Args:
    path: in the folder.
    inside: the folder, without links: its `os.path.realpath`.

  Raises:
    InputError: the path leads out.
  """
  real = os.path.realpath(path)
  if not pathlib.Path(real).is_relative_to(inside):
    raise InputError(
      f"{os.fspath(path)!r} is a path or link out of the image folder, to "
      f"{real!r}; copy the files into the folder, or give the place that it "
      "leads to"
    )
