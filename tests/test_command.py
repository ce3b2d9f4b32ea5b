"""The command `deepemd`: its subcommands, and how they end."""

import os
import signal
import subprocess
import sys
import time
import types

import pytest
from commands import assert_refused, call
from paths import ROOT

import deepemd_jax
from deepemd_jax import __main__ as command
from deepemd_jax.errors import InputError, MissingData

# Runs the command, and prints on stderr which of these modules it has loaded.
LOADED = """
import sys
from deepemd_jax import __main__ as command
try:
  code = command.main(sys.argv[1:])
except SystemExit as done:
  code = done.code
names = ("jax", "numpy", "flax", "orbax", "PIL", "matplotlib", "werkzeug")
print(code, [name for name in names if name in sys.modules], file=sys.stderr)
"""


def loaded(*arguments):
  """Returns the output of a fresh process, its exit code and loaded modules."""
  done = subprocess.run(
    [sys.executable, "-c", LOADED, *arguments],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  code, modules = done.stderr.splitlines()[-1].split(" ", 1)
  return done.stdout, int(code), modules


@pytest.mark.parametrize("name", [(), *((name,) for name in command.COMMANDS)])
def test_help_loads_nothing_heavy_and_is_quick(name):
  began = time.monotonic()
  out, code, modules = loaded(*name, "--help")
  seconds = time.monotonic() - began
  print(f"{name}: {seconds:.2f} s; 0.3 s on a quiet machine")
  assert (code, modules) == (0, "[]")
  assert seconds < 5
  if name and name != ("train",):
    assert out.startswith(f"usage: python -m deepemd_jax {name[0]} [-h]")
  if not name:
    for known in command.COMMANDS:
      assert f"\n  {known} " in out


@pytest.mark.parametrize(
  "arguments",
  [
    ["classify", "--out=x"],
    ["search", "--gallery=x", "--query=y", "--solver=simplex"],
    ["demo", "--port=x"],
    ["export", "--out"],
    ["convert", "x.pth"],
  ],
  ids=lambda arguments: arguments[0],
)
def test_mistakes_are_told_before_anything_heavy_is_loaded(arguments):
  assert loaded(*arguments)[1:] == (2, "[]")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "a command is missing; use one of train, classify, search"),
    (["clasify"], "no command 'clasify'; did you mean classify"),
    (["xyz"], "no command 'xyz'; use one of train"),
    (["--checkpoint=x", "demo"], "no command '--checkpoint=x'; use one"),
    (["search", "--gallery=a", "--query=b", "--variant=frid"], "mean grid"),
    (["search", "--gallery=a", "--query=b", "--solver=x"], "network_simplex"),
    (["search", "--gallery=a", "--query=b", "--to=3"], "arguments: --to=3"),
    (["search", "--galery=a"], "--galery=a; did you mean --gallery"),
    (["convert", "--helf"], "--helf; did you mean --help"),
    (
      ["convert", "--reader=pytorch", "a", "b"],
      "'pytorch'; did you mean torch",
    ),
    (["convert", "a", "b", "c"], "unrecognized arguments: c"),
    (["data"], "required: list.prepare"),
    (["data", "prepar"], "invalid choice 'prepar'; did you mean prepare"),
    (["data", "prepare", "cubb"], "'cubb'; did you mean cub"),
    (["data", "prepare", "cub", "--form=x"], "--form=x; did you mean --from"),
    (["demo", "--prot=1"], "--prot=1; did you mean --port"),
    (["export", "--ot=x"], "--ot=x; did you mean --out"),
  ],
)
def test_wrong_names_are_told_in_one_line(arguments, message, capsys):
  assert_refused(call(capsys, *arguments), message)


@pytest.fixture
def stub(monkeypatch):
  """Makes a command named `stub` that calls a function."""

  def making(run, **attributes):
    module = types.SimpleNamespace(
      HELP="a stub",
      DESCRIPTION="a stub",
      add_arguments=lambda parser: parser.add_argument("--x", default="1"),
      run=run,
      **attributes,
    )
    monkeypatch.setitem(sys.modules, "stub_of_a_command", module)
    monkeypatch.setitem(command.COMMANDS, "stub", "stub_of_a_command")

  return making


