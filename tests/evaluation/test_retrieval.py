"""The stage `retrieve`: what it finds, states and writes."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import recipes
from paths import ROOT
from PIL import Image, ImageDraw

from configs import folder
from deepemd_jax.config import resolve
from deepemd_jax.errors import InputError
from deepemd_jax.evaluation import fewshot, retrieval
from deepemd_jax.models import matching


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Ten classes of drawings, of different sizes; one has a single image."""
  root = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for corners in range(3, 13):
    place = root / f"corners_{corners:02d}"
    place.mkdir()
    for i in range(1 if corners == 12 else 2 + corners % 5):
      noise = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
      image = Image.fromarray(noise)
      center = rng.integers(12, 20, 2).tolist()
      ImageDraw.Draw(image).regular_polygon(
        (*center, 10), corners, rotation=int(rng.integers(360)), fill="white"
      )
      image.save(place / f"{i}.png")
  lines = ["label,split"]
  for corners in range(3, 13):
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
    "data.folder": str(images),
    "data.csv": str(images / "split.csv"),
    "data.directory": f"{images}-kept",
  }


def config(images, **more):
  made = folder.get_config()
  made.update_from_flattened_dict(FIELDS | places(images))
  made.retrieve.update(more)
  resolve.check(made)
  return made


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, images):
  """Two stages' encoders, the second of which is another."""
  place = tmp_path_factory.mktemp("runs")
  made = recipes.tiny_run(place / "run", stages=("pretrain",))
  other = recipes.tiny_run(place / "other", stages=("metatrain",), seed=1)
  shutil.move(other / "metatrain", made / "metatrain")
  retrieval.run(config(images), made)
  return made


def results(workdir):
  """retrieve.json without what equal runs may differ in."""
  found = json.loads((workdir / "retrieve.json").read_text())
  for name in ("timing", "device"):
    found.pop(name)
  for row in found["curve"]:
    row.pop("ms_per_query")
  return found


def again(workdir, tmp_path, made):
  """The results of the same encoders with another config."""
  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / "retrieve.json").unlink()
  retrieval.run(made, copy)
  return results(copy)


def obvious(config, variables, images, depth):
  """Metrics of both rankings, in plain loops over queries."""
  nodes = fewshot.encoder(config)(variables, images)
  cosine = np.asarray(matching.prototype_logits(nodes, nodes, 1.0))
  emd = np.asarray(matching.logits(nodes, nodes, None, 1.0))
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
  made, found = config(images), results(workdir)
  encoders = fewshot.best_encoders(made, workdir)
  sets = {s: resolve.source(made).load(s) for s in ("val", "test")}
  depth = max(made.retrieve.depths)
  for name in ("global", "EMD"):
    maps = {
      stage: obvious(made, e["variables"], sets["val"], depth)[name][:, -1]
      for stage, e in encoders.items()
    }
    best = max(maps, key=lambda stage: maps[stage].mean())
    assert found["chosen"][name] == best
    on_val = found["chosen"]["on"][name]
    for stage, values in maps.items():
      assert on_val[stage]["MAP@R"] == pytest.approx(values.mean())
  values = {
    name: obvious(
      made, encoders[found["chosen"][name]]["variables"], sets["test"], depth
    )[name]
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
  # A class with one image asks for nothing, but may be found.
  assert found["gallery"] == {"images": len(sets["test"].labels), "classes": 6}
  assert found["queries"] == found["of"] == len(sets["test"].labels) - 1


def test_the_curve_ends_in_the_table(workdir):
  found = results(workdir)
  assert [row["depth"] for row in found["curve"]] == [1, 3, 6]
  first, last = found["curve"][0]["methods"], found["curve"][-1]["methods"]
  for name, row in found["methods"].items():
    for metric, value in last[name].items():
      assert value == row[metric]["mean"]
  # One image is in order already.
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
  table = retrieval.table(found)
  assert "6 classes, each of" in table and "EMD re-ranks 6" in table
  assert f"{found['paired']['EMD - global']['MAP@R']['mean']:+.2f}" in table


def test_nothing_depends_on_batches_or_memory(workdir, images, tmp_path):
  made = config(images, batch_size=5, search_batch_size=4, block=7)
  made.evaluate.encode_batch_size = 9
  made.evaluate.memory = 0.0
  assert again(workdir, tmp_path, made) == results(workdir)


@pytest.mark.parametrize("devices", [1, 4])
def test_nothing_depends_on_the_devices(devices, workdir, images, tmp_path):
  """The command itself, in a process of its own."""
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


def test_some_ask(workdir, images, tmp_path):
  found = again(workdir, tmp_path, config(images, queries=5, depths=(2, 999)))
  assert found["queries"] == 5 and found["of"] == results(workdir)["of"]
  # More than there are is all.
  assert found["depth"] == found["gallery"]["images"] - 1
  assert "5 of " in retrieval.table(
    json.loads((tmp_path / "copy" / "retrieve.json").read_text())
  )
  labels = np.repeat(np.arange(4), [5, 1, 7, 2])
  rows = retrieval.drawn(labels, 6, seed=0)
  assert len(set(rows.tolist())) == 6 and 5 not in rows
  np.testing.assert_array_equal(rows, retrieval.drawn(labels, 6, seed=0))
  assert (rows != retrieval.drawn(labels, 6, seed=1)).any()
  np.testing.assert_array_equal(
    retrieval.drawn(labels, 0, 0), np.flatnonzero(labels != 1)
  )


def test_validation_classes_while_settings_are_chosen(
  workdir, images, tmp_path
):
  found = again(workdir, tmp_path, config(images, split="val"))
  assert found["split"] == "val"
  for name, row in found["chosen"]["on"].items():
    seen = row[found["chosen"][name]]
    assert found["methods"][name]["MAP@R"]["mean"] == seen["MAP@R"]


def test_without_an_encoder_it_says_what_to_do(images, tmp_path):
  with pytest.raises(InputError, match="pretrain and metatrain first"):
    retrieval.run(config(images), tmp_path)
  assert not list(tmp_path.iterdir())
