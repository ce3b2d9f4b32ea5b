"""Tests of how names and sizes are printed."""

import pytest

from deepemd_jax import mistakes
from deepemd_jax.utils import registry, terminal


def test_a_name_cannot_steer_the_terminal():
  assert terminal.printable("a b/ä.png") == "a b/ä.png"
  assert terminal.printable("a\x1b[2J") == "'a\\x1b[2J'"


@pytest.mark.parametrize(
  ("count", "text"),
  [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1150585339, "1.2 GB")],
)
def test_sizes(count, text):
  assert terminal.human_size(count) == text


def test_a_wrong_name_is_told_its_neighbors_or_all():
  assert registry.hint("grd", ["fcn", "grid"]) == "did you mean grid?"
  assert registry.hint("voc", ["fcn", "grid"]) == "use one of fcn, grid"
  assert registry.load("os.path:join")("a", "b") == "a/b"


def test_nothing_steers_the_terminal(capsys):
  """No message with a stranger's name can control the terminal."""
  name = "a\x1b[2J\u202eb\udcff ä\n"
  terminal.note(name)
  mistakes.complain(f"cannot read {name}")
  errors = capsys.readouterr().err
  assert errors.count("\n") == 3 and "ä" in errors
  assert all(c.isprintable() for c in errors.replace("\n", ""))
