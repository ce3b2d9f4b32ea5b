"""(to be replaced at the merge)"""

import difflib

from deepemd_jax.data.published import catalogue
from deepemd_jax.errors import InputError


def _folder_side(name: str, size: int) -> int:
  suffix = name.partition(":")[2]
  if not suffix:
    return -(-size * 160 // 84)
  if suffix == "original":
    return 0
  if suffix.isdecimal() and 16 <= int(suffix) <= 1024:
    return int(suffix)
  raise InputError(
    f"data set {name!r}: {suffix!r} is no size of stored copies; use "
    "folder:original or a side of 16 to 1024 pixels, such as folder:160"
  )


def check_name(name: str, image_size: int) -> None:
  """Refuses what is not the name of a data set."""
  plain = name.partition(":")[0]
  if plain == "folder":
    _folder_side(name, image_size)
  elif plain in catalogue.BENCHMARKS:
    catalogue.parse(name)
  elif name != "glyph_clutter":
    known = ("glyph_clutter", "folder", *catalogue.BENCHMARKS)
    near = difflib.get_close_matches(plain, known, 2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
      f"there is no data set {name!r}; {hint}There are {', '.join(known)}"
    )
