"""Tests of the installed package, outside of a checkout."""

import importlib.metadata
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import environments
import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT
from PIL import Image

from deepemd_jax.utils import extra

MOST_PACKAGES = 12
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

USE_THE_EMD = """
import json, pathlib
import jax, numpy as np
import deepemd_jax
from deepemd_jax import emd

cost = np.array([[0.0, 1.0], [1.0, 0.5]], np.float32)
weights = np.array([0.5, 0.5], np.float32)
plan = emd.solve(cost, weights, weights)
value, slope = jax.value_and_grad(emd.distance)(cost, weights, weights)
refusals = {}
for name in ("FewShotClassifier", "DeepEMD"):
  try:
    getattr(deepemd_jax, name)
  except ImportError as error:
    refusals[name] = str(error)
print(json.dumps({
  "value": float(value),
  "slope": np.asarray(slope).tolist(),
  "flow": np.asarray(plan.flow).tolist(),
  "place": str(pathlib.Path(deepemd_jax.__file__).parent),
  "refusals": refusals,
}))
"""
TWO_STEPS = [
  "--config=quickstart",
  '--config.stages=("pretrain",)',
  "--config.data.name=folder:32",
  "--config.image.size=32",
  "--config.image.pretrain_size=32",
  "--config.model.width=0.0625",
  "--config.episode.way=2",
  "--config.episode.query=1",
  "--config.pretrain.epochs=1",
  "--config.pretrain.batch_size=4",
  "--config.pretrain.warmup_epochs=0",
  "--config.pretrain.validation_episodes=1",
]


