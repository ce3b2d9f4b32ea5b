"""The recipes of the program, and their folder.

In a checkout they are the files of the top-level folder `configs/`. A wheel has
the same files in `deepemd_jax/recipes/`. In both cases `cub`, `cub.py` and
`configs/cub.py` name the same recipe, from any folder.
"""

import difflib
import pathlib

from deepemd_jax.errors import InputError

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent


def folder() -> pathlib.Path:
  """Returns the folder of the recipes."""
  installed = _PACKAGE / "recipes"
  return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
  """Returns the names of the recipes, sorted: "cars196", "cifar_fs", ..."""
  return sorted(p.stem for p in folder().glob("*.py") if p.stem != "__init__")


def find(argument: str) -> str:
  """Replaces a recipe's name in a value of --config by the path of its file.

  Args:
    argument: a recipe's name or the path of a user's own file. Variants may
      follow after a colon, as in `cub:grid,5shot`.

  Returns:
    The path of a file that exists, with the variants.

  Raises:
    InputError: there is no such file.
  """
  name, colon, variants = argument.partition(":")
  path = pathlib.Path(name)
  if path.is_file():
    return argument
  recipe = path.name.removesuffix(".py")
  if path.parent in (pathlib.Path(), pathlib.Path("configs")):
    if recipe in names():
      return f"{folder() / recipe}.py{colon}{variants}"
  if near := difflib.get_close_matches(recipe, names(), 1):
    hint = f"did you mean configs/{near[0]}.py?"
  else:
    files = ", ".join(f"{known}.py" for known in names())
    hint = f"the files in configs/ are {files}"
  raise InputError(f"no config file {name!r}; {hint}")
