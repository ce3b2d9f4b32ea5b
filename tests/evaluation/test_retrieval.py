"""Tests of the stage `retrieve`, its results and its files."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import recipes
from paths import ROOT
from PIL import Image

from configs import folder
from deepemd_jax.checkpoints import pretrained
from deepemd_jax.config import validate
from deepemd_jax.config.resolve import resolve
from deepemd_jax.data.sources import open_source
from deepemd_jax.errors import InputError
from deepemd_jax.evaluation import retrieval
from deepemd_jax.evaluation.features import ImageSetEncoder
from deepemd_jax.models import matching


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Ten classes of drawings, one of which has a single image."""
  root = tmp_path_factory.mktemp("retrieval") / "images"
  counts = {n: 1 if n == 12 else 2 + n % 5 for n in range(3, 13)}
  recipes.draw_polygons(root, counts)
  lines = ["label,split"]
  for corners in counts:
    split = ("train", "val", "test")[(corners > 3) + (corners > 6)]
    lines.append(f"corners_{corners:02d},{split}")
  (root / "split.csv").write_text("\n".join(lines) + "\n")
  return root


FIELDS = {
  "stages": ("retrieve",),
  "image.size": 32,
  "image.crop": "whole",
  "model.width": 1 / 16,
  "retrieve.depths": (1, 3, 6),
  "retrieve.pictures": 2,
}


def flags(images):
  fields = FIELDS | places(images)
  return [f"--config.{name}={value!s}" for name, value in fields.items()]


def places(images):
  return {
    "data.name": "folder:32",  # the size of the drawings
    "data.folder": str(images),
    "data.csv": str(images / "split.csv"),
    "data.directory": f"{images}-kept",
  }


def settings(images, fields=(), **more):
  """Returns the settings of a run; `more` is for the stage retrieve."""
  made = folder.get_config()
  made.update_from_flattened_dict(FIELDS | places(images) | dict(fields))
  made.retrieve.update(more)
  validate.validate(made)
  return resolve(made)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, images):
  """A workdir with different encoders of two stages."""
  place = tmp_path_factory.mktemp("runs")
  made = recipes.tiny_run(place / "run", stages=("pretrain",))
  other = recipes.tiny_run(place / "other", stages=("metatrain",), seed=1)
  shutil.move(other / "metatrain", made / "metatrain")
  with contextlib.redirect_stdout(io.StringIO()) as table:
    retrieval.run(settings(images), made)
  (made / "table.txt").write_text(table.getvalue())
  return made


def results(workdir):
  """Returns retrieve.json without the fields that differ between equal runs."""
  found = json.loads((workdir / "retrieve.json").read_text())
  for name in ("timing", "device"):
    found.pop(name)
  for row in found["curve"]:
    row.pop("ms_per_query")
  return found


def again(workdir, tmp_path, made):
  """Returns the results of the same encoders with other settings."""
  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / "retrieve.json").unlink()
  retrieval.run(made, copy)
  return results(copy)


@jax.jit
def compared(nodes):
  """Computes the cosine and the EMD similarity of every pair."""
  cosine = matching.prototype_logits(nodes, nodes, 1.0)
  return cosine, matching.logits(nodes, nodes, None, 1.0)


def obvious(settings, variables, images, depth):
  """Computes the metrics of both rankings by loops over queries."""
  nodes = ImageSetEncoder.of(settings, "test")(variables, images).array
  cosine, emd = map(np.asarray, compared(nodes))
  rows = {"global": [], "EMD": []}
  for q, label in enumerate(images.labels):
    others = [i for i in range(len(images.labels)) if i != q]
    right = sum(images.labels[i] == label for i in others)
    if not right:
      continue
    by_cosine = sorted(others, key=lambda i: -cosine[q, i])
    first = sorted(by_cosine[:depth], key=lambda i: -emd[q, i])
    for name, order in (
      ("global", by_cosine),
      ("EMD", first + by_cosine[depth:]),
    ):
      hits = [images.labels[i] == label for i in order]
      precision = [sum(hits[: i + 1]) / (i + 1) for i in range(right)]
      rows[name].append(
        [
          *(100.0 * any(hits[:k]) for k in (1, 2, 4, 8)),
          100.0 * sum(hits[:right]) / right,
          100.0
          * sum(p * h for p, h in zip(precision, hits[:right], strict=True))
          / right,
        ]
      )
  return {name: np.array(values) for name, values in rows.items()}


