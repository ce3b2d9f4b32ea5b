"""launch/colab.ipynb runs from its first cell to its last, in a checkout."""

import csv
import json
import shlex
import shutil

import nbclient
import nbformat
import numpy as np
import pytest
from paths import ROOT
from PIL import Image, ImageDraw

NOTEBOOK = ROOT / "launch" / "colab.ipynb"
SMALL = [
  "--config.data.name=folder",
  "--config.image.size=32",
  "--config.image.pretrain_size=32",
  "--config.model.width=0.0625",
  "--config.data.fractions=(0.4, 0.3, 0.3)",
  "--config.episode.way=2",
  "--config.episode.query=3",
  "--config.pretrain.epochs=2",
  "--config.pretrain.batch_size=8",
  "--config.pretrain.validate_every=2",
  "--config.pretrain.validation_episodes=4",
  "--config.metatrain.epochs=1",
  "--config.metatrain.steps=2",
  "--config.metatrain.validation_episodes=4",
  "--config.evaluate.episodes=7",
  "--config.evaluate.batch_size=7",
  "--config.evaluate.pictures=1",
  "--config.evaluate.more=()",
  "--config.evaluate.variants=()",
]


def draw(folder):
  """Ten classes of eight drawings: a polygon of class-specific corners."""
  rng = np.random.default_rng(0)
  for corners in range(3, 13):
    (folder / f"corners_{corners:02d}").mkdir(parents=True)
    for i in range(8):
      noise = rng.integers(0, 90, (48, 48, 3), dtype=np.uint8)
      image = Image.fromarray(noise)
      ImageDraw.Draw(image).regular_polygon(
        (24, 24, 14), corners, rotation=int(rng.integers(360)), fill="white"
      )
      image.save(folder / f"corners_{corners:02d}" / f"{i}.png")


def text(cell):
  """What a cell has printed."""
  return "".join(
    output.get("text", "") for output in cell.get("outputs", [])
  ).replace("\r\n", "\n")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
  """(the executed notebook, its workdir)."""
  place = tmp_path_factory.mktemp("notebook")
  root = place / "checkout"
  for name in ("deepemd_jax", "configs"):
    shutil.copytree(
      ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
    )
  shutil.copy(ROOT / "pyproject.toml", root)
  (root / "launch").mkdir()
  draw(place / "images")
  data = [f"--config.data.folder={place / 'images'}"]
  data += [f"--config.data.directory={place / 'kept'}"]
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("DEEPEMD_FLAGS", shlex.join([*SMALL, *data]))
    patch.setenv("IPYTHONDIR", str(place / "ipython"))
    nbclient.NotebookClient(
      notebook,
      timeout=300,
      kernel_name="python3",
      resources={"metadata": {"path": str(root / "launch")}},
    ).execute()
  return notebook, root / "runs" / "quickstart"


def test_it_is_committed_without_outputs():
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(notebook)
  before = None
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert cell.outputs == [] and cell.execution_count is None
      assert before == "markdown"  # each is introduced
    before = cell.cell_type


def test_results(executed):
  _, workdir = executed
  heads = json.loads((workdir / "results.json").read_text())["heads"]
  assert {"deepemd", "deepemd_equal_weights", "prototype"} <= set(heads)
  assert all(0 <= row["accuracy"] <= 100 for row in heads.values())


def test_the_second_test_repeats_the_numbers(executed):
  notebook, _ = executed
  said = [line for cell in notebook.cells for line in text(cell).splitlines()]
  assert "the same numbers: True" in said
  assert "installed: nothing, all is there" in said
  assert any("CpuDevice" in line for line in said)


def test_figures(executed):
  notebook, workdir = executed
  for name in ("learning_curves", "matched_regions", "own_images"):
    Image.open(workdir / "figures" / f"{name}.png").verify()
  shown = [
    output
    for cell in notebook.cells
    for output in cell.get("outputs", [])
    if "image/png" in output.get("data", {})
  ]
  assert len(shown) == 3


def test_predictions(executed):
  _, workdir = executed
  with (workdir / "predictions.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [row["image"] for row in rows] == [f"query-{x}.png" for x in "AKZ"]
  for row in rows:
    assert row["class"] in "AKZ" and 1 / 3 <= float(row["probability"]) <= 1
  assert workdir.with_suffix(".zip").exists()