@pytest.mark.parametrize("cleans_up", [True, False])
def test_text_is_printed_and_files_are_written(
  cleans_up, stub, tmp_path, capsys
):
  path = str(tmp_path / "a")

  def run(options):
    return {path: b"content " + options.x.encode()}, "all \udcff is well"

  stub(run, CLEANS_UP=cleans_up)
  assert call(capsys, "stub", "--x=7") == (0, "all \\udcff is well\n", "")
  assert (tmp_path / "a").read_bytes() == b"content 7"


def raising(error):
  def run(options):
    raise error

  return run


class Bad(InputError):
  lines = ["a.png: bad", "b.png: bad"]


@pytest.mark.parametrize("cleans_up", [True, False])
@pytest.mark.parametrize(
  ("error", "code", "text"),
  [
    (InputError("a\n  b"), 2, "deepemd_jax: error: a b\n"),
    (MissingData(["a", "  b"]), 2, "deepemd_jax: error: a\n  b\n"),
    (Bad("two"), 2, "a.png: bad\nb.png: bad\ndeepemd_jax: error: two\n"),
    (KeyboardInterrupt(), 130, "\ninterrupted; no incomplete file is left\n"),
  ],
  ids=lambda value: type(value).__name__,
)
def test_errors_of_a_command(error, code, text, cleans_up, stub, capsys):
  stub(raising(error), CLEANS_UP=cleans_up)
  assert call(capsys, "stub") == (code, "", text)


@pytest.mark.parametrize("cleans_up", [True, False])
def test_a_mistake_of_ours_is_a_traceback(cleans_up, stub):
  stub(raising(ZeroDivisionError("ours")), CLEANS_UP=cleans_up)
  with pytest.raises(ZeroDivisionError, match="ours"):
    command.main(["stub"])


def test_a_file_that_cannot_be_written_is_told(stub, tmp_path, capsys):
  path = str(tmp_path / "missing" / "a")
  stub(lambda options: ({path: b""}, "written"))
  assert_refused(call(capsys, "stub"), f"cannot write '{path}': No such file")


def test_ctrl_c_leaves_a_long_computation(stub, capsys):
  """Without anything to clean up, the command ends at once."""

  def run(options):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(3)

  stub(run, CLEANS_UP=False)
  began = time.monotonic()
  assert call(capsys, "stub")[0] == 130
  assert time.monotonic() - began < 2


def test_ctrl_c_lets_the_others_clean_up(stub, capsys):
  done = []

  def run(options):
    try:
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(3)
    finally:
      done.append("cleaned up")

  stub(run)
  assert call(capsys, "stub")[0] == 130 and done == ["cleaned up"]


def test_a_closed_pipe_is_no_error():
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    [sys.executable, "-m", "deepemd_jax", "data", "list"],
    cwd=ROOT,
    stdout=write,
    stderr=subprocess.PIPE,
  )
  os.close(write)
  assert (done.returncode, done.stderr) == (141, b"")


def test_the_version_and_the_name_that_was_typed(monkeypatch, capsys):
  assert command.main(["--version"]) == 0
  assert capsys.readouterr().out == f"deepemd_jax {deepemd_jax.__version__}\n"
  names = {"/x/deepemd": "deepemd", "x": "python -m deepemd_jax"}
  for typed, name in names.items():
    monkeypatch.setattr(command.sys, "argv", [typed])
    assert command.main(["classify", "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {name} classify")


@pytest.mark.parametrize(
  ("arguments", "code"),
  [(["--config=configs/quickstar.py"], 2), ([], 2), (["--help"], 0)],
)
def test_train_is_main(arguments, code):
  """Both print the same and have the same exit code."""
  train, main = (
    subprocess.run(
      [sys.executable, "-m", *module, *arguments],
      cwd=ROOT,
      capture_output=True,
    )
    for module in (["deepemd_jax", "train"], ["deepemd_jax.main"])
  )
  assert train.returncode == main.returncode == code
  assert (train.stdout, train.stderr) == (main.stdout, main.stderr)
