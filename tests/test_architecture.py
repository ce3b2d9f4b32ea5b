"""The arrows between rooms, read off the imports."""

import ast
import subprocess
import sys

import pytest
from paths import ROOT

PACKAGE = ROOT / "deepemd_jax"

# room -> what it may import of ours, besides itself; `errors` is open to all
# but emd.
MAY_IMPORT = {
  "errors": set(),
  "emd": set(),
  "distributed": {"errors"},
  "models": {"emd", "errors"},
  "utils": {"data", "distributed", "errors", "inference"},
  "data": {"distributed", "errors", "utils"},
  "config": {"data", "emd", "errors"},
  "checkpoints": {"config", "data", "distributed", "errors", "models"},
  "training": {
    *("checkpoints", "config", "data", "distributed", "errors"),
    *("evaluation", "models"),
  },
  "evaluation": {
    *("checkpoints", "config", "data", "distributed", "emd", "errors"),
    *("models", "training", "utils"),
  },
  "inference": {
    *("checkpoints", "config", "data", "emd", "errors", "evaluation"),
    *("models", "utils"),
  },
  "demo": {
    *("checkpoints", "config", "data", "errors", "evaluation", "inference"),
    "utils",
  },
  "main": {"config", "distributed", "errors"},
}
# Third-party packages that only these files may import.
ONLY_IN = {
  "ml_collections": {
    *("main.py", "config/defaults.py", "config/variants.py"),
  },
  "flax": {
    *("models/resnet12.py", "models/deepemd.py", "evaluation/results.py"),
  },
  "orbax": {"checkpoints/manager.py"},
  "tensorboardX": {"training/metric_log.py"},
  "matplotlib": {"evaluation/plots.py"},
  "tensorflow": set(),
  "ot": {"emd/network_simplex.py"},
  "sklearn": {"inference/classifier.py"},
  "werkzeug": {"demo/form.py", "demo/server.py"},
}


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path):
  relative = path.relative_to(PACKAGE)
  room = relative.parts[0].removesuffix(".py")
  for name in imports(path):
    parts = name.split(".")
    if name == "deepemd_jax.__version__" or room == "__init__":
      continue
    if parts[0] == "deepemd_jax" and len(parts) > 1:
      assert parts[1] in {room, *MAY_IMPORT[room]}, f"{relative} imports {name}"
    if parts[0] in ONLY_IN:
      assert relative.as_posix() in ONLY_IN[parts[0]], (
        f"{relative} imports {name}"
      )


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


def test_every_public_function_has_a_docstring():
  for path in FILES:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.FunctionDef | ast.ClassDef):
        if node.name.startswith("_") or _is_nested(path, node):
          continue
        assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}"


def _is_nested(path, target):
  """Whether `target` stands inside a function."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.FunctionDef):
      for inner in ast.walk(node):
        if inner is not node and getattr(inner, "lineno", 0) == target.lineno:
          return True
  return False
