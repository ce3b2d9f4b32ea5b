"""The snippets of docs/coming_from.md run and give the same values."""

import ast
import dataclasses
import re

import numpy as np
import pytest
from paths import ROOT

PAGE = (ROOT / "docs" / "coming_from.md").read_text()
TASKS = 10
# These are determined up to a constant.
POTENTIALS = {"f", "g", "to_a"}


@dataclasses.dataclass(frozen=True)
class Snippet:
  """A block of code; library is "all" for code that all libraries share."""

  task: int
  library: str
  code: str

  def assigned(self) -> set[str]:
    """Returns the names that are assigned at the top level."""
    names: set[str] = set()
    for statement in ast.parse(self.code).body:
      if isinstance(statement, ast.Assign):
        for node in ast.walk(ast.Tuple(statement.targets)):
          names |= {node.id} if isinstance(node, ast.Name) else set()
    return names


def snippets() -> list[Snippet]:
  found, task = [], 0
  for match in re.finditer(
    r"^## (\d+)\.|^```python\n(.*?)^```", PAGE, re.M | re.S
  ):
    number, code = match.groups()
    if number:
      task = int(number)
    else:
      library = re.match(r"# (\w+)", code).group(1)
      found.append(Snippet(task, library, code))
  return found


def run(snippet: Snippet, names: dict) -> None:
  exec(
    compile(snippet.code, f"{snippet.library} {snippet.task}", "exec"), names
  )


def centered(name: str, value) -> np.ndarray:
  value = np.asarray(value, np.float64)
  return value - value.mean() if name in POTENTIALS else value


@pytest.mark.filterwarnings("ignore::RuntimeWarning:ot")
def test_ours_run_and_pots_have_the_same_numbers():
  names: dict = {}
  before: tuple[Snippet, dict] | None = None
  compared = set()
  for snippet in snippets():
    if snippet.library not in ("all", "deepemd_jax", "POT"):
      continue
    run(snippet, names)
    if snippet.library == "deepemd_jax":
      before = snippet, dict(names)
    elif snippet.library == "POT":
      ours, values = before
      assert ours.task == snippet.task
      for name in (ours.assigned() & snippet.assigned()) - {"solver"}:
        expected = centered(name, names[name])
        np.testing.assert_allclose(
          centered(name, values[name]), expected, rtol=1e-4, atol=1e-5
        )
        compared.add((snippet.task, name))
  assert {task for task, _ in compared} == set(range(1, TASKS + 1)) - {8}


@pytest.mark.soak  # OTT's programs take long to compile
def test_otts_run():
  pytest.importorskip("ott")
  names: dict = {}
  for snippet in snippets():
    if snippet.library in ("all", "deepemd_jax", "OTT"):
      run(snippet, names)


def test_each_task_has_ours_and_all_can_be_read():
  ours = [s.task for s in snippets() if s.library == "deepemd_jax"]
  assert ours == list(range(1, TASKS + 1))
  for snippet in snippets():
    ast.parse(snippet.code)
