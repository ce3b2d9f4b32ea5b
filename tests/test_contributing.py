"""Follows the recipes of CONTRIBUTING.md word for word, in copies of files.

The copies are then imported in place of the original files.
"""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import types

import pytest
from paths import ROOT

from deepemd_jax.data.sources import DataSpec
from deepemd_jax.utils import registry

PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
STEP = re.compile(
  r"^(?:Write|Add (?P<where>to|above) `(?P<name>\w+)` in) `(?P<path>[^`]+)`"
  r"[^\n]*:\n\n```\w+\n(?P<text>.*?)^```",
  re.MULTILINE | re.DOTALL,
)
# A step adds its text before the end of a table, or before a definition and its
# decorators.
PLACES = {
  "to": r"^{}\b[^\n]*[({{]\n.*?(?=^[)}}])",
  "above": r"(?=^(?:@[^\n]*\n)*(?:class|def) {}\b)",
}


class Copies:
  """Copies of files, changed as a recipe says."""

  def __init__(self, recipe, place, monkeypatch):
    self._place, self._patch = place, monkeypatch
    section = PAGE.partition(f"\n### {recipe}\n")[2].partition("\n### ")[0]
    for step in STEP.finditer(section):
      copy = place / step["path"]
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_text(self._after(step, copy))
    assert section.count("```") == 2 * len(STEP.findall(section)) > 0

  def _after(self, step, copy):
    """Returns the text of a file after a step."""
    original = ROOT / step["path"]
    if not step["where"]:
      assert not original.exists()
      return step["text"]
    before = (copy if copy.exists() else original).read_text()
    place = re.compile(
      PLACES[step["where"]].format(step["name"]), re.MULTILINE | re.DOTALL
    ).search(before)
    text = step["text"] + "\n\n" * (step["where"] == "above")
    return before[: place.end()] + text + before[place.end() :]

  def load(self, path, name=""):
    """Imports a copy in place of its module, until the test ends."""
    copy = self._place / path
    if not copy.exists():
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes((ROOT / path).read_bytes())
    name = name or path.removesuffix(".py").removesuffix("/__init__").replace(
      "/", "."
    )
    spec = importlib.util.spec_from_file_location(name, copy)
    module = importlib.util.module_from_spec(spec)
    self._patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    parent, _, leaf = name.rpartition(".")
    if parent:
      self._patch.setattr(sys.modules[parent], leaf, module, raising=False)
    return module

  def load_test(self, path):
    """Imports a test file as pytest does."""
    self._patch.syspath_prepend(str((ROOT / path).parent))
    return self.load(path, pathlib.Path(path).stem)

  def check_style(self):
    """Asserts that the files pass the checks of ruff in `make lint`."""
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for command in (["check"], ["format", "--check"]):
      line = [*ruff, *command, *settings, str(self._place)]
      done = subprocess.run(line, capture_output=True, text=True)
      assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def follow(tmp_path, monkeypatch):
  """Follows a recipe, and checks the style of the result."""

  def copies(recipe):
    made = Copies(recipe, tmp_path / "copies", monkeypatch)
    made.check_style()
    return made

  return copies


def test_a_solver(follow):
  copies = follow("A solver")
  copies.load("deepemd_jax/emd/solvers.py")
  copies.load("deepemd_jax/emd/reversed_rows.py")
  table = copies.load_test("tests/emd/solver_table.py")
  promises = copies.load_test("tests/emd/test_solvers.py")
  promises.test_every_solver_of_the_registry_is_in_the_table()
  row = table.TABLE["reversed_rows"]
  promises.test_the_gap_bounds_the_error(row, row.x64, balanced=False)


def test_a_backbone(follow):
  copies = follow("A backbone")
  backbone = copies.load("deepemd_jax/models/backbone.py")
  copies.load("deepemd_jax/models/patches.py")
  promises = copies.load_test("tests/models/test_backbone.py")
  promises.test_every_backbone_has_a_row()
  made = promises.MADE["patches"]()
  assert made is backbone.create("patches", width=1.0)
  maps = promises.maps.__wrapped__(made)
  promises.test_maps_are_as_large_as_it_says(made, maps)
  promises.test_each_of_several_batches_is_by_itself(maps)
  promises.test_the_seed_decides_and_the_shapes_are_known_before(made, maps)


def test_a_head(follow):
  copies = follow("A head")
  copies.load("deepemd_jax/models/heads.py")
  promises = copies.load_test("tests/models/test_heads.py")
  promises.test_every_head_has_a_row_here_and_a_title()
  for shot in (1, 2):
    promises.test_a_head_is_what_it_says("euclidean", shot)


def test_a_data_set(follow):
  copies = follow("A data set")
  copies.load("deepemd_jax/data/published/splits/__init__.py")
  catalogue = copies.load("deepemd_jax/data/published/catalogue.py")
  data_sets = copies.load("deepemd_jax/data/registry.py").DATA_SETS
  assert data_sets["shapes"].title == "Shapes: what it is, in a line"
  promises = copies.load_test("tests/data/published/test_catalogue.py")
  promises.test_all_published_sets_are_there()
  benchmark = catalogue.BENCHMARKS["shapes"]
  promises.test_classes_and_images_are_as_published(benchmark)
  promises.test_splits_share_no_class(benchmark)


def test_a_stage(follow, tmp_path):
  copies = follow("A stage")
  stages = copies.load("deepemd_jax/config/stages.py")
  copies.load("deepemd_jax/evaluation/census.py")
  assert "census" in stages.EVAL_STAGES
  for i in range(5):
    (tmp_path / "images" / f"class_{i}").mkdir(parents=True)
    (tmp_path / "images" / f"class_{i}" / "1.png").touch()
  data = DataSpec("folder", folder=str(tmp_path / "images"))
  run = registry.load(stages.STAGES["census"].path)
  run(types.SimpleNamespace(data=data), tmp_path)
  found = json.loads((tmp_path / "census.json").read_text())
  assert list(found.values()) == [1]
