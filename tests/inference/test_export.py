"""Exported folders have programs for JAX alone, and encoders for tests."""

import json
import shutil
import signal
import subprocess
import sys
import time

import commands
import jax
import jaxtyping
import numpy as np
import pytest
from jax import export as jax_export
from paths import ROOT
from PIL import Image
from recipes import evaluation_of_folders, tiny_run

from deepemd_jax import FewShotClassifier, emd, main
from deepemd_jax.checkpoints import manager, pretrained
from deepemd_jax.errors import InputError
from deepemd_jax.inference import crops, export
from deepemd_jax.models import resnet12

# A program of a user who has JAX and NumPy, but not this package.
FRESH = """
import json, os, sys
os.chdir(sys.argv[1])
*load, call = json.load(open("manifest.json"))["load"]
exec("\\n".join(load))
given = numpy.load(sys.argv[2])
support, query = given["support"], given["query"]
exec(call)
assert not [m for m in sys.modules if m.startswith(("deepemd", "flax", "PIL"))]
numpy.save(sys.argv[3], logits)
"""


@pytest.fixture(scope="module", autouse=True)
def unchecked_shapes():
  """Turns off the check of shapes (see conftest.py), which refuses symbols."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of two stages, whose encoders differ."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  tiny_run(workdir, stages=("pretrain",), seed=1)
  other = tiny_run(workdir.with_name("other"), stages=("metatrain",), seed=0)
  (other / "metatrain").rename(workdir / "metatrain")
  return workdir


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
  directory = tmp_path_factory.mktemp("exported") / "models" / "mine"
  export.save(run, directory)
  return directory


def images(count, height, width, seed=0):
  rng = np.random.default_rng([seed, count, height, width])
  return rng.integers(0, 256, (count, height, width, 3), np.uint8)


def test_another_process_with_jax_alone(run, exported, tmp_path):
  """Its numbers of classes and queries, and its sizes, are new."""
  support, query = images(3, 36, 48), images(70, 90, 33)
  np.savez(tmp_path / "in.npz", support=support, query=query)
  arguments = [exported, tmp_path / "in.npz", tmp_path / "out.npy"]
  done = subprocess.run(
    [sys.executable, "-c", FRESH, *map(str, arguments)],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  ours = FewShotClassifier(run, solver=emd.InteriorPoint())
  expected = ours.fit(support, range(3)).logits(query)
  logits = np.load(tmp_path / "out.npy")
  assert logits.shape == expected.shape
  np.testing.assert_allclose(logits, expected, 1e-5, 1e-5)


def test_load_gives_the_same(run, exported):
  programs = export.load(exported)
  support, query = images(1, 30, 30), images(1, 32, 32)
  ours = FewShotClassifier(run).fit(support, ["a"])
  np.testing.assert_allclose(
    programs.classify(support, query), ours.logits(query), atol=5e-4
  )
  nodes = programs.encode(query)
  assert nodes.shape == (1, 4, 40) and nodes.dtype == np.float32
  expected = ours.encoder().all(list(query)).nodes
  np.testing.assert_allclose(nodes, expected, 1e-5, 1e-5)
  assert programs.manifest["encoder"] == "metatrain, step 7"


def test_the_manifest_says_what_is_there(run, exported):
  manifest = json.loads((exported / "manifest.json").read_text())
  assert manifest["parameters_sha256"] == pretrained.load(run).fingerprint
  assert manifest["versions"]["jax"] == jax.__version__
  assert manifest["in_the_programs"]["solver"].startswith("InteriorPoint")
  programs = manifest["programs"]
  classifier = programs["classifier.stablehlo"]
  assert classifier["inputs"] == [
    "uint8[way, support_height, support_width, 3]",
    "uint8[queries, query_height, query_width, 3]",
  ]
  assert classifier["outputs"] == ["float32[queries, way]"]
  for name in programs:
    content = bytearray((exported / name).read_bytes())
    found = jax_export.deserialize(content)
    assert found.platforms == ("cpu", "cuda", "tpu")
    # JAX does not promise that other versions can read custom calls.
    assert "custom_call" not in found.mlir_module().replace(
      "custom_call @shape_assertion", ""
    )


def test_the_folder_is_a_run_without_what_training_needs(run, exported):
  assert sorted(p.name for p in exported.iterdir()) == [
    *("classifier.stablehlo", "config.json", "encoder.stablehlo"),
    *("manifest.json", "metatrain", "pretrain"),
  ]
  assert [p.name for p in exported.parent.iterdir()] == ["mine"]
  assert not list(exported.rglob("train"))
  assert len(list(run.rglob("train"))) == 2
  ours, again = pretrained.load(run), pretrained.load(exported)
  assert ours.fingerprint == again.fingerprint
  assert ours.settings == again.settings
  encoders, copies = (
    pretrained.best_encoders(workdir, ours.settings.backbone)
    for workdir in (run, exported)
  )
  assert list(encoders) == list(copies) == ["pretrain", "metatrain"]
  for stage, best in encoders.items():
    copy = copies[stage]
    assert (best.place, best.score) == (copy.place, copy.score)
    jax.tree.map(np.testing.assert_array_equal, best.variables, copy.variables)


@pytest.mark.soak
def test_it_is_tested_as_the_run_itself(run, exported, tmp_path, capsys):
  """The export also has the prototype's encoder, perhaps of another stage."""
  config = evaluation_of_folders(tmp_path, episodes=20, images=6)
  shutil.copytree(exported, tmp_path / "exported")
  found = []
  for workdir in (run, tmp_path / "exported"):
    main.run(config, workdir)
    results = json.loads((workdir / "results.json").read_text())
    found.append({k: results[k] for k in ("heads", "paired", "encoders")})
  assert found[0] == found[1]
  assert found[0]["encoders"]["deepemd"]["stage"] == "metatrain"
  capsys.readouterr()


