"""Tests of the structure of the package, which read its source.

They check which part may import which, how many layers there are, and how long
files and functions are.
"""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest
from paths import ROOT

PACKAGE = ROOT / "deepemd_jax"
# The package's `__init__.py` is left out: it only loads names on first use.
FILES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})

# part -> the parts that it may import, besides itself. A part is a folder or a
# file of the package. Registries (of stages, commands, backbones, solvers) load
# functions by a path in a string. Through a registry a lower part can start a
# higher one without an import, and this does not count as an arrow.
MAY_IMPORT = {
  "errors": set(),
  "utils": set(),
  "emd": set(),
  "distributed": {"errors", "utils"},
  "models": {"emd", "errors", "utils"},
  "data": {"errors", "utils"},
  "config": {"data", "emd", "errors", "mistakes", "models", "utils"},
  "checkpoints": {"config", "distributed", "errors", "models", "utils"},
  "evaluation": {
    *("checkpoints", "config", "data", "distributed", "emd", "errors"),
    *("models", "utils"),
  },
  "training": {
    *("checkpoints", "config", "data", "distributed", "emd", "errors"),
    *("evaluation", "inference", "models", "utils"),
  },
  "inference": {
    *("checkpoints", "config", "data", "distributed", "emd", "errors"),
    *("evaluation", "models", "utils"),
  },
  "demo": {
    *("checkpoints", "config", "data", "emd", "errors", "evaluation"),
    *("inference", "models", "utils"),
  },
  "mistakes": {"errors", "utils"},
  "main": {"config", "distributed", "errors", "mistakes", "utils"},
  "__main__": {"errors", "mistakes", "utils"},
}
MOST_LAYERS = 7
MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 60
# These functions are tables, which may be longer: all fields of a config.
TABLES = {"get_config"}
# Each of these third-party packages may be imported only by the given files, or
# by files of the given parts.
ONLY_IN = {
  "flax": {"models/", "evaluation/protocol.py"},
  "orbax": {"checkpoints/manager.py"},
  "tensorstore": {"checkpoints/integrity.py"},
  "tensorboardX": {"training/metric_log.py"},
  "matplotlib": {"evaluation/plots.py"},
  "tensorflow": set(),
  "tqdm": {"utils/progress.py"},
  "ot": {"emd/network_simplex.py"},
  "jaxopt": {"emd/regularized_qp.py"},
  "sklearn": {"inference/estimator.py"},
  "werkzeug": {"demo/form.py", "demo/server.py"},
}


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text())


def name_of(path: pathlib.Path) -> str:
  return str(path.relative_to(ROOT))


def part_of(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: pathlib.Path):
  """Yields every name that a file imports, in full: package.module.name."""
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(path: pathlib.Path) -> set[str]:
  """Returns the other parts that a file imports."""
  parts = set()
  for name in imports(path):
    package, *rest = name.split(".")
    if package == "deepemd_jax" and rest and rest[0] in MAY_IMPORT:
      parts.add(rest[0])
  return parts - {part_of(path)}


def functions(path: pathlib.Path):
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      yield node


def test_the_table_has_every_part():
  assert {part_of(path) for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_parts_import_only_what_they_may(path):
  foreign = parts_imported(path) - MAY_IMPORT[part_of(path)]
  assert not foreign, f"{name_of(path)} imports {foreign}"
  for name in imports(path):
    package = name.partition(".")[0]
    if package in ONLY_IN:
      allowed = ONLY_IN[package]
      own = path.relative_to(PACKAGE)
      assert {own.as_posix(), f"{own.parts[0]}/"} & allowed, name


def test_the_package_has_at_most_seven_layers():
  """A part is above all parts that it imports, so a cycle has no layer."""
  arrows: dict[str, set[str]] = {}
  for path in FILES:
    arrows.setdefault(part_of(path), set()).update(parts_imported(path))
  layers: dict[str, int] = {}
  while len(layers) < len(arrows):
    next_layer = {
      part: 1 + max((layers[below] for below in arrows[part]), default=0)
      for part in arrows.keys() - layers.keys()
      if arrows[part] <= layers.keys()
    }
    assert next_layer, f"a circle among {arrows.keys() - layers.keys()}"
    layers |= next_layer
  assert max(layers.values()) <= MOST_LAYERS, layers


def module_of(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts).removesuffix(".__init__")


def test_no_two_files_import_each_other_in_a_circle():
  modules = {module_of(path): path for path in FILES}
  arrows = {
    module: {name for name in imports(path) if name in modules} - {module}
    for module, path in modules.items()
    if path.name != "__init__.py"  # it only passes names on
  }
  left = dict(arrows)
  while left:
    free = [m for m, below in left.items() if not below & left.keys()]
    assert free, f"a circle among {sorted(left)}"
    for module in free:
      del left[module]


@pytest.mark.parametrize(
  "folder", ["deepemd_jax", "configs", "benchmarks", "tests"]
)
def test_files_and_functions_are_short(folder):
  for path in sorted((ROOT / folder).rglob("*.py")):
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES_OF_A_FILE, f"{name_of(path)}: {lines} lines"
    for function in functions(path):
      lines = function.end_lineno - function.lineno + 1
      is_table = function.name in TABLES
      assert is_table or lines <= MOST_LINES_OF_A_FUNCTION, (
        f"{name_of(path)}: {function.name} has {lines} lines"
      )


@pytest.mark.parametrize(
  "part", ["training", "evaluation", "models", "inference"]
)
def test_no_config_goes_below_the_stages(part):
  """These functions get frozen settings, never a ConfigDict."""
  for path in (PACKAGE / part).rglob("*.py"):
    assert "ml_collections" not in path.read_text()
    for function in functions(path):
      arguments = function.args
      names = {
        argument.arg
        for argument in (
          *arguments.posonlyargs,
          *arguments.args,
          *arguments.kwonlyargs,
        )
      }
      assert "config" not in names, f"{name_of(path)}: {function.name}"


def test_importing_main_loads_nothing_heavy():
  code = (
    "import sys, deepemd_jax.main; "
    "print([m for m in ('jax', 'numpy', 'flax', 'orbax', 'tensorflow') "
    "if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
  )
  assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_public_definition_has_a_docstring(path):
  for node in tree(path).body:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
      continue
    members = node.body if isinstance(node, ast.ClassDef) else []
    for definition in (node, *members):
      if not isinstance(definition, ast.FunctionDef | ast.ClassDef):
        continue
      if node.name.startswith("_") or definition.name.startswith("_"):
        continue
      assert ast.get_docstring(definition), f"{definition.lineno}"
