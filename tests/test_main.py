"""The command line refuses mistakes with one line and exit code 2."""

import json
import os
import subprocess
import sys
import types

import pytest
from paths import ROOT
from recipes import draw_polygons

from configs import folder
from deepemd_jax import main as command
from deepemd_jax.config import command_line
from deepemd_jax.config import workdir as workdirs
from deepemd_jax.config.stages import EVAL_STAGES, STAGES
from deepemd_jax.errors import InputError, MissingData
from deepemd_jax.utils import registry

CONFIG = "--config=configs/quickstart.py"


def call(*arguments, cwd=ROOT):
  line = [sys.executable, "-m", "deepemd_jax.main", *arguments]
  return subprocess.run(line, capture_output=True, text=True, cwd=cwd)


MISTAKES = {
  "no config": ([], "--config"),
  "no such config": (["--config=configs/quickstar.py"], "quickstart.py"),
  "config argument": ([CONFIG + ":zz"], "'zz'"),
  "unknown flag": ([CONFIG, "--workdirr=x"], "workdir"),
  "stray argument": ([CONFIG, "x"], "'x'"),
  "unknown field": ([CONFIG, "--config.pretrain.lrr=1"], "'lr'"),
  "wrong type": ([CONFIG, "--config.pretrain.lr=abc"], "'abc'"),
  "out of range": ([CONFIG, "--config.pretrain.lr=-1"], "config.pretrain.lr"),
  "unknown stage": ([CONFIG, '--config.stages=("train",)'], "pretrain"),
  "unknown solver": ([CONFIG, "--config.emd.solver=x"], "network_simplex"),
  "unknown data": ([CONFIG, "--config.data.name=cubs"], "did you mean cub"),
  "folder unnamed": ([CONFIG, "--config.data.name=folder"], "data.folder"),
  "way": ([CONFIG, "--config.episode.way=17"], "17"),
  "query": ([CONFIG, "--config.episode.query=100"], "100"),
  "shot": ([CONFIG, "--config.episode.shot=0"], "config.episode.shot"),
  "precision": ([CONFIG, "--config.model.precision=half"], "bfloat16"),
  "no run": ([CONFIG, '--config.stages=("evaluate",)'], "no checkpoint in"),
}


# Imports the package once, and runs each case in a forked process.
CALL_EACH = """
import json, os, sys, tempfile
from deepemd_jax import main
from deepemd_jax.config import command_line, feasible, resolve

answers = {}
for name, arguments in json.load(sys.stdin).items():
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
    child = os.fork()
    if not child:
      os.dup2(out.fileno(), 1)
      os.dup2(error.fileno(), 2)
      try:
        main.entry(["main", *arguments])
      except SystemExit as leaving:
        sys.stdout.flush()
        os._exit(leaving.code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = []
    for file in (out, error):
      file.seek(0)
      texts.append(file.read().decode())
    answers[name] = code, *texts
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
  """Exit code, stdout and stderr of each mistake, whose workdir is its name."""
  place = tmp_path_factory.mktemp("runs")
  lines = {
    name: [*arguments, f"--workdir={place / name}"]
    for name, (arguments, _) in MISTAKES.items()
  }
  done = subprocess.run(
    [sys.executable, "-c", CALL_EACH],
    input=json.dumps(lines),
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  assert list(place.iterdir()) == []
  return json.loads(done.stdout)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name, refusals):
  code, out, error = refusals[name]
  assert code == 2, error
  assert out == ""
  assert error.count("\n") == 1, error
  assert error.startswith("deepemd_jax: error: ")
  assert MISTAKES[name][1] in error


def test_help():
  done = call("--help")
  assert done.returncode == 0
  assert "--config" in done.stdout and "--workdir" in done.stdout
  assert "cub, cub_retrieval" in done.stdout


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_a_title_and_can_be_loaded(name):
  stage = STAGES[name]
  assert stage.title and callable(registry.load(stage.path))
  assert set(stage.splits) <= {"train", "val", "test"}
  assert stage.trains == (name not in EVAL_STAGES)


def test_a_workdir_of_another_config_is_refused(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"seed": 7}))
  done = call(CONFIG, f"--workdir={tmp_path}")
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1
  assert "another config" in done.stderr
  assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_mistake_that_a_stage_finds_leaves_the_workdir_free(tmp_path):
  """The corrected command takes the same workdir."""
  counts = dict.fromkeys(range(3, 9), 5)
  images = draw_polygons(tmp_path / "images", counts, side=40)
  made = folder.get_config()
  made.data.folder, made.data.directory = str(images), str(tmp_path / "data")
  made.data.fractions = (0.4, 0.3, 0.3)
  made.image.size, made.pretrain.batch_size = 32, 8
  made.episode.way, made.episode.query = 2, 3
  with pytest.raises(InputError, match="use folder:40"):
    command.run(made, tmp_path / "run")
  assert not list((tmp_path / "run").iterdir())
  workdirs.check(tmp_path / "run", {}, trains=True)


def test_missing_data_are_explained_in_a_few_lines(monkeypatch, capsys):
  def run(config, workdir, connect):
    raise MissingData(["no data   set", "  needed: a file", "  then run: it"])

  monkeypatch.setattr(command, "run", run)
  monkeypatch.setattr(command_line, "workdir", lambda: None)
  monkeypatch.setattr(command_line, "CONFIG", types.SimpleNamespace(value=None))
  with pytest.raises(SystemExit) as stopped:
    command.main([])
  assert stopped.value.code == 2
  assert capsys.readouterr().err == (
    "deepemd_jax: error: no data   set\n  needed: a file\n  then run: it\n"
  )


ORDERLY = "--xla_gpu_exclude_nondeterministic_ops"


@pytest.mark.parametrize(
  ("plugin", "given", "expected"),
  [
    ("xla_cuda13", None, f"{ORDERLY}=true"),
    ("xla_cuda12", "--xla_x=1", f"--xla_x=1 {ORDERLY}=true"),
    ("xla_cuda13", f"{ORDERLY}=false", f"{ORDERLY}=false"),
    ("xla_tpu", None, None),
    (None, None, None),
  ],
)
def test_a_gpu_is_told_to_sum_in_order(
  plugin, given, expected, tmp_path, monkeypatch
):
  if plugin:
    (tmp_path / "jax_plugins" / plugin).mkdir(parents=True)
    (tmp_path / "jax_plugins" / plugin / "__init__.py").touch()
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  monkeypatch.setenv("XLA_FLAGS", given or "")  # so that it is restored
  if given is None:
    monkeypatch.delenv("XLA_FLAGS")
  command._sum_in_order_on_gpus()
  assert os.environ.get("XLA_FLAGS") == expected


def test_jax_knows_the_flag():
  """JAX aborts if it does not know a flag."""
  code = "import jax; print(jax.jit(lambda x: x + 1)(1))"
  flags = {**os.environ, "XLA_FLAGS": f"{ORDERLY}=true"}
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, env=flags
  )
  assert done.stdout == "2\n", done.stderr