@pytest.mark.soak
@pytest.mark.parametrize(
  ("kind", "solver"), [("sampling", "sinkhorn"), ("grid", "regularized_qp")]
)
def test_crops_as_nodes_and_the_runs_own_solver(
  kind, solver, tmp_path, monkeypatch
):
  # Lowering takes long. The tests above lower for the other platforms.
  monkeypatch.setattr(export, "PLATFORMS", ("cpu",))
  run = tiny_run(
    tmp_path / "run",
    nodes={"kind": kind, "grid": [2], "patches": 4},
    emd={"solver": solver, "epsilon": 0.1, "l2_strength": 1.0},
  )
  export.save(run, tmp_path / "exported")
  programs = export.load(tmp_path / "exported")
  (inputs,) = programs.manifest["programs"]["encoder.stablehlo"]["inputs"]
  assert inputs == "uint8[images, 4, 32, 32, 3]"
  view = pretrained.load(run).settings.view
  support, query = images(2, 50, 60), images(3, 50, 60)
  several_crops = [
    np.stack(
      [crops.extract_crops(view, Image.fromarray(image))[0] for image in part]
    )
    for part in (support, query)
  ]
  ours = FewShotClassifier(run).fit(support, ["a", "b"]).logits(query)
  exact = FewShotClassifier(run, solver="auto").fit(support, ["a", "b"])
  assert np.abs(exact.logits(query) - ours).max() > 1e-3
  np.testing.assert_allclose(programs.classify(*several_crops), ours, atol=2e-4)


@pytest.fixture
def refused(capsys):
  """A function that calls the command, which refuses with a message."""

  def calling(message, *arguments):
    commands.assert_refused(
      commands.call(capsys, "export", *arguments), message
    )

  return calling


@pytest.fixture
def no_programs(monkeypatch):
  """Exports leave out the programs, which take seconds."""
  monkeypatch.setattr(export, "_programs", lambda trained: {})


def test_mistakes(run, tmp_path, refused, no_programs, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  checkpoint = f"--checkpoint={run}"
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "precious").touch()
  (tmp_path / "file").touch()
  refused("required: --out", checkpoint)
  refused("full is not an empty directory", checkpoint, "--out=full")
  refused("file is not an empty directory", checkpoint, "--out=file")
  refused("cannot write /proc/x", checkpoint, "--out=/proc/x")
  refused("'absent' is not", "--checkpoint=absent", "--out=new")
  refused("unrecognized arguments: --solver", "--out=new", "--solver")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]
  (tmp_path / "empty").mkdir()
  code, out, _ = commands.call(capsys, "export", checkpoint, "--out=empty")
  assert code == 0 and "empty is ready" in out
  assert (tmp_path / "empty" / "manifest.json").is_file()


def test_a_full_disk_leaves_nothing(
  run, tmp_path, refused, no_programs, monkeypatch
):
  def full(path, content):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(export.pathlib.Path, "write_text", full)
  message = "new: No space left on device"
  refused(message, f"--checkpoint={run}", f"--out={tmp_path / 'new'}")
  assert not list(tmp_path.iterdir())


def test_training_does_not_go_on_from_it(exported):
  shapes = jax.eval_shape(
    lambda: resnet12.init(jax.random.key(0), width=1 / 16)
  )
  place = exported / "metatrain" / "checkpoints"
  with manager.Checkpoints(place, read_only=True) as saved:
    assert saved.best() == 7 and saved.score(7) == 50
    assert saved.restore(7, model=shapes).meta == {"exported_from": "run"}
    with pytest.raises(InputError, match="has no part 'train': a converted or"):
      saved.restore(7, model=shapes, train=shapes)


def test_interrupted(run, tmp_path):
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "deepemd_jax", "export"),
      f"--checkpoint={run}",
      f"--out={tmp_path / 'new'}",
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )
  while process.poll() is None and not list(tmp_path.glob(".new.*/meta*")):
    time.sleep(0.01)
  process.send_signal(signal.SIGINT)
  out, errors = process.communicate()
  assert (process.returncode, out) == (130, ""), errors
  assert errors.strip() == "interrupted; no incomplete file is left"
  assert not list(tmp_path.iterdir())
