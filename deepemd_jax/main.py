"""The command line: `python -m deepemd_jax.main --config=configs/NAME.py`.

Only absl and ml_collections are imported here, so that `--help` and every
mistake in a flag or a config field answer at once: one line, exit code 2.
"""

import dataclasses
import difflib
import errno
import gc
import importlib
import importlib.util
import json
import os
import pathlib
import pkgutil
import re
import sys
import tempfile
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from deepemd_jax.config import validate
from deepemd_jax.distributed import runtime
from deepemd_jax.errors import (
  MISTAKE,
  STOPPED,
  InputError,
  MissingData,
  StopRequested,
)

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Config file, such as configs/quickstart.py; single fields are changed by "
  "--config.NAME=VALUE, such as --config.episode.shot=5.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where checkpoints, metrics and results go; default runs/<config name>. "
  "Several processes need one that all of them see.",
)
_DISTRIBUTED = flags.DEFINE_enum(
  "distributed",
  "auto",
  ["auto", "on", "off"],
  "Whether several processes share this run; auto: where srun, mpirun or GKE "
  "has started several. On: JAX asks SLURM, Open MPI, Kubernetes or the Cloud "
  "TPU, unless the next three flags say it.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "Host:port of process 0, for all processes of a run."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "How many processes share this run.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this is, from 0.", lower_bound=0
)

_TRY = ".deepemd_jax."  # begins the names of files that do not stay
_ROOT = pathlib.Path(__file__).resolve().parent.parent
# Fields that may change between two runs in one workdir: they do not alter what
# the training stages learn.
_FREE = ("stages", "evaluate", "sfc", "data.test_name", "data.workers")
_FREE += ("episode", "variant", "retrieve")
# What a config.json that does not have the field yet was trained with.
_BEFORE = {"model": {"precision": "float32", "backbone": "resnet12"}}
_STAGES = {
  "pretrain": "deepemd_jax.training.pretrain",
  "metatrain": "deepemd_jax.training.metatrain",
  "evaluate": "deepemd_jax.evaluation.fewshot",
  "retrieve": "deepemd_jax.evaluation.retrieval",
}
# Stages that only look at what was trained.
_LOOKING = {"evaluate", "retrieve"}


def run(
  config, workdir: pathlib.Path, connect: Callable[[], None] = lambda: None
) -> None:
  """Runs the stages of `config` in `workdir`.

  Args:
    config: as `config/defaults.py`.
    workdir: made when missing; must hold nothing, or an earlier run of the same
      config, which is then continued.
    connect: called when nothing is wrong with the rest; connects processes.

  Raises:
    InputError: the config, the data or the workdir do not fit.
  """
  validate.validate(config)
  from deepemd_jax.config import feasible, resolve

  settings = resolve.resolve(config)
  # Stated, so that test episodes may change in a workdir, and these may not.
  config.metatrain.update(dataclasses.asdict(settings.training_episode))
  feasible.check_feasible(settings)
  if set(config.stages) <= _LOOKING and not workdir.exists():
    raise InputError(
      f"no checkpoint in {workdir}: there is no such folder; give the "
      "--workdir of a training run"
    )
  fields = json.loads(config.to_json_best_effort())
  # All processes look before the first one writes: they refuse, or go on, alike
  # (connecting waits for all).
  training = not set(config.stages) <= _LOOKING
  _check_workdir(workdir, fields, training)
  _compilation_cache(workdir)
  connect()
  runtime.check_same(json.dumps(fields, sort_keys=True))
  if runtime.is_main():
    _claim(workdir, fields)
  resolve.check_devices(settings)
  runtime.start_watchdog(workdir)
  for stage in config.stages:
    importlib.import_module(_STAGES[stage]).run(settings, workdir)
    # Process 0 may be drawing yet: the next stage must not find it behind.
    runtime.barrier(stage)