def test_the_table_is_the_slow_and_obvious_one(workdir, images):
  made, found = settings(images), results(workdir)
  encoders = pretrained.best_encoders(workdir, made.backbone)
  sets = {s: open_source(made.data).load(s) for s in ("val", "test")}
  depth = max(made.retrieve.depths)
  on_val_sets = {
    stage: obvious(made, best.variables, sets["val"], depth)
    for stage, best in encoders.items()
  }
  for name in ("global", "EMD"):
    maps = {stage: rows[name][:, -1] for stage, rows in on_val_sets.items()}
    best = max(maps, key=lambda stage: maps[stage].mean())
    assert found["chosen"][name] == best
    on_val = found["chosen"]["on"][name]
    for stage, values in maps.items():
      assert on_val[stage]["MAP@R"] == pytest.approx(values.mean())
  on_test_sets = {
    stage: obvious(made, encoders[stage].variables, sets["test"], depth)
    for stage in set(found["chosen"][name] for name in ("global", "EMD"))
  }
  values = {
    name: on_test_sets[found["chosen"][name]][name]
    for name in ("global", "EMD")
  }
  metrics = ["Recall@1", "Recall@2", "Recall@4", "Recall@8"]
  metrics += ["R-Precision", "MAP@R"]
  for name in ("global", "EMD"):
    means = [found["methods"][name][metric]["mean"] for metric in metrics]
    np.testing.assert_allclose(means, values[name].mean(0), atol=1e-9)
  difference = values["EMD"] - values["global"]
  paired = [found["paired"]["EMD - global"][metric] for metric in metrics]
  np.testing.assert_allclose(
    [row["mean"] for row in paired], difference.mean(0), atol=1e-9
  )
  np.testing.assert_allclose(
    [row["ci95"] for row in paired],
    1.96 * difference.std(0) / np.sqrt(len(difference)),
  )
  # The image of a class with one image is no query, but is in the gallery.
  assert found["gallery"] == {"images": len(sets["test"].labels), "classes": 6}
  assert found["queries"] == found["of"] == len(sets["test"].labels) - 1


def test_the_curve_ends_in_the_table(workdir):
  found = results(workdir)
  assert [row["depth"] for row in found["curve"]] == [1, 3, 6]
  first, last = found["curve"][0]["methods"], found["curve"][-1]["methods"]
  for name, row in found["methods"].items():
    for metric, value in last[name].items():
      assert value == row[metric]["mean"]
  # Re-ranking a single image changes nothing.
  same = "global, EMD's encoder" if len(found["methods"]) == 3 else "global"
  assert first["EMD"] == first[same] != last["EMD"]


def test_what_it_leaves_behind(workdir):
  found = json.loads((workdir / "retrieve.json").read_text())
  assert {"nodes", "versions", "device", "protocol"} <= set(found)
  assert found["seed"] == 0 and found["split"] == "test"
  assert found["timing"]["emd_ms_per_query"] > 0
  assert all(row["ms_per_query"] > 0 for row in found["curve"])
  for figure in ("retrieval", "retrieved"):
    Image.open(workdir / "figures" / f"{figure}.png").verify()
  table = (workdir / "table.txt").read_text()
  assert "6 classes, each of" in table and "EMD re-ranks 6" in table
  assert f"{found['paired']['EMD - global']['MAP@R']['mean']:+.2f}" in table


def test_nothing_depends_on_batches_or_memory(workdir, images, tmp_path):
  fields = {"evaluate.encode_batch_size": 9, "evaluate.memory": 0.0}
  made = settings(images, fields, batch_size=5, search_batch_size=4, block=7)
  assert again(workdir, tmp_path, made) == results(workdir)
  (kept,) = (tmp_path / "copy" / "results").iterdir()  # the same test
  assert kept.name.startswith("folder-32_retrieve_test_fcn_seed0_")


@pytest.mark.soak
@pytest.mark.parametrize("devices", [1, 4])
def test_nothing_depends_on_the_devices(devices, workdir, images, tmp_path):
  """The test runs the command in a separate process."""
  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / "retrieve.json").unlink()
  count = f"--xla_force_host_platform_device_count={devices}"
  environment = dict(os.environ)
  environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {count}"
  done = subprocess.run(
    [
      *(sys.executable, "-m", "deepemd_jax.main", "--config=configs/folder.py"),
      *(*flags(images), "--config.retrieve.batch_size=6", f"--workdir={copy}"),
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=environment,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  device = json.loads((copy / "retrieve.json").read_text())["device"]
  assert device.startswith(f"{devices} x")
  assert results(copy) == results(workdir)
  assert "paired differences over queries" in done.stdout


def test_some_ask_and_validation_classes_serve_while_settings_are_chosen(
  workdir, images, tmp_path, capsys
):
  made = settings(images, split="val", queries=5, depths=(2, 999))
  found = again(workdir, tmp_path, made)
  assert found["split"] == "val"
  for name, row in found["chosen"]["on"].items():
    means = row[found["chosen"][name]]
    assert found["methods"][name]["MAP@R"]["mean"] == means["MAP@R"]
  assert found["queries"] == 5 and found["of"] == 11
  # A depth above the size of the gallery means all images.
  assert found["depth"] == found["gallery"]["images"] - 1
  assert "5 of 11 images are queries" in capsys.readouterr().out
  assert len(list((tmp_path / "copy" / "results").iterdir())) == 2


def test_who_asks():
  labels = np.repeat(np.arange(4), [5, 1, 7, 2])
  rows = retrieval.choose_queries(labels, 6, seed=0)
  assert len(set(rows.tolist())) == 6 and 5 not in rows
  np.testing.assert_array_equal(
    rows, retrieval.choose_queries(labels, 6, seed=0)
  )
  assert (rows != retrieval.choose_queries(labels, 6, seed=1)).any()
  np.testing.assert_array_equal(
    retrieval.choose_queries(labels, 0, 0), np.flatnonzero(labels != 1)
  )


def test_without_an_encoder_it_says_what_to_do(images, tmp_path):
  with pytest.raises(InputError, match="pretrain and metatrain first"):
    retrieval.run(settings(images), tmp_path)
  assert not list(tmp_path.iterdir())
