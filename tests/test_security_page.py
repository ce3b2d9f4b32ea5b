"""Each statement of SECURITY.md names a test that exists."""

import ast
import re

from paths import ROOT

PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
# The beginnings of lines that give advice or summarize other lines of the page.
ADVICE = (
  "#",
  "In short:",
  "- Three things do run as programs:",
  "- `deepemd demo` is for the person at the machine.",
  "- Report a fault privately",
  "What this program reads may come from strangers:",
  "**",  # the heading of a list
  "Write to the maintainers",
)


def test_every_statement_has_its_test():
  lines = [line for line in PAGE.splitlines() if line]
  for start in ADVICE:
    assert any(line.startswith(start) for line in lines), start
  statements = [line for line in lines if not line.startswith(ADVICE)]
  assert len(statements) > 40
  for statement in statements:
    found = re.search(r"`(tests/\S+\.py)::(test_\w+)`$", statement)
    assert found, statement
    tree = ast.parse((ROOT / found[1]).read_text("utf-8"))
    names = {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}
    assert found[2] in names, statement
