"""The command line: `deepemd`, or `python -m deepemd_jax`.

    python -m deepemd_jax COMMAND --help

Each command is a module that is named in `COMMANDS` and imported when it is
used. None of them imports JAX or NumPy before its `run` is called, so that
`--help` and mistakes are answered at once. A command module has

    HELP                    one line, for the list of all commands
    DESCRIPTION             a longer text, for its own --help
    add_arguments(parser)   adds its arguments to an argparse parser
    run(options)            returns the text to print, or (files, text) with the
                            content of each file to write, by its path

If nothing needs to be cleaned up when `run` is interrupted, the module also has
`CLEANS_UP = False`. Then Ctrl-C does not wait for a long computation.

This module does what all commands share. A mistake gives one line and exit code
2, and Ctrl-C gives one line and exit code 130. Results are written all together
or not at all.
"""

import argparse
import importlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NoReturn

from deepemd_jax import mistakes
from deepemd_jax.errors import InputError, MissingData
from deepemd_jax.utils import files, registry, terminal
from deepemd_jax.utils.version import VERSION

INTERRUPTED = 130
CLOSED_PIPE = 141

_TRAIN = "deepemd_jax.main"  # parses its own flags, with those of the config
COMMANDS = {
  "train": _TRAIN,
  "classify": "deepemd_jax.inference.classify",
  "search": "deepemd_jax.inference.search",
  "demo": "deepemd_jax.demo.command",
  "adapt": "deepemd_jax.training.adapt",
  "export": "deepemd_jax.inference.export",
  "convert": "deepemd_jax.checkpoints.convert",
  "data": "deepemd_jax.data.published.command",
}
_TRAIN_HELP = "train, evaluate or retrieve, as a config says"


class Parser(argparse.ArgumentParser):
  """An argument parser that raises `InputError` for mistakes."""

  def __init__(self, **options: Any) -> None:
    """Takes the options of `argparse.ArgumentParser`; forbids abbreviations."""
    ours: dict[str, Any] = {
      "allow_abbrev": False,
      "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
    super().__init__(**ours | options)

  def parse_known_args(self, args=None, namespace=None):
    """Parses as argparse does, but reports an unknown flag before a missing
    one. Usually it is the missing one, misspelled."""
    known = self._option_string_actions
    for argument in args or ():
      name = argument.partition("=")[0]
      if name == "--" or name in ("-h", "--help") or self._subparsers:
        break
      if name.startswith("--") and name not in known:
        flags = [flag for flag in known if flag.startswith("--")]
        hint = registry.hint(name, flags)
        self.error(f"unrecognized arguments: {argument}; {hint}")
    return super().parse_known_args(args, namespace)

  def _check_value(self, action, value) -> None:
    if action.choices is not None and value not in action.choices:
      hint = registry.hint(str(value), action.choices)
      raise argparse.ArgumentError(action, f"invalid choice {value!r}; {hint}")

  def error(self, message: str) -> NoReturn:
    """Raises `InputError` instead of exiting."""
    raise InputError(message)

  def print_help(self, file=None) -> NoReturn:
    """Raises an exception with the text instead of printing and exiting."""
    raise _HelpWanted(self.format_help())


class _HelpWanted(Exception):
  """A request for help. Its message is the text of --help."""


def main(arguments: list[str]) -> int:
  """Runs a command.

  Args:
    arguments: the command line without the program's name.

  Returns:
    The exit code. After 130, threads may still be at work, and only `os._exit`
    ends them at once.

  Raises:
    SystemExit: at the end of `train`.
  """
  if arguments[:1] == ["train"]:
    _train(arguments[1:])
  terminal.hush_libraries()
  try:
    _show(_answer(arguments))
  except KeyboardInterrupt:
    print("\ninterrupted; no incomplete file is left", file=sys.stderr)
    return INTERRUPTED
  except BrokenPipeError:  # `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE
  except Exception as error:
    if (code := _tell(error)) is None:
      raise
    return code
  return 0


def _train(arguments: list[str]) -> NoReturn:
  """Does what `python -m deepemd_jax.main` does, exit code included."""
  train: Callable[[list[str]], NoReturn] = registry.load(f"{_TRAIN}:entry")
  train([f"{_program()} train", *arguments])


def _answer(arguments: list[str]) -> str:
  """Runs the command of the arguments and returns the text to print."""
  name, *rest = arguments or [""]
  if name in ("-h", "--help"):
    return _overview()
  if name == "--version":
    return f"deepemd_jax {VERSION}"
  if name not in COMMANDS:
    hint = registry.hint(name, COMMANDS)
    what = f"there is no command {name!r}" if name else "a command is missing"
    raise InputError(f"{what}; {hint}")
  command = importlib.import_module(COMMANDS[name])
  parser = Parser(
    prog=f"{_program()} {name}", description=command.DESCRIPTION.strip()
  )
  command.add_arguments(parser)
  try:
    options = parser.parse_args(rest)
  except _HelpWanted as wanted:
    return str(wanted).rstrip()
  if getattr(command, "CLEANS_UP", True):
    result = command.run(options)
  else:
    result = _run_aside(command, options)
  contents, text = ({}, result) if isinstance(result, str) else result
  _write(contents)
  return text


def _overview() -> str:
  """Lists the commands, each with a line of help."""
  program = _program()
  lines = [f"usage: {program} COMMAND ...", ""]
  for name, path in COMMANDS.items():
    known = path == _TRAIN
    text = _TRAIN_HELP if known else importlib.import_module(path).HELP
    lines.append(f"  {name:<10}{text}")
  return "\n".join([*lines, "", f"help on a command: {program} COMMAND --help"])


def _program() -> str:
  """Returns the command that the user has typed."""
  typed = os.path.basename(sys.argv[0]).removesuffix(".exe")
  return typed if typed == "deepemd" else "python -m deepemd_jax"


def _run_aside(command: ModuleType, options: argparse.Namespace):
  """Runs a command in another thread.

  Only the main thread gets Ctrl-C, and if it ran the command, it would get it
  only after a long computation.
  """
  outcome: list = []

  def target():
    try:
      outcome.append(command.run(options))
    except BaseException as error:
      outcome.append(error)

  thread = threading.Thread(target=target, daemon=True)
  thread.start()
  while thread.is_alive():
    thread.join(0.1)
  (result,) = outcome
  if isinstance(result, BaseException):
    raise result
  return result


def _write(contents: Mapping[str, bytes | str]) -> None:
  try:
    files.write_together(contents)
  except OSError as error:
    raise InputError(
      f"cannot write {error.filename!r}: {error.strerror}"
    ) from error


def _show(text: str) -> None:
  """Prints text. It escapes characters that the terminal's encoding lacks, and
  bytes in file names that are not text."""
  alphabet = sys.stdout.encoding or "utf-8"
  print(text.encode(alphabet, "backslashreplace").decode(alphabet), flush=True)


def _tell(error: Exception) -> int | None:
  """Does what `mistakes.tell` does, after a line for each bad image of a data
  set."""
  if not isinstance(error, MissingData):
    for line in getattr(error, "lines", ()):
      terminal.note(" ".join(line.split()))
  return mistakes.tell(error)


def entry() -> NoReturn:
  """Runs the command line and ends the process.

  It does not wait for threads, because one may be in the middle of interrupted
  work.
  """
  code = main(sys.argv[1:])
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


if __name__ == "__main__":
  entry()