def _check_workdir(workdir: pathlib.Path, fields, training: bool) -> None:
  """Refuses a workdir of another config, with other files, or read-only."""
  path = workdir / "config.json"
  try:
    before = _read(path) if path.exists() else None
    workdir.mkdir(parents=True, exist_ok=True)
    others = [p for p in workdir.iterdir() if not p.name.startswith(_TRY)]
    with tempfile.TemporaryFile(dir=workdir, prefix=_TRY):
      pass
  except OSError as error:
    raise InputError(
      f"cannot write to workdir {workdir}: {error.strerror}; give another "
      "--workdir"
    ) from error
  if before is None:
    if others:
      raise InputError(
        f"workdir {workdir} holds files but no config.json of ours; give an "
        "empty or new --workdir"
      )
    return
  differing = [
    f"{name} was {_get(before, name)!r} and is {_get(fields, name)!r}"
    # Not those that only one of two versions of this program knows.
    for name in sorted(_names(before) & _names(fields))
    # A trained encoder may be tested on other data, nodes or episodes.
    if (training or name.split(".")[0] == "model")
    and not {name, name.split(".")[0]} & set(_FREE)
    and _get(before, name) != _get(fields, name)
  ]
  if differing:
    raise InputError(
      f"workdir {workdir} belongs to another config: "
      f"{'; '.join(differing[:5])}; give another --workdir"
    )


def _read(path: pathlib.Path) -> dict:
  """A config.json that an earlier run wrote."""
  try:
    fields = json.loads(path.read_bytes())
  except ValueError:
    fields = None
  if not isinstance(fields, dict):
    raise InputError(
      f"{path} is damaged, or not ours; give another --workdir, or put back "
      "the file that the run wrote"
    )
  for section, known in _BEFORE.items():
    if isinstance(fields.get(section), dict):
      fields[section] = known | fields[section]
  return fields


def _claim(workdir: pathlib.Path, fields) -> None:
  """Writes the config into a new workdir."""
  path = workdir / "config.json"
  if path.exists():
    return
  scratch = workdir / f"{_TRY}config.json"
  try:
    scratch.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    os.replace(scratch, path)
  except OSError as error:
    raise InputError(
      f"cannot write to workdir {workdir}: {error.strerror}; make room, or "
      "give another --workdir"
    ) from error


def _names(fields, prefix: str = "") -> set[str]:
  if not isinstance(fields, dict):
    return {prefix[:-1]}
  return set().union(*(_names(v, f"{prefix}{k}.") for k, v in fields.items()))


def _get(fields, name: str):
  for part in name.split("."):
    if not isinstance(fields, dict) or part not in fields:
      return None
    fields = fields[part]
  return fields


def _compilation_cache(workdir: pathlib.Path) -> None:
  """Compiled programs are kept beside the runs: a restart starts at once."""
  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    directory = str(workdir.resolve().parent / ".jax_cache")
    jax.config.update("jax_compilation_cache_dir", directory)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _repeatable() -> None:
  """On NVIDIA GPUs: sums always in the same order, so that equal runs end with
  equal numbers. Before JAX is loaded; what the user says of it in XLA_FLAGS
  stands."""
  plugins = importlib.util.find_spec("jax_plugins")  # JAX's, for accelerators
  places = plugins and plugins.submodule_search_locations
  names = [module.name for module in pkgutil.iter_modules(places or ())]
  given = os.environ.get("XLA_FLAGS", "")
  said = "deterministic_ops" in given
  if any(name.startswith("xla_cuda") for name in names) and not said:
    flag = "--xla_gpu_exclude_nondeterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{given} {flag}".strip()


def _complain(message: str) -> None:
  sys.stderr.write(f"deepemd_jax: error: {' '.join(message.split())}\n")


def _refuse(message: str) -> NoReturn:
  _complain(message)
  sys.exit(MISTAKE)


def _find_config(argument: str) -> str:
  """The --config argument with a file that exists, wherever we were called."""
  name, colon, variant = argument.partition(":")
  path = pathlib.Path(name)
  for candidate in (path, _ROOT / path, _ROOT / "configs" / path.name):
    if candidate.is_file():
      return f"{candidate}{colon}{variant}"
  shipped = sorted(
    p.name for p in (_ROOT / "configs").glob("*.py") if p.name != "__init__.py"
  )
  close = difflib.get_close_matches(path.name, shipped, 1)
  hint = (
    f"did you mean configs/{close[0]}?"
    if close
    else f"there are {', '.join(shipped)} in configs/"
  )
  raise InputError(f"no config file {name!r}; {hint}")


