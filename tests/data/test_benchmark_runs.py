"""Each published data set through its config: archive to results."""

import importlib
import json

import fake
import pytest

from deepemd_jax import main
from deepemd_jax.data import builders, catalogue
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
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """One folder for all runs: they share their compiled programs."""
  return tmp_path_factory.mktemp("runs")


def prepare(name, place, monkeypatch):
  make, classes = SOURCES[name]
  benchmark = fake.small(name, PER_CLASS, classes)
  monkeypatch.setitem(catalogue.BENCHMARKS, name, benchmark)
  source = place / f"{name}_source"
  if not source.exists():
    make(source, PER_CLASS)
  builders.prepare(benchmark, str(place / "data"), source=source)


def tiny(config, place):
  """Two steps of each training stage, two test episodes, a small network."""
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
  config.evaluate.pictures = 1
  return config


PROTOCOLS = {
  "cub": "cub:160",
  "fc100": "fc100:32",
  "cifar_fs": "cifar_fs:32",
  "miniimagenet": "miniimagenet:160",
  "tieredimagenet": "tieredimagenet:original",
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_config_trains_and_tests(name, place, monkeypatch, capsys):
  config = importlib.import_module(f"configs.{name}").get_config("runlocal")
  tiny(config, place)
  with pytest.raises(MissingData, match=f"data set {name} is not prepared"):
    main.run(config, place / name)
  assert not (place / name).exists()
  prepare(name, place, monkeypatch)
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
    prepare(name, place, monkeypatch)
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
