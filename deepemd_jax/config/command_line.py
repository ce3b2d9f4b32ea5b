"""The flags of `python -m deepemd_jax.main`. A mistake gives one line."""

import pathlib
import re
import sys
from typing import NoReturn

from absl import flags
from ml_collections import config_flags

from deepemd_jax import mistakes
from deepemd_jax.config import recipes
from deepemd_jax.errors import MISTAKE, InputError

CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "A recipe, such as cub or configs/cub.py, or a file of your own; variants "
  "follow after a colon, as in cub:grid,5shot. Single fields are changed with "
  "--config.NAME=VALUE, such as --config.episode.shot=5.",
  lock_config=True,
)
WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where checkpoints, metrics and results go; default runs/<config name>. "
  "Several processes need a folder that all of them see.",
)
DISTRIBUTED = flags.DEFINE_enum(
  "distributed",
  "auto",
  ["auto", "on", "off"],
  "Whether several processes share this run. auto: if the next three flags are "
  "given, or if srun, mpirun or GKE has started several processes. on: JAX "
  "asks SLURM, Open MPI, Kubernetes or the Cloud TPU for the processes, unless "
  "the next three flags name them.",
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "Host:port of process 0, for all processes of a run."
)
NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "How many processes share this run.", lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "The number of this process, from 0.", lower_bound=0
)
_FLAGS = (CONFIG, WORKDIR, DISTRIBUTED, COORDINATOR, NUM_PROCESSES, PROCESS_ID)


def parse(argv: list[str]) -> list[str]:
  """Parses flags with absl. A mistake ends in one line and exit code 2.

  Args:
    argv: the program's name, then the flags.

  Returns:
    The arguments that are not flags, for absl's `app.run`. The only one is the
    program's name.
  """
  if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
    print(_help())
    sys.exit(0)
  try:
    rest = flags.FLAGS(_with_recipe(argv))
  except InputError as error:
    _refuse(str(error))
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:
    _refuse(_plain(error))
  except (SyntaxError, ImportError, OSError) as error:
    _refuse(f"the config file cannot be read: {error}")
  _check(rest)
  return rest


def workdir() -> pathlib.Path:
  """Returns the folder of the run: --workdir, or runs/<name of the recipe>."""
  if WORKDIR.value:
    return pathlib.Path(WORKDIR.value)
  path = config_flags.get_config_filename(flags.FLAGS["config"])
  name = pathlib.Path(path.partition(":")[0]).stem
  variant = CONFIG.value.variant
  return pathlib.Path("runs") / (f"{name}-{variant}" if variant else name)


def processes() -> tuple[str | None, int | None, int | None]:
  """Returns the coordinator, the number of processes, and the number of this
  process. Either all of them are None, or none is."""
  return COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value


def _refuse(message: str) -> NoReturn:
  mistakes.complain(message)
  sys.exit(MISTAKE)


def _with_recipe(argv: list[str]) -> list[str]:
  """Returns the arguments, with a recipe's name replaced by its path."""
  argv = list(argv)
  for i, argument in enumerate(argv):
    for start in ("--config=", "-config="):
      if argument.startswith(start):
        argv[i] = "--config=" + recipes.find(argument.removeprefix(start))
    if argument in ("--config", "-config") and i + 1 < len(argv):
      argv[i + 1] = recipes.find(argv[i + 1])
  return argv


def _check(rest: list[str]) -> None:
  """Exits with a message if flags do not fit together."""
  if len(rest) > 1:
    _refuse(f"unexpected argument {rest[1]!r}; flags look like --name=value")
  if CONFIG.value is None:
    _refuse("--config is missing; try --config=configs/quickstart.py")
  if None in processes() and processes() != (None, None, None):
    _refuse(
      "give all of --coordinator, --num_processes and --process_id, or none"
    )
  _, count, number = processes()
  if count is not None and number is not None and number >= count:
    _refuse(
      f"--process_id is {number}; for {count} processes use 0 to {count - 1}"
    )


def _plain(error: Exception) -> str:
  """Extracts the plain sentence from messages of absl and ml_collections."""
  text = str(error.args[0]) if error.args else str(error)
  if "Traceback" in text:  # the exception is from inside the config file
    text = text.strip().splitlines()[-1].partition(": ")[2]
  if isinstance(error, KeyError | AttributeError):  # a locked field
    name = re.search(r"\w+", text)
    hint = re.search(r'Did you mean "(\w+)"', text)
    near = (
      f"did you mean {hint[1]!r}?"
      if hint
      else "see deepemd_jax/config/defaults.py"
    )
    text = f"the config has no field {name and name[0]!r}; {near}"
  return text


def _help() -> str:
  lines = ["python -m deepemd_jax.main --config=RECIPE [--workdir=DIR]", ""]
  lines += ["Trains and tests. The same command continues a stopped run."]
  lines += [f"Recipes: {', '.join(recipes.names())}.", ""]
  lines += [f"  --{x.name}: {flags.FLAGS[x.name].help}" for x in _FLAGS]
  return "\n".join(lines)