def _parse(argv: list[str]) -> list[str]:
  """absl's parsing, with each mistake as one line and exit code 2."""
  argv = list(argv)
  sys.path.insert(0, str(_ROOT))  # config files import each other from there
  if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
    print(__doc__)
    print(flags.FLAGS.module_help("deepemd_jax.main") or _flag_help())
    sys.exit(0)
  try:
    for i, argument in enumerate(argv):
      for start in ("--config=", "-config="):
        if argument.startswith(start):
          argv[i] = "--config=" + _find_config(argument.removeprefix(start))
      if argument in ("--config", "-config") and i + 1 < len(argv):
        argv[i + 1] = _find_config(argv[i + 1])
    rest = flags.FLAGS(argv)
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
  if len(rest) > 1:
    _refuse(f"unexpected argument {rest[1]!r}; flags look like --name=value")
  if _CONFIG.value is None:
    _refuse("--config is missing; try --config=configs/quickstart.py")
  given = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if None in given and given != (None, None, None):
    _refuse(
      "give all of --coordinator, --num_processes and --process_id, or none"
    )
  if None not in given and _PROCESS_ID.value >= _NUM_PROCESSES.value:
    _refuse(
      f"--process_id is {_PROCESS_ID.value}; of {_NUM_PROCESSES.value} "
      f"processes the last is {_NUM_PROCESSES.value - 1}"
    )
  return rest


def _flag_help() -> str:
  names = ("config", "workdir", "distributed", "coordinator")
  return "\n".join(
    f"  --{name}: {flags.FLAGS[name].help}"
    for name in (*names, "num_processes", "process_id")
  )


def _connect() -> None:
  """Connects this process to the others of its run, if there are any."""
  given = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  wanted = _DISTRIBUTED.value
  if wanted == "on" or (wanted == "auto" and None not in given):
    runtime.initialize(*given)
  elif wanted == "auto" and runtime.is_launched():
    runtime.initialize()


def _plain(error: Exception) -> str:
  """The sentence inside absl's and ml_collections' messages."""
  text = str(error.args[0]) if error.args else str(error)
  if "Traceback" in text:  # of an exception inside the config file
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


def _workdir() -> pathlib.Path:
  if _WORKDIR.value:
    return pathlib.Path(_WORKDIR.value)
  path = config_flags.get_config_filename(flags.FLAGS["config"])
  name = pathlib.Path(path.partition(":")[0]).stem
  variant = _CONFIG.value.variant
  return pathlib.Path("runs") / (f"{name}-{variant}" if variant else name)


def main(argv: list[str]) -> None:
  """Entry point of absl's app.run."""
  del argv
  # Tracing makes so many objects that Python, left to itself, would look for
  # garbage all the time.
  gc.set_threshold(50_000, 20, 20)
  logging.set_verbosity(logging.ERROR)  # orbax and TFDS narrate at WARNING
  _repeatable()
  code = 0
  try:
    run(_CONFIG.value, _workdir(), _connect)
  except MissingData as error:
    sys.stderr.write(
      "\n".join([f"deepemd_jax: error: {error}", *error.lines[1:], ""])
    )
    code = MISTAKE
  except InputError as error:
    _complain(str(error))
    code = MISTAKE
  except KeyboardInterrupt:
    sys.stderr.write("interrupted; the same command goes on\n")
    code = 130
  except StopRequested as error:
    if runtime.is_main():
      sys.stderr.write(f"{error}\n")
    code = STOPPED
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
      _fail(error)
    _complain(
      f"cannot write {error.filename or _workdir()}: {error.strerror}; make "
      "room, and the same command goes on"
    )
    code = MISTAKE
  except Exception as error:
    _fail(error)
  if runtime.is_distributed():
    runtime.shutdown(code)
  sys.exit(code)


def _fail(error: Exception) -> NoReturn:
  if runtime.is_distributed():
    runtime.abort(error)
  raise error


if __name__ == "__main__":
  app.run(main, flags_parser=_parse)
