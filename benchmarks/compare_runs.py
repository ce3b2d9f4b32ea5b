"""Compares finished runs: a table of their tests, and their learning curves.

    python -m benchmarks.compare_runs runs/reproduce-*-laptop*
    python -m benchmarks.compare_runs runs/reproduce-* --curves laptop.png

The runs come from `benchmarks.reproduce`, or from `deepemd_jax.main`. The table
has a row for each of their tests. Differences are paired: both heads see the
same episodes. `docs/RESULTS.md` has such a table.
"""

import argparse
import json
import pathlib
import sys

from deepemd_jax.config.stages import TRAINING_STAGES
from deepemd_jax.errors import InputError
from deepemd_jax.evaluation import metric_rows, plots

COLUMNS = (
  *("data", "seed", "5-way test", "DeepEMD", "over prototype"),
  *("over equal weights", "SFC over mean nodes", "minutes"),
)
_RIVALS = ("prototype", "deepemd_equal_weights", "deepemd_mean")


def rows(workdir: pathlib.Path) -> list[list[str]]:
  """Returns the cells of a run's rows in the table, one row a test.

  Args:
    workdir: of a run whose test has ended.
  """
  results = json.loads((workdir / "results.json").read_text("utf-8"))
  found = []
  for test in (results, *results["more"].values()):
    leads = [test["paired"].get(f"deepemd - {rival}") for rival in _RIVALS]
    shape = test["episode"]
    found.append(
      [
        results["protocol"]["tested on"]["name"],
        str(results["seed"]),
        f"{shape['shot']}-shot, {test['episodes']} episodes",
        _interval(test["heads"]["deepemd"], "accuracy"),
        *(_interval(x, "mean", "+") if x else "" for x in leads),
        minutes(workdir),
      ]
    )
  return found


def _interval(found: dict, key: str, sign: str = "") -> str:
  return f"{found[key]:{sign}.2f} +- {found['ci95']:.2f}"


def minutes(workdir: pathlib.Path) -> str:
  """Returns how long all commands of a run took, or "" if nobody counted."""
  path = workdir / "reproduce.json"
  if not path.exists():
    return ""
  seconds = sum(x["seconds"] for x in json.loads(path.read_text("utf-8")))
  return f"{seconds / 60:.1f}"


def table(workdirs: list[pathlib.Path]) -> str:
  """Returns the table of some runs, in Markdown."""
  lines = [COLUMNS, ["---"] * len(COLUMNS)]
  lines += [cells for workdir in workdirs for cells in rows(workdir)]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(workdirs: list[pathlib.Path]):
  """Draws the validation accuracies of some runs, one panel a run.

  Steps of meta-training follow those of pre-training. They get half of the
  panel, because there are far fewer of them.

  Returns:
    The matplotlib figure.
  """
  columns = min(3, len(workdirs))
  lines = -(-len(workdirs) // columns)
  figure = plots.new_figure(3.4 * columns, 2.9 * lines + 0.3)
  panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
  for panel in panels:
    panel.set_visible(False)
  for workdir, panel in zip(workdirs, figure.axes, strict=False):
    config = json.loads((workdir / "config.json").read_text("utf-8"))
    panel.set_visible(True)
    panel.set_title(f"{config['data']['name']}, seed {config['seed']}")
    _draw_run(panel, workdir)
  figure.axes[0].set_ylabel("validation accuracy, %")
  figure.axes[0].legend(frameon=False, fontsize=8)
  return figure


def _draw_run(panel, workdir: pathlib.Path) -> None:
  ticks = {0: "0"}
  for start, stage in enumerate(TRAINING_STAGES):
    scores = [
      row
      for row in metric_rows.read(workdir / stage / "metrics.jsonl")
      if "val_accuracy" in row
    ]
    last = scores[-1]["step"] if scores else 0
    places = [start + 0.95 * row["step"] / max(last, 1) for row in scores]
    ticks |= {start + 0.95: f"{last}\n{stage}"} if scores else {}
    for number, (key, label) in enumerate(
      (("val_accuracy", "DeepEMD"), ("val_prototype", "prototype"))
    ):
      panel.plot(
        places,
        [row[key] for row in scores],
        color=plots.COLORS[number],
        marker=plots.MARKERS[number],
        markersize=4,
        label=None if start else label,
      )
  panel.set_xlabel("step", fontsize=8)
  panel.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
  panel.spines[["top", "right"]].set_visible(False)
  panel.grid(alpha=0.25)


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("workdirs", nargs="+", type=pathlib.Path, metavar="RUN")
  parser.add_argument(
    "--curves",
    type=pathlib.Path,
    metavar="PNG",
    help="draw validation accuracies against steps, too",
  )
  args = parser.parse_args(argv)
  for workdir in args.workdirs:
    if not (workdir / "results.json").exists():
      parser.error(f"{workdir} has no results.json: its test has not ended")
  print(table(args.workdirs))
  try:
    if args.curves:
      plots.save(draw(args.workdirs), args.curves)
  except InputError as error:
    parser.error(str(error))
  return 0


if __name__ == "__main__":
  sys.exit(main())
