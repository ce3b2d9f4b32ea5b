"""SECURITY.md: each statement names a test, and the test is there."""

import ast
import re

from paths import ROOT

PAGE = (ROOT / "SECURITY.md").read_text("utf-8")


def test_every_statement_has_its_test():
  """In the lists of what is read and exposed; the rest is advice."""
  _, read, exposed, _ = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
  statements = re.findall(r"^- .*", read + exposed, re.MULTILINE)
  assert len(statements) > 25
  for statement in statements:
    found = re.search(r"`(tests/\S+\.py)::(test_\w+)`$", statement)
    assert found, statement
    tree = ast.parse((ROOT / found[1]).read_text("utf-8"))
    names = {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}
    assert found[2] in names, statement
