"""The command line: `python -m deepemd_jax.main --config=configs/NAME.py`.

Only absl and ml_collections are imported here, so that `--help` and every
mistake in a flag or a config field answer at once: one line, exit code 2.
"""

import difflib
import importlib
import json
import os
import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from deepemd_jax import build
from deepemd_jax.errors import InputError, MissingData

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
  "Where checkpoints, metrics and results go; default runs/<config name>.",
)

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# Fields that may change between two runs in one workdir: they do not alter what
# the training stages learn.
_FREE = ("stages", "evaluate", "sfc", "data.test_name", "data.workers")
_FREE += ("episode", "variant", "retrieve")
# Stages that only look at what was trained.
_LOOKING = {"evaluate", "retrieve"}


def run(config, workdir: pathlib.Path) -> None:
  """Runs the stages of `config` in `workdir`.

  Args:
    config: as `configs/default.py`.
    workdir: made when missing; must hold nothing, or an earlier run of the same
      config, which is then continued.

  Raises:
    InputError: the config, the data or the workdir do not fit.
  """
  build.check(config)
  # Stated, so that test episodes may change in a workdir, and these may not.
  config.metatrain.update(build.training_episode(config))
  build.check_feasible(config)
  if set(config.stages) <= _LOOKING and not workdir.exists():
    raise InputError(
      f"no checkpoint in {workdir}: there is no such folder; give the "
      "--workdir of a training run"
    )
  _claim(workdir, config)
  _compilation_cache(workdir)
  for stage in config.stages:
    importlib.import_module(f"deepemd_jax.{stage}").run(config, workdir)


def _claim(workdir: pathlib.Path, config) -> None:
  """Writes the config into a new workdir; refuses one of another config."""
  path = workdir / "config.json"
  fields = json.loads(config.to_json_best_effort())
  if path.exists():
    before = json.loads(path.read_text())
    # A trained encoder may be tested on other data, nodes or episodes.
    training = not set(config.stages) <= _LOOKING
    differing = [
      f"{name} was {_get(before, name)!r} and is {_get(fields, name)!r}"
      # Not those that only one of two versions of this program knows.
      for name in sorted(_names(before) & _names(fields))
      if (training or name.split(".")[0] == "model")
      and not {name, name.split(".")[0]} & set(_FREE)
      and _get(before, name) != _get(fields, name)
    ]
    if differing:
      raise InputError(
        f"workdir {workdir} belongs to another config: "
        f"{'; '.join(differing[:5])}; give another --workdir"
      )
    return
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if any(workdir.iterdir()):
      raise InputError(
        f"workdir {workdir} holds files but no config.json of ours; give an "
        "empty or new --workdir"
      )
    scratch = workdir / "config.json.tmp"
    scratch.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    os.replace(scratch, path)
  except OSError as error:
    raise InputError(
      f"cannot write to workdir {workdir}: {error.strerror}; give another "
      "--workdir"
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


def _refuse(message: str) -> None:
  sys.stderr.write(f"deepemd_jax: error: {' '.join(message.split())}\n")
  sys.exit(2)


def _find_config(argument: str) -> str:
  """The --config argument with a file that exists, wherever we were called."""
  name, colon, variant = argument.partition(":")
  path = pathlib.Path(name)
  for candidate in (path, _ROOT / path, _ROOT / "configs" / path.name):
    if candidate.is_file():
      return f"{candidate}{colon}{variant}"
  shipped = sorted(
    p.name
    for p in (_ROOT / "configs").glob("*.py")
    if p.name not in ("__init__.py", "default.py")
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
  return rest


def _flag_help() -> str:
  return "\n".join(
    f"  --{name}: {flags.FLAGS[name].help}" for name in ("config", "workdir")
  )


def _plain(error: Exception) -> str:
  """The sentence inside absl's and ml_collections' messages."""
  text = str(error.args[0]) if error.args else str(error)
  if "Traceback" in text:  # of an exception inside the config file
    text = text.strip().splitlines()[-1].partition(": ")[2]
  if isinstance(error, KeyError | AttributeError):  # a locked field
    name = re.search(r"\w+", text)
    hint = re.search(r'Did you mean "(\w+)"', text)
    near = f"did you mean {hint[1]!r}?" if hint else "see configs/default.py"
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
  logging.set_verbosity(logging.ERROR)  # orbax and TFDS narrate at WARNING
  try:
    run(_CONFIG.value, _workdir())
  except MissingData as error:
    sys.stderr.write(
      "\n".join([f"deepemd_jax: error: {error}", *error.lines[1:], ""])
    )
    sys.exit(2)
  except InputError as error:
    _refuse(str(error))
  except KeyboardInterrupt:
    sys.stderr.write("interrupted; the same command goes on\n")
    sys.exit(130)
  except Exception as error:
    # training.Interrupted, by name: importing it would import JAX.
    if type(error).__name__ != "Interrupted":
      raise
    sys.stderr.write(f"{error}\n")
    sys.exit(143)


if __name__ == "__main__":
  app.run(main, flags_parser=_parse)
