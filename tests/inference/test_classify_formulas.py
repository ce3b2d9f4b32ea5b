"""A spreadsheet runs none of the names in the CSV of `classify`."""

import csv
import io
import re

import numpy as np
import pytest
from commands import rows

from deepemd_jax.inference import classify, report

NAMES = (
  *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\tx", "\rx", "\nx", "  =1"),
  *("\u00a0=1", "\ufeff=1", "\x00=1", "\uff1d1", "\uff0b1", "\uff0d1"),
  *("\uff201", "a;=1", "a; =1", "a\t@x", "a\n-1", "a\r\n+1", ";;=1", "';'=1"),
  *("'quoted'", "''", "'=1", "=", "-"),
)
HARMLESS = ("a=1", "a-b", "x@y", "query/=1.png", "", "it's", "a;b", " a", "1e5")


def original(cell):
  """Removes the apostrophes, as the help of `classify` says."""
  return re.sub(r"(\A|[;\t\r\n])'", r"\1", cell)


def starts(text):
  """Returns the beginnings of all cells for readers with any separator."""
  return [
    part.strip("\ufeff\x00 \u00a0") for part in re.split("[;\t\r\n]", text)
  ]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_runs_nothing_and_can_be_had_back(name):
  cell = classify.cell(name)
  assert cell != name and original(cell) == name
  assert not cell.startswith(("\t", "\r", "\n"))
  for start in starts(cell):
    assert not start.startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")), cell


@pytest.mark.parametrize("name", HARMLESS)
def test_other_names_stay(name):
  assert classify.cell(name) == original(name) == name


def test_any_text_comes_back():
  rng = np.random.default_rng(0)
  letters = np.array(list("=-'; \t\r\nab"))
  for _ in range(5000):
    name = "".join(rng.choice(letters, rng.integers(8)))
    cell = classify.cell(name)
    assert original(cell) == name
    assert not any(s.startswith(("=", "-")) for s in starts(cell))


def test_every_cell_of_names_and_no_number():
  classes = ("=a", "b;=c")
  probabilities = np.array([[1.0, 0.0], [1e-9, 1 - 1e-9], [0.5, 0.5]])
  results = report.Results(
    classes=classes,
    files=("-1.png", "ok.png", "@.png"),
    probabilities=probabilities,
    truth=np.array([1, 0, 0]),
    bad={2: "=why"},
  )
  text = classify.table(results).decode("utf-8-sig")
  header, *table = csv.reader(io.StringIO(text))
  assert header == [
    *("file", "prediction", "probability", "p =a", "p b;'=c", "label"),
    "skipped",
  ]
  assert table == [
    ["'-1.png", "'=a", "1.000000", "1.000000", "0.000000", "b;'=c", ""],
    ["ok.png", "b;'=c", "1.000000", "0.000000", "1.000000", "'=a", ""],
    ["'@.png", "", "", "", "", "'=a", "'=why"],
  ]


def test_the_command_says_what_it_changed(call, folder):
  usual = ("--support=support", "--out=out.csv")
  code, out, errors = call("classify", *usual, "--query=query")
  assert code == 0 and "apostrophe" not in out, errors
  (folder / "support" / "red").rename(folder / "support" / "=red")
  (folder / "query" / "red").rename(folder / "query" / "=red")
  (folder / "query").rename(folder / "@query")
  code, out, errors = call("classify", *usual, "--query=@query")
  assert code == 0, errors
  line = "names that a spreadsheet would run as formulas: 7; in out.csv they"
  assert line in out and "--help says how to remove it" in out
  found = rows()
  assert {row["label"] for row in found} == {"'=red", "blue", "green"}
  for row in found:
    assert (folder / original(row["file"])).is_file()
    assert 0 <= float(row["p =red"]) <= 1
  text = (folder / "out.csv").read_text()
  assert not re.search(r"(^|,)[=+@-]", text, re.MULTILINE)


def test_the_help_says_how_to_get_a_name_back(call):
  _, out, _ = call("classify", "--help")
  assert "remove the first apostrophe at each of these places" in out
