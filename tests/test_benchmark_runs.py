"""Each published data set through its config: archive to results."""

import functools
import importlib
import json

import fake
import pytest

from deepemd_jax import main
from deepemd_jax.config import resolve
from deepemd_jax.data.published import catalogue, prepare
from deepemd_jax.errors import MissingData

PER_CLASS = 4
# How to make a small source, its classes a split, and a layout.
SOURCES = {
  "cub": (fake.cub_archive, 3),
  "cub_full": (fake.cub_archive, 3),
  "fc100": (fake.cifar_archive, 100),
  "cifar_fs": (fake.cifar_archive, 100),
  "miniimagenet": (fake.ilsvrc_folder, 3),
  "tieredimagenet": (
    lambda path, per_class: fake.ready_folders(
      path, "tieredimagenet", per_class
    ),
    3,
  ),
  "cub_retrieval": (
    lambda path, per_class: fake.cub_archive(
      path, per_class, fake.all_names("cub_retrieval", 20)
    ),
    20,
  ),
  "cars196": (functools.partial(fake.cars_folder, classes=20), 20),
  "stanford_online_products": (
    functools.partial(fake.products_archive, classes=20),
    20,
  ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """One folder for all runs: they share their compiled programs."""
  return tmp_path_factory.mktemp("runs")


def make_ready(name, place, monkeypatch):
  make, classes = SOURCES[name]
  benchmark = fake.small(name, PER_CLASS, classes)
  source = place / f"{name}_source"
  if not source.exists():
    make(source, PER_CLASS)
  monkeypatch.setitem(catalogue.BENCHMARKS, name, benchmark)
  prepare.prepare(benchmark, str(place / "data"), source=source)


def tiny(config, place):
  """Two steps of each training stage, two test episodes, a small network; no
  pictures, which `test_end_to_end` looks at."""
  config.data.directory = str(place / "data")
  config.image.size = 32
  config.model.width = 1 / 16
  config.episode.way, config.episode.query = 2, 2
  config.pretrain.batch_size = 6
  config.pretrain.epochs = 1
  config.metatrain.steps = 2
  for stage in (config.pretrain, config.metatrain):
    stage.validation_episodes = 2
  config.evaluate.episodes = 2
  config.evaluate.batch_size = 2
  config.evaluate.encode_batch_size = 12
  config.evaluate.pictures = 0
  return config


PROTOCOLS = {
  "cub": "cub:160",
  "fc100": "fc100:32",
  "cifar_fs": "cifar_fs:32",
  "miniimagenet": "miniimagenet:160",
  "tieredimagenet": "tieredimagenet:original",
}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.soak) if name == "cifar_fs" else name
    for name in PROTOCOLS
  ],
)
def test_a_config_trains_and_tests(name, place, monkeypatch, capsys):
  config = importlib.import_module(f"configs.{name}").get_config("runlocal")
  tiny(config, place)
  with pytest.raises(MissingData, match=f"data set {name} is not prepared"):
    main.run(config, place / name)
  assert not (place / name).exists()
  make_ready(name, place, monkeypatch)
  main.run(config, place / name)
  found = json.loads((place / name / "results.json").read_text())
  for which in ("trained on", "tested on"):
    assert found["protocol"][which]["name"] == PROTOCOLS[name]
  assert found["heads"].keys() >= {"deepemd", "prototype"}
  assert f"{PROTOCOLS[name]}: 2-way 1-shot" in capsys.readouterr().out
  for stage in ("pretrain", "metatrain"):
    rows = (place / name / stage / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] >= 2


@pytest.mark.parametrize("variant", ["grid", "5shot", "cross_cub"])
def test_a_trained_encoder_is_tested_another_way(variant, place, monkeypatch):
  """In the same workdir, without training, and without wiping out a result."""
  trained = place / "miniimagenet"
  if not trained.exists():
    pytest.skip("the run of miniimagenet has failed")
  for name in ("miniimagenet", "cub"):
    make_ready(name, place, monkeypatch)
  module = importlib.import_module("configs.miniimagenet")
  config = tiny(module.get_config(f"runlocal,{variant}"), place)
  config.episode.shot = min(config.episode.shot, 2)
  config.sfc.epochs = 2
  if variant == "grid":
    config.stages = ("evaluate",)
  before = (trained / "metatrain" / "metrics.jsonl").read_bytes()
  main.run(config, trained)
  assert (trained / "metatrain" / "metrics.jsonl").read_bytes() == before
  found = json.loads((trained / "results.json").read_text())
  if variant == "cross_cub":
    assert found["protocol"]["tested on"]["name"] == "cub:160"
    assert found["protocol"]["trained on"]["name"] == "miniimagenet:160"
  kept = {path.name for path in (trained / "results").iterdir()}
  assert "miniimagenet-160_2way_1shot_fcn.json" in kept and len(kept) > 1


@pytest.mark.parametrize(
  ("name", "recalls"),
  [
    pytest.param("cub_retrieval", (1, 2, 4, 8), marks=pytest.mark.soak),
    pytest.param("cars196", (1, 2, 4, 8), marks=pytest.mark.soak),
    ("stanford_online_products", (1, 10, 100, 1000)),
  ],
)
def test_a_config_trains_and_retrieves(name, recalls, place, monkeypatch):
  """Archive to table; trained without the classes that settings are chosen on,
  nor those that are looked for."""
  config = importlib.import_module(f"configs.{name}").get_config("runlocal")
  tiny(config, place)
  config.metatrain.way = min(config.metatrain.way, 2)
  make_ready(name, place, monkeypatch)
  main.run(config, place / name)
  found = json.loads((place / name / "retrieve.json").read_text())
  assert found["gallery"] == {"images": 20 * PER_CLASS, "classes": 20}
  assert found["protocol"]["trained on"]["name"] == f"{name}:160"
  assert (
    "tenth training class held out"
    in (found["protocol"]["trained on"]["title"])
  )
  assert set(found["methods"]["EMD"]) == {
    *("stage", "R-Precision", "MAP@R"),
    *(f"Recall@{k}" for k in recalls),
  }
  images = {s: resolve.source(config).load(s) for s in ("train", "val", "test")}
  keys = [set(loaded.keys) for loaded in images.values()]
  assert [len(k) / PER_CLASS for k in keys] == [18, 2, 20]
  assert len(set.union(*keys)) == 40 * PER_CLASS
  for split, loaded in images.items():
    shown = [loaded.class_names[label] for label in loaded.labels]
    assert list(dict.fromkeys(shown)) == list(loaded.class_names), split
  # The same rows of one stored split, held out or not.
  whole = fake.names(name, "train", 20)
  assert list(images["val"].class_names) == whole[9::10]
