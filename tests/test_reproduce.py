"""Tests of `benchmarks.reproduce` and `compare_runs`."""

import json
import sys

import pytest

from benchmarks import compare_runs, reproduce
from deepemd_jax.config import defaults, recipes, validate

WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *unused: sys.exit(143))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("fraction", [1.0, 0.1, 0.001])
def test_the_config_takes_what_it_changes(fraction):
  config = defaults.get_config()
  with config.ignore_type():  # tuples of a config may have any length
    config.update_from_flattened_dict(reproduce.fields(fraction))
  validate.validate(config)
  assert config.pretrain.epochs == max(1, round(120 * fraction))
  assert 1 <= config.metatrain.decay_every <= config.metatrain.epochs


def test_the_whole_schedule_is_the_papers():
  """The training differs from the recipe only in the precision."""
  config = defaults.get_config()
  own = reproduce.fields(1.0)
  differ = {
    name
    for name, value in own.items()
    if config[name.split(".")[0]][name.split(".")[1]] != value
  }
  assert {n for n in differ if n.split(".")[0] != "evaluate"} == {
    *("model.precision", "pretrain.validate_every"),
    "metatrain.validate_every",
  }


def test_its_data_sets_have_recipes():
  assert set(reproduce.DATA_SETS) <= set(recipes.names())


def test_it_asks_to_stop_and_goes_on_counting(tmp_path, monkeypatch, capsys):
  """It returns the exit code of the run, and adds up seconds over commands."""
  workdir = tmp_path / "run"
  workdir.mkdir()
  waits = [sys.executable, "-c", WAITS]
  monkeypatch.setattr(reproduce, "command", lambda args, rest: waits)
  argv = ["cub", "--workdir", str(workdir), "--seconds", "2"]
  assert reproduce.main(argv) == 143
  assert "continues; 2 s so far, 1 of the schedule" in capsys.readouterr().out
  monkeypatch.setattr(
    reproduce, "command", lambda args, rest: [sys.executable, "-c", "pass"]
  )
  assert reproduce.main(argv) == 0
  entries = json.loads((workdir / "reproduce.json").read_text())
  assert [entry["exit code"] for entry in entries] == [143, 0]


def test_its_own_flags_and_those_of_the_run(capsys):
  args, rest = reproduce.parse(["cub", "--variant=grid", "--config.seed=1"])
  assert rest == ["--config.seed=1"]
  assert str(args.workdir) == "runs/reproduce-cub-grid"
  assert "--config=cub:grid" in reproduce.command(args, rest)
  args, rest = reproduce.parse(["cub", "--laptop", "--seed=3"])
  assert str(args.workdir) == "runs/reproduce-cub-laptop-seed3"
  assert reproduce.command(args, rest)[3:] == [
    *("--config=cub:laptop", f"--workdir={args.workdir}", "--config.seed=3")
  ]
  with pytest.raises(SystemExit):
    reproduce.parse(["cub", "--fraction", "0"])
  assert "--fraction is 0.0" in capsys.readouterr().err


def test_the_table_has_each_test_and_its_leads():
  def found(shot):
    return {
      "heads": {
        "deepemd": {"accuracy": 60.0, "ci95": 0.5},
        "prototype": {"accuracy": 58.0, "ci95": 0.6},
      },
      "paired": {"deepemd - prototype": {"mean": 2.0, "ci95": 0.25}},
      "episodes": 600,
      "episode": {"way": 5, "shot": shot, "query": 15},
    }

  rows = reproduce.table(found(1) | {"more": {"5-shot": found(5)}}).splitlines()
  assert len(rows) == 6
  test = "| 5-way 5-shot, 600 episodes |"
  assert rows[4] == f"{test} DeepEMD, SFC | 60.00 ± 0.50 |  |"
  assert rows[5].startswith(f"{test} Prototype")
  assert rows[5].endswith("| 58.00 ± 0.60 | +2.00 ± 0.25 |")


def test_runs_are_compared(copy, capsys, tmp_path):
  """The table has a row for each test of each run."""
  results = json.loads((copy / "results.json").read_text())
  timed = [{"seconds": 60.0}, {"seconds": 93.0}]
  (copy / "reproduce.json").write_text(json.dumps(timed))
  picture = tmp_path / "curves.png"
  argv = [str(copy), str(copy), "--curves", str(picture)]
  assert compare_runs.main(argv) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2 + 2 * (1 + len(results["more"]))
  own, lead = (results["heads"]["deepemd"], results["paired"])
  lead = lead["deepemd - prototype"]
  assert f"| {own['accuracy']:.2f} +- {own['ci95']:.2f} |" in lines[2]
  assert f"| {lead['mean']:+.2f} +- {lead['ci95']:.2f} |" in lines[2]
  assert all(line.endswith("| 2.5 |") for line in lines[2:])
  assert picture.read_bytes().startswith(b"\x89PNG")
  with pytest.raises(SystemExit):
    compare_runs.main([str(tmp_path)])
  assert "has no results.json" in capsys.readouterr().err