def build(source, out, kind):
  """Builds a "sdist" or "wheel" from the folder `source`; returns its path."""
  code = f"""
import sys
from setuptools import build_meta
name = build_meta.build_{kind}(sys.argv[1])
print("", name, sep="\\n")
"""
  line = [sys.executable, "-c", code, str(out)]
  done = subprocess.run(line, capture_output=True, text=True, cwd=source)
  assert done.returncode == 0, done.stderr[-3000:]
  return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
  source = tmp_path_factory.mktemp("checkout")
  for name in ("deepemd_jax", "configs"):
    shutil.copytree(
      ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
    )
  for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  # Without optimizations, compilation takes half as long.
  script = source / "deepemd_jax" / "emd" / "native" / "build.py"
  text = script.read_text()
  assert "-O3" in text
  script.write_text(text.replace("-O3", "-O0"))
  return build(source, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
  """A wheel that is built from the sdist, as pip does it."""
  place = tmp_path_factory.mktemp("unpacked")
  with tarfile.open(sdist) as archive:
    archive.extractall(place, filter="data")
  (source,) = place.iterdir()
  return build(source, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def core(wheel, tmp_path_factory):
  """An environment with the wheel and its packages, without extras."""
  environment = environments.Environment(tmp_path_factory.mktemp("core"))
  needed = environments.needs(PROJECT["dependencies"])
  environments.link(needed, environment.packages)
  environment.install(wheel)
  return environment


@pytest.fixture(scope="module")
def full(wheel, tmp_path_factory):
  """An environment with the wheel and all packages."""
  environment = environments.Environment(tmp_path_factory.mktemp("full"))
  environments.link_all(environment.packages)
  environment.install(wheel)
  return environment


@pytest.fixture
def images(tmp_path):
  """Six classes of four images, for training, validation and test."""
  rng = np.random.default_rng(0)
  for split in ("train", "val", "test"):
    for name in ("a", "b"):
      folder = tmp_path / "images" / split / f"{split}_{name}"
      folder.mkdir(parents=True)
      for i in range(4):
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
  return tmp_path / "images"


def test_the_wheel_holds_the_package_and_the_recipes_and_no_more(wheel):
  def listing(folder, start):
    return {
      f"{start}/{path.relative_to(ROOT / folder).as_posix()}"
      for path in (ROOT / folder).rglob("*")
      if path.is_file() and path.name != "README.md" and path.suffix != ".pyc"
    }

  expected = listing("deepemd_jax", "deepemd_jax")
  expected |= listing("configs", "deepemd_jax/recipes")
  expected = {name for name in expected if not name.endswith(".so")}
  files = zipfile.ZipFile(wheel).namelist()
  files = {name for name in files if ".dist-info/" not in name}
  compiled = {name for name in files if name.endswith(".so")}
  assert files - compiled == expected
  assert [pathlib.Path(name).name.split(".")[0] for name in compiled] == [
    "_transport"
  ]


def test_the_version_is_said_alike_everywhere(wheel):
  import deepemd_jax

  assert deepemd_jax.__version__ == PROJECT["version"]
  assert f"-{PROJECT['version']}-" in wheel.name
  citation = (ROOT / "CITATION.cff").read_text()
  assert f"\nversion: {PROJECT['version']}\n" in citation


def check_emd(environment, folder):
  """Uses the EMD, and names that need missing packages, in an empty folder."""
  done = environment.call("python", "-c", USE_THE_EMD, cwd=folder)
  assert done.returncode == 0, done.stderr[-3000:]
  answer = json.loads(done.stdout)
  assert answer["place"] == str(environment.packages / "deepemd_jax")
  np.testing.assert_allclose(answer["flow"], [[0.5, 0], [0, 0.5]], atol=1e-5)
  np.testing.assert_allclose(answer["value"], 0.25, atol=1e-5)
  np.testing.assert_allclose(answer["slope"], answer["flow"], atol=1e-5)
  for line in answer["refusals"].values():
    assert "\n" not in line and extra.HOW in line
  return answer


def test_the_emd_needs_few_packages(core, tmp_path):
  there = {path.name for path in core.packages.glob("*.dist-info")}
  assert len(there) <= MOST_PACKAGES, sorted(there)
  answer = check_emd(core, tmp_path)
  assert set(answer["refusals"]) == {"FewShotClassifier", "DeepEMD"}


def test_a_wheel_solves_by_its_native_code(core, tmp_path):
  """The command is that with which cibuildwheel tests each wheel."""
  settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
  command = settings["tool"]["cibuildwheel"]["test-command"]
  done = core.call(*command.format(project=ROOT).split(), cwd=tmp_path)
  place = core.packages / "deepemd_jax"
  assert done.stdout == f"solved natively in {place}\n", done.stderr[-3000:]


def test_the_workflow_of_the_wheels_can_be_read():
  text = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
  workflow = yaml.safe_load(text)
  for path in workflow[True]["pull_request"]["paths"]:  # YAML 1.1: on is True
    assert list(ROOT.glob(path)), path
  for job in workflow["jobs"].values():
    assert all("uses" in step or "run" in step for step in job["steps"])


@pytest.mark.parametrize(
  "line",
  [
    "python -m deepemd_jax.main --config=quickstart",
    "deepemd train --config=quickstart",
    "deepemd classify --support a --query b --out c",
    "deepemd search --gallery a --query b",
    "deepemd demo",
    "deepemd export --out c",
    "deepemd convert a.pth b",
  ],
)
def test_what_needs_the_extra_says_so_in_one_line(line, core, tmp_path):
  for name in ("a/cat/1.png", "a/dog/1.png", "b/1.png"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  before = sorted(tmp_path.rglob("*"))
  done = core.call(*line.split(), cwd=tmp_path)
  assert done.returncode == 2, done.stderr
  assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
  assert done.stderr.startswith("deepemd_jax: error: ")
  assert extra.HOW in done.stderr
  assert sorted(tmp_path.rglob("*")) == before


def test_help_needs_no_extra(core, tmp_path):
  done = core.call("deepemd", "--help", cwd=tmp_path)
  assert done.returncode == 0 and "classify" in done.stdout, done.stderr


def test_two_steps_of_training_from_an_empty_folder(full, images, tmp_path):
  folder = tmp_path / "empty"
  folder.mkdir()
  data = [f"--config.data.folder={images}"]
  data += [f"--config.data.directory={tmp_path / 'kept'}"]
  line = ["-m", "deepemd_jax.main", *TWO_STEPS, *data]
  done = full.call("python", *line, cwd=folder)
  assert done.returncode == 0, done.stderr[-3000:]
  (metrics,) = folder.glob("runs/quickstart/pretrain/metrics.jsonl")
  rows = [json.loads(row) for row in metrics.read_text().splitlines()]
  assert rows[-1]["step"] == 2


def test_the_extra_is_known_by_its_imports():
  """So a missing package of the extra is reported as such."""
  modules = importlib.metadata.packages_distributions()
  listed = {
    canonicalize_name(Requirement(line).name)
    for line in PROJECT["optional-dependencies"]["train"]
  }
  listed -= environments.needs(PROJECT["dependencies"])  # SciPy
  known = {
    canonicalize_name(name)
    for module in extra.MODULES
    for name in modules[module]
  }
  assert listed <= known


@pytest.mark.parametrize(
  ("name", "is_told"),
  [
    ("absent", True),
    ("absent.part", True),
    ("flax.of_a_newer_version", False),
    ("unrelated", False),
    (None, False),
  ],
)
def test_only_what_the_extra_would_bring_is_blamed_on_it(
  name, is_told, monkeypatch
):
  monkeypatch.setattr(extra, "MODULES", {"absent", "flax"})
  line = extra.missing(ModuleNotFoundError("no module", name=name))
  assert bool(line) == is_told
  assert not line or (extra.HOW in line and "absent" in line)


@pytest.mark.soak
def test_pip_brings_few_packages(wheel, tmp_path):
  """This test uses the package index; the others use installed metadata."""
  environment = environments.Environment(tmp_path / "fresh")
  environment.pip("install", "--quiet", str(wheel))
  rows = json.loads(environment.pip("list", "--format=json"))
  names = {canonicalize_name(row["name"]) for row in rows}
  assert len(names) <= MOST_PACKAGES, sorted(names)
  assert names == environments.needs(PROJECT["dependencies"]) | {"deepemd-jax"}
  folder = tmp_path / "empty"
  folder.mkdir()
  check_emd(environment, folder)
