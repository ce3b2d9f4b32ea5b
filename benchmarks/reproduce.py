"""Runs a recipe on real images, from stored copies to a table of results.

    python -m benchmarks.reproduce cifar_fs                     # on a GPU
    python -m benchmarks.reproduce cifar_fs --seconds 560       # stop, and save
    python -m benchmarks.reproduce cifar_fs --fraction 0.1 \\
        --config.model.width=0.125                              # a rehearsal
    python -m benchmarks.reproduce cifar_fs --laptop --seed 1   # two CPU cores

It runs the data set's recipe, `configs/DATASET.py`: pre-training, meta-training
and the test, 1-shot and 5-shot. The training is the paper's except for the
precision: convolutions are computed in bfloat16, which takes half the time.
There are fewer validations, which affects only the choice of the encoder that
is kept. Calls of the device are larger, which does not affect the results.

With `--laptop` it runs the recipe's variant of that name unchanged, a small
network and a short schedule for two CPU cores.

`XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=false` makes a step faster.
Without it, `deepemd_jax.main` sums in a fixed order, so that equal runs have
equal results. `docs/RESULTS.md` has the results.

The same command continues a run that was stopped. Flags that this script does
not know are passed to `deepemd_jax.main`. The data set must be prepared:
`python -m deepemd_jax data prepare DATASET`.

`WORKDIR/reproduce.json` lists the commands of a run and their times.
"""

import argparse
import json
import pathlib
import resource
import signal
import subprocess
import sys
import time

from deepemd_jax.errors import STOPPED
from deepemd_jax.utils import files

DATA_SETS = ("cifar_fs", "fc100", "miniimagenet", "cub")
# Epochs of the paper's schedule, and epochs between drops of the learning rate.
PRETRAIN, PRETRAIN_DECAY = 120, 30
METATRAIN, METATRAIN_DECAY = 100, 10
# Validations per stage. The start and the end are always validated.
VALIDATIONS = 10
_GRACE = 60  # seconds in which a run may save after a request to stop


