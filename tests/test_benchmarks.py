"""Every benchmark runs in a small form; the slow ones only in `make soak`."""

import importlib
import json
import sys

import pytest
from paths import ROOT

from deepemd_jax.data.published import catalogue

SCRIPTS = sorted(
  path.stem
  for path in (ROOT / "benchmarks").glob("[a-z]*.py")
  if 'if __name__ == "__main__":' in path.read_text()
  # These have no small form. test_reproduce.py tests them.
  and path.stem not in ("compare_runs", "reproduce")
)
# The keys of a row in the JSON of a benchmark. The tables of docs/COST.md were
# made from these rows.
STEP = {
  *("stage", "case", "load", "step_s", "formula_gflop"),
  *("gflop", "gbyte", "argument_mb", "temporary_mb"),
}
PARTS = {"views_s", "encoder_s", "head_s", "emd_s", "input_cpu_s"}
ROWS = {
  "training_step": {
    "pretrain base": STEP | PARTS - {"head_s", "emd_s"} | {"utilisation"},
    "metatrain base": STEP | PARTS | {"utilisation"},
  },
  "evaluation_step": {
    "evaluate base": STEP | PARTS - {"views_s", "encoder_s"},
    "sfc fit shot 2": STEP,
    "emd, 375 nodes 4": {
      *("stage", "case", "load", "network_simplex_s", "interior_point_s"),
      *("steps_mean", "steps_most", "formula_gflop"),
    },
  },
  "device_sharing": {
    "devices 2": {"stage", "case", "load", "evaluate_16_s", "pretrain_s"}
  },
}
# Each of these takes seconds of processor time.
SLOW = {
  *("data", "device_sharing", "emd_solvers", "episode", "evaluation_step"),
  *("photographs", "training_step"),
}


def named(names):
  """Returns a case for each benchmark; slow ones are marked for `make soak`."""
  return [
    pytest.param(x, marks=[pytest.mark.soak] * (x in SLOW))
    for x in sorted(names)
  ]


def run(name, monkeypatch, *flags):
  monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
  importlib.import_module(f"benchmarks.{name}").main()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_what_it_does(name, monkeypatch, capsys):
  with pytest.raises(SystemExit) as ended:
    run(name, monkeypatch, "--help")
  assert ended.value.code == 0
  assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("name", named(set(SCRIPTS) - set(ROWS)))
def test_a_benchmark_prints_its_table(name, monkeypatch, capsys):
  # One of the benchmarks adds a data set to this dictionary.
  monkeypatch.setattr(catalogue, "BENCHMARKS", dict(catalogue.BENCHMARKS))
  run(name, monkeypatch, "--smoke")
  assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", named(ROWS))
def test_a_benchmark_of_a_stage_writes_its_rows(
  name, monkeypatch, tmp_path, capsys
):
  path = tmp_path / "rows.json"
  run(name, monkeypatch, "--smoke", "--json", path)
  rows = json.loads(path.read_text())
  assert {f"{row['stage']} {row['case']}": row.keys() for row in rows} == (
    ROWS[name]
  )
  shown = capsys.readouterr().out.splitlines()
  assert len(shown) == 1 + len(rows)
  assert all(
    value > 0
    for row in rows
    for key, value in row.items()
    if key.endswith("_s")
  )


@pytest.mark.soak
@pytest.mark.parametrize(
  ("name", "flags"),
  [
    (
      "training_step",
      "--size 32 --width 0.015625 --images 10 --query 1 --repeats 1 "
      "--only (pretrain|metatrain).base",
    ),
    (
      "episode",
      "--size 16 --width 0.015625 --nodes 4 --channels 16 --epochs 2 "
      "--episodes 2 --turns 1",
    ),
    ("emd_solvers", "--nodes 5 --batches 8 --repeats 1"),
  ],
)
def test_a_benchmark_runs_with_what_takes_long_to_compile(
  name, flags, monkeypatch, capsys
):
  """These are ResNet-12 and all solvers, which `--smoke` leaves out."""
  run(name, monkeypatch, *flags.split())
  assert capsys.readouterr().out.strip()
