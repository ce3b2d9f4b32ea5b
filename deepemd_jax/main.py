"""Trains and tests: `python -m deepemd_jax.main --config=configs/NAME.py`.

The program checks the flags and the workdir, and then runs the stages of the
config one after another. JAX is imported after the flags and the config have
been checked, so that `--help` and every mistake in them are answered at once. A
mistake gives one line and exit code 2.
"""

import dataclasses
import errno
import gc
import importlib.util
import json
import os
import pathlib
import pkgutil
import sys
from collections.abc import Callable
from typing import NoReturn

from deepemd_jax import mistakes
from deepemd_jax.config import validate
from deepemd_jax.config import workdir as workdirs
from deepemd_jax.config.stages import EVAL_STAGES, STAGES
from deepemd_jax.distributed import runtime
from deepemd_jax.errors import MISTAKE, STOPPED, InputError, StopRequested
from deepemd_jax.utils import registry, terminal


def run(
  config, workdir: pathlib.Path, connect: Callable[[], None] = lambda: None
) -> None:
  """Runs the stages of `config` in `workdir`.

  Args:
    config: the config; see `config/defaults.py`.
    workdir: the folder of the run, which is made if it is missing. It must be
      empty, or contain an earlier run of the same config, which is continued.
    connect: connects the processes; called after all other checks.

  Raises:
    InputError: the config, the data or the workdir do not fit.
  """
  validate.validate(config)
  from deepemd_jax.config import feasible  # loads NumPy
  from deepemd_jax.utils import random_streams

  feasible.check_data(config)
  from deepemd_jax.config import resolve  # loads JAX

  if config.model.weights:  # the next command may run in another folder
    config.model.weights = os.path.abspath(config.model.weights)
  settings = resolve.resolve(config)
  # These are stored explicitly, so that the test episodes of a workdir may
  # change, and its training episodes may not.
  config.metatrain.update(dataclasses.asdict(settings.training_episode))
  feasible.check_feasible(settings)
  trains = not set(config.stages) <= EVAL_STAGES
  if not trains and not workdir.exists():
    raise InputError(
      f"no checkpoint in {workdir}: there is no such folder; give the "
      "--workdir of a training run"
    )
  fields = json.loads(config.to_json_best_effort())
  fields["streams"] = random_streams.VERSION
  # All processes check before the first one writes, so that all of them stop or
  # all continue. (Connecting waits for all.)
  workdirs.check(workdir, fields, trains=trains)
  _keep_compiled_programs(workdir)
  connect()
  runtime.check_same(json.dumps(fields, sort_keys=True))
  is_new = runtime.is_main() and workdirs.claim(workdir, fields)
  runtime.start_watchdog(workdir)
  try:
    for stage in config.stages:
      registry.load(STAGES[stage].path)(settings, workdir)
      # Process 0 may still be drawing, and must not be behind in the next
      # stage.
      runtime.barrier(stage)
  except InputError:
    if is_new:
      workdirs.release(workdir)
    raise


def entry(argv: list[str] | None = None) -> NoReturn:
  """Runs the whole command and ends the process.

  Args:
    argv: the program's name, then the flags; None is `sys.argv`.
  """
  if argv is not None:
    sys.argv[:] = argv  # where ml_collections looks for --config.NAME
  try:
    from absl import app

    from deepemd_jax.config import command_line
  except ModuleNotFoundError as error:
    if (code := mistakes.tell(error)) is None:
      raise
    sys.exit(code)
  app.run(main, flags_parser=command_line.parse)
  sys.exit(0)


def main(argv: list[str]) -> None:
  """Runs the program after absl's `app.run` has parsed the flags."""
  from absl import logging

  from deepemd_jax.config import command_line

  del argv
  # Tracing makes so many objects that Python, with its default thresholds,
  # would collect garbage all the time.
  gc.set_threshold(50_000, 20, 20)
  logging.set_verbosity(logging.ERROR)  # orbax and TFDS log much at WARNING
  terminal.hush_libraries()
  _sum_in_order_on_gpus()
  code = 0
  try:
    run(command_line.CONFIG.value, command_line.workdir(), _connect)
  except Exception as error:
    if (code := _explain(error)) is None:
      _fail(error)
  except KeyboardInterrupt:
    sys.stderr.write("interrupted; the same command continues the run\n")
    code = 130
  if runtime.is_distributed():
    runtime.shutdown(code)
  sys.exit(code)


def _explain(error: Exception) -> int | None:
  """Prints what the user must know about an error.

  Returns:
    The exit code; None if the error is not a mistake of the user.
  """
  from deepemd_jax.config import command_line

  if isinstance(error, StopRequested):
    if runtime.is_main():
      sys.stderr.write(f"{error}\n")
    return STOPPED
  full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
  if isinstance(error, OSError) and error.errno in full:
    place = error.filename or command_line.workdir()
    mistakes.complain(
      f"cannot write {place}: {error.strerror}; make room, or make the "
      "folder writable; the same command then continues the run"
    )
    return MISTAKE
  return mistakes.tell(error)


def _fail(error: Exception) -> NoReturn:
  if runtime.is_distributed():
    runtime.abort(error)
  raise error


def _connect() -> None:
  """Connects this process to the others of its run, if there are any."""
  from deepemd_jax.config import command_line
  from deepemd_jax.utils import terminal

  processes = command_line.processes()
  wanted = command_line.DISTRIBUTED.value
  if wanted == "on" or (wanted == "auto" and None not in processes):
    runtime.initialize(*processes)
  elif wanted == "auto" and runtime.is_launched():
    runtime.initialize()
  if not runtime.is_main():
    terminal.silence()


def _keep_compiled_programs(workdir: pathlib.Path) -> None:
  """Keeps compiled programs beside the runs, so that a restart is fast."""
  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    directory = str(workdir.resolve().parent / ".jax_cache")
    jax.config.update("jax_compilation_cache_dir", directory)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _sum_in_order_on_gpus() -> None:
  """Makes equal runs on NVIDIA GPUs give equal numbers.

  Call it before JAX is loaded. It respects a setting of the user in XLA_FLAGS.
  """
  plugins = importlib.util.find_spec("jax_plugins")  # those for accelerators
  places = plugins and plugins.submodule_search_locations
  names = [module.name for module in pkgutil.iter_modules(places or ())]
  given = os.environ.get("XLA_FLAGS", "")
  is_set = "deterministic_ops" in given
  if any(name.startswith("xla_cuda") for name in names) and not is_set:
    flag = "--xla_gpu_exclude_nondeterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{given} {flag}".strip()


if __name__ == "__main__":
  entry()