def fields(fraction: float | None) -> dict[str, object]:
  """Returns the config fields that differ from the recipe.

  Args:
    fraction: the fraction of the schedule's epochs, above 0 and at most 1. None
      means another schedule, in which no field is changed.
  """
  if fraction is None:
    return {}

  def share(epochs: int) -> int:
    return max(1, round(epochs * fraction))

  return {
    "model.precision": "bfloat16",
    "pretrain.epochs": share(PRETRAIN),
    "pretrain.decay_every": share(PRETRAIN_DECAY),
    "pretrain.validate_every": share(PRETRAIN // VALIDATIONS),
    "metatrain.epochs": share(METATRAIN),
    "metatrain.decay_every": share(METATRAIN_DECAY),
    "metatrain.validate_every": share(METATRAIN // VALIDATIONS),
    "evaluate.more": ("5-shot",),
    "evaluate.more_episodes": 600,
    "evaluate.batch_size": 50,
    "evaluate.encode_batch_size": 512,
  }


def command(args, rest: list[str]) -> list[str]:
  """Returns the arguments of the process that trains and tests."""
  changed = fields(None if args.laptop else args.fraction)
  changed["seed"] = args.seed
  if args.directory:
    changed["data.directory"] = args.directory
  return [
    *(sys.executable, "-m", "deepemd_jax.main"),
    f"--config={args.data}{args.variant and ':' + args.variant}",
    f"--workdir={args.workdir}",
    *(f"--config.{name}={value}" for name, value in changed.items()),
    *rest,
  ]


def run(arguments: list[str], seconds: float | None) -> int:
  """Runs a process and returns its exit code.

  Args:
    arguments: the program and its arguments.
    seconds: the time after which the process is asked to stop, or None.
  """
  process = subprocess.Popen(arguments)
  try:
    return process.wait(seconds)
  except subprocess.TimeoutExpired:
    process.send_signal(signal.SIGTERM)
  except KeyboardInterrupt:  # the terminal has interrupted the process, too
    pass
  try:
    return process.wait(_GRACE)
  except subprocess.TimeoutExpired:
    process.kill()
    return process.wait()


def note(path: pathlib.Path, entry: dict) -> float:
  """Adds a command to `reproduce.json`; returns the seconds of all commands."""
  entries = json.loads(path.read_text("utf-8")) if path.exists() else []
  entries.append(entry)
  files.write(path, json.dumps(entries, indent=2) + "\n")
  return sum(each["seconds"] for each in entries)


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Returns the parsed arguments, and the arguments for `deepemd_jax.main`."""
  parser = argparse.ArgumentParser(
    description=__doc__.split("\n\n")[0],
    epilog="Other flags go to deepemd_jax.main: --config.seed=1, say.",
  )
  parser.add_argument("data", choices=DATA_SETS)
  parser.add_argument("--variant", default="", help="of the recipe: grid, say")
  parser.add_argument(
    "--laptop", action="store_true", help="the recipe for two CPU cores"
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--fraction", type=float, default=1.0, metavar="F")
  parser.add_argument("--seconds", type=float, help="then stop, and save")
  parser.add_argument("--directory", default="", help="of prepared data")
  parser.add_argument("--workdir", type=pathlib.Path)
  args, rest = parser.parse_known_args(argv)
  if not 0 < args.fraction <= 1:
    parser.error(f"--fraction is {args.fraction}; give a number in (0, 1]")
  if args.laptop:
    if args.fraction != 1:
      parser.error("--laptop is a schedule of its own; leave --fraction out")
    args.variant = ",".join(x for x in (args.variant, "laptop") if x)
  if args.workdir is None:
    words = ["reproduce", args.data, *args.variant.split(",")]
    words += [f"seed{args.seed}"] if args.seed else []
    args.workdir = pathlib.Path("runs", "-".join(x for x in words if x))
  return args, rest


def table(results: dict) -> str:
  """Returns accuracies and leads on the same episodes, in Markdown.

  Args:
    results: the content of a run's results.json.
  """
  from deepemd_jax.models import heads  # loads JAX, so not during the run

  rows = ["| test | head | accuracy | DeepEMD leads by |", "|---|---|---|---|"]
  for test in (results, *results["more"].values()):
    shape = test["episode"]
    name = f"{shape['way']}-way {shape['shot']}-shot, {test['episodes']}"
    for head, found in test["heads"].items():
      lead = test["paired"].get(f"deepemd - {head}")
      cells = (
        f"{name} episodes",
        heads.title(head, shape["shot"]),
        f"{found['accuracy']:.2f} ± {found['ci95']:.2f}",
        f"{lead['mean']:+.2f} ± {lead['ci95']:.2f}" if lead else "",
      )
      rows.append(f"| {' | '.join(cells)} |")
  return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  args, rest = parse(argv)
  began = time.time()
  arguments = command(args, rest)
  code = run(arguments, args.seconds)
  if not args.workdir.is_dir():
    return code  # the run was refused before it wrote any file
  total = note(
    args.workdir / "reproduce.json",
    {
      "command": arguments[1:],
      "fraction": args.fraction,
      "seconds": round(time.time() - began, 1),
      "largest": _largest_process(),
      "exit code": code,
    },
  )
  state = "stopped; the same command continues" if code == STOPPED else "ended"
  print(
    f"{state}; {total:.0f} s so far, {args.fraction:g} of the schedule, "
    f"at most {_largest_process() / 2**30:.1f} GiB",
    flush=True,
  )
  if code == 0 and (args.workdir / "results.json").exists():
    print(table(json.loads((args.workdir / "results.json").read_text())))
  return code


def _largest_process() -> int:
  """Returns the peak memory of the run's largest process in bytes."""
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  return peak * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
  sys.exit(main())
