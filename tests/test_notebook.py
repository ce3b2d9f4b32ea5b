"""The cells of launch/colab.ipynb run in this process.

They use the tiny run of `fixtures_runs`. In `make soak`, the whole notebook
runs in a Jupyter kernel.
"""

import csv
import json
import pathlib
import shlex
import shutil

import nbformat
import pytest
from fixtures_runs import TINY
from IPython.core.inputtransformer2 import TransformerManager
from paths import ROOT
from PIL import Image

NOTEBOOK = ROOT / "launch" / "colab.ipynb"
# Makes the quickstart do no more than the tiny run.
LESS = {
  "data.name": "folder",
  "image.pretrain_size": 32,
  "evaluate.more": (),
  "evaluate.variants": (),
}


@pytest.fixture(scope="module")
def notebook():
  return nbformat.read(NOTEBOOK, as_version=4)


def make_checkout(place):
  """Copies the files of the repository that the notebook needs."""
  for name in ("deepemd_jax", "configs"):
    shutil.copytree(
      ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__")
    )
  shutil.copy(ROOT / "pyproject.toml", place)
  (place / "launch").mkdir()
  return place


class Shell:
  """Replaces the shell of `!command` in a notebook.

  It records each command and runs nothing. For a training command, it copies
  the files of a finished run, with results.json.
  """

  def __init__(self, names, finished):
    self._names, self._finished = names, finished
    self.commands = []

  def system(self, command):
    self.commands.append(shlex.split(command.format(**self._names)))
    if "deepemd_jax.main" in command:
      workdir = self._names["workdir"]
      shutil.copytree(self._finished, workdir, dirs_exist_ok=True)


def test_it_is_committed_without_outputs(notebook):
  nbformat.validate(notebook)
  before = None
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert cell.outputs == [] and cell.execution_count is None
      assert before == "markdown"  # a text introduces each code cell
    before = cell.cell_type


@pytest.fixture(scope="module")
def executed(notebook, shared, tmp_path_factory):
  """Runs all cells; returns (names, printed lines, commands, shown images)."""
  root = make_checkout(tmp_path_factory.mktemp("notebook") / "checkout")
  names = {"__name__": "__main__"}
  shell = Shell(names, shared / "run")
  names["get_ipython"] = lambda: shell
  printed, shown = [], []
  transform = TransformerManager().transform_cell
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(root / "launch")
    patch.syspath_prepend(root / "launch")  # restores sys.path at the end
    patch.delenv("DEEPEMD_FLAGS", raising=False)
    patch.setattr("IPython.display.display", shown.append)
    names["print"] = lambda *x, sep=" ": printed.append(sep.join(map(str, x)))
    for number, cell in enumerate(notebook.cells):
      if cell.cell_type == "code":
        place = f"{NOTEBOOK.name}, cell {number}"
        exec(compile(transform(cell.source), place, "exec"), names)
  return names, printed, shell.commands, shown


def test_cells_use_the_checkout_around_them_and_install_nothing(executed):
  names, printed, *_ = executed
  assert f"using {names['root']}" in printed
  assert "installed: nothing, all is there" in printed


def test_commands(executed):
  names, _, (devices, train, test), _ = executed
  assert devices[1:] == ["-c", "import jax; print(jax.devices())"]
  module = [names["python"], "-u", "-m", "deepemd_jax.main"]
  config, workdir = "configs/quickstart.py", names["workdir"]
  assert train == [*module, f"--config={config}", f"--workdir={workdir}"]
  assert test == [*train, '--config.stages=("evaluate",)']
  assert (names["root"] / config).is_file()


def test_results(executed):
  names, printed, *_ = executed
  heads = json.loads((names["workdir"] / "results.json").read_text())["heads"]
  for head, row in heads.items():
    assert any(
      line.startswith(head) and f"{row['accuracy']:.2f} +-" in line
      for line in printed
    )
  assert "the same numbers: True" in printed


def test_figures(executed):
  names, _, _, shown = executed
  figures = [pathlib.Path(image.filename) for image in shown]
  assert [path.stem for path in figures] == [
    *("learning_curves", "matched_regions", "own_images")
  ]
  for path in figures:
    assert path.parent == names["workdir"] / "figures"
    Image.open(path).verify()


def test_predictions(executed):
  check_predictions(executed[0]["workdir"])


def check_predictions(workdir):
  with (workdir / "predictions.csv").open(encoding="utf-8-sig") as file:
    rows = list(csv.DictReader(file))
  assert [row["image"] for row in rows] == [f"query-{x}.png" for x in "AKZ"]
  for row in rows:
    assert row["class"] in "AKZ" and 1 / 3 <= float(row["probability"]) <= 1
  assert workdir.with_suffix(".zip").exists()


@pytest.mark.soak
def test_in_a_jupyter_kernel(images, tmp_path, monkeypatch):
  """This runs the real commands with small numbers, in IPython's shell."""
  import nbclient

  notebook = nbformat.read(NOTEBOOK, as_version=4)  # outputs are added to it
  root = make_checkout(tmp_path / "checkout")
  data = {"data.folder": images, "data.directory": f"{images}-kept"}
  flags = [f"--config.{k}={v}" for k, v in (TINY | LESS | data).items()]
  monkeypatch.setenv("DEEPEMD_FLAGS", shlex.join(flags))
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
  nbclient.NotebookClient(
    notebook,
    timeout=300,
    kernel_name="python3",
    resources={"metadata": {"path": str(root / "launch")}},
  ).execute()
  outputs = [x for cell in notebook.cells for x in cell.get("outputs", [])]
  text = "".join(x.get("text", "") for x in outputs)
  lines = text.replace("\r\n", "\n").splitlines()
  assert "the same numbers: True" in lines
  assert "installed: nothing, all is there" in lines
  assert any("CpuDevice" in line for line in lines)
  assert sum("image/png" in x.get("data", {}) for x in outputs) == 3
  workdir = root / "runs" / "quickstart"
  heads = json.loads((workdir / "results.json").read_text())["heads"]
  assert {"deepemd", "deepemd_equal_weights", "prototype"} <= set(heads)
  assert all(0 <= row["accuracy"] <= 100 for row in heads.values())
  for name in ("learning_curves", "matched_regions", "own_images"):
    Image.open(workdir / "figures" / f"{name}.png").verify()
  check_predictions(workdir)
