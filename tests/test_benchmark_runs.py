"""Each published data set runs with its recipe, from an archive to results.

The network is one block of ResNet-12. `test_end_to_end` has the whole network.
"""

import importlib
import json

import fake
import numpy as np
import one_block
import pytest

from deepemd_jax import main
from deepemd_jax.config import resolve
from deepemd_jax.data.published import catalogue, prepare
from deepemd_jax.data.sources import open_source
from deepemd_jax.errors import MissingData
from deepemd_jax.training import metatrain

PER_CLASS = 4
SOAK = pytest.mark.soak
# The full names in the results. The small archives get copies of 16 pixels.
# Retrieval needs 20 classes in a split, because every tenth is held out.
FEW_SHOT = {
  "cub": "cub:16",
  "fc100": "fc100:32",
  "cifar_fs": "cifar_fs:32",
  "miniimagenet": "miniimagenet:16",
  "tieredimagenet": "tieredimagenet:original",
}
RETRIEVAL = {
  "cub_retrieval": (1, 2, 4, 8),
  "cars196": (1, 2, 4, 8),
  "stanford_online_products": (1, 10, 100, 1000),
}


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
  one_block.register(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """One folder for all runs, so that they share their compiled programs."""
  return tmp_path_factory.mktemp("runs")


@pytest.fixture
def make_ready(place, monkeypatch):
  def make(name):
    classes = 20 if name in RETRIEVAL else 3
    folder = place / f"{name}_source"
    if folder.exists():
      benchmark = fake.small(name, PER_CLASS, fake.classes_of(name, classes))
    else:
      _, benchmark = fake.source(name, folder, PER_CLASS, classes)
    monkeypatch.setitem(catalogue.BENCHMARKS, name, benchmark)
    prepare.prepare(benchmark, str(place / "data"), source=folder)
    return benchmark

  return make


def recipe(name, place, arguments="laptop"):
  module = importlib.import_module(f"configs.{name}")
  return tiny(module.get_config(arguments), place)


def tiny(config, place):
  """Makes a config small: two steps a stage, two episodes, a small network.

  It draws no pictures. `test_end_to_end` tests the pictures.
  """
  config.data.directory = str(place / "data")
  config.image.size = 32
  config.model.backbone = one_block.NAME
  config.episode.way, config.episode.query = 2, 2
  config.pretrain.batch_size = 6
  config.pretrain.epochs, config.pretrain.warmup_epochs = 1, 0
  config.metatrain.steps = 2
  for stage in (config.pretrain, config.metatrain):
    stage.validation_episodes = 2
  config.evaluate.episodes = 2
  config.evaluate.more = ()
  config.evaluate.batch_size = 2
  config.evaluate.encode_batch_size = 12
  config.evaluate.pictures = 0
  config.metatrain.way = min(config.metatrain.way, 2)
  return config


@pytest.mark.parametrize("name", [*FEW_SHOT, *RETRIEVAL])
def test_a_recipe_opens_its_data_and_makes_a_batch(name, place, make_ready):
  config = recipe(name, place)
  with pytest.raises(MissingData, match=f"data set {name} is not prepared"):
    main.run(config, place / "none")
  assert not (place / "none").exists()
  benchmark = make_ready(name)
  settings = resolve.resolve(config)
  source = open_source(settings.data)
  full = FEW_SHOT.get(name, f"{name}:16")
  assert source.protocol == full and benchmark.title in source.title
  images = {s: source.load(s) for s in ("train", "val", "test")}
  for split, loaded in images.items():
    shown = [loaded.class_names[label] for label in loaded.labels]
    assert list(dict.fromkeys(shown)) == list(loaded.class_names), split
    assert source.counts(split) == dict.fromkeys(shown, PER_CLASS)
  keys = [set(loaded.keys) for loaded in images.values()]
  assert len(set.union(*keys)) == sum(map(len, keys))
  if name in RETRIEVAL:
    assert [len(k) / PER_CLASS for k in keys] == [18, 2, 20]
    # Held-out classes and others are rows of the same stored split.
    whole = fake.names(name, "train", 20)
    assert list(images["val"].class_names) == whole[9::10]
    assert "tenth training class held out" in source.title
  batch = metatrain.make_batches(settings, images["train"])(0)
  pixels = np.asarray(batch["query"]["images"])
  assert pixels.dtype == np.uint8 and pixels.shape[-1] == 3
  assert pixels.std() > 5


@pytest.mark.parametrize(
  "name",
  [
    name if name == "miniimagenet" else pytest.param(name, marks=SOAK)
    for name in FEW_SHOT
  ],
)
def test_a_config_trains_and_tests(name, place, make_ready, capsys):
  make_ready(name)
  main.run(recipe(name, place), place / name)
  found = json.loads((place / name / "results.json").read_text())
  for which in ("trained on", "tested on"):
    assert found["protocol"][which]["name"] == FEW_SHOT[name]
  assert found["heads"].keys() >= {"deepemd", "prototype"}
  assert f"{FEW_SHOT[name]}: 2-way 1-shot" in capsys.readouterr().out
  for stage in ("pretrain", "metatrain"):
    rows = (place / name / stage / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] >= 2


@SOAK
@pytest.mark.parametrize("variant", ["grid", "5shot", "cross_cub"])
def test_a_trained_encoder_is_tested_another_way(variant, place, make_ready):
  """The test uses the same workdir, trains nothing and keeps other results."""
  trained = place / "miniimagenet"
  if not trained.exists():
    pytest.skip("the run of miniimagenet has failed")
  for name in ("miniimagenet", "cub"):
    make_ready(name)
  config = recipe("miniimagenet", place, f"laptop,{variant}")
  config.episode.shot = min(config.episode.shot, 2)
  config.sfc.epochs = 2
  if variant == "grid":
    config.stages = ("evaluate",)
  before = (trained / "metatrain" / "metrics.jsonl").read_bytes()
  main.run(config, trained)
  assert (trained / "metatrain" / "metrics.jsonl").read_bytes() == before
  found = json.loads((trained / "results.json").read_text())
  if variant == "cross_cub":
    assert found["protocol"]["tested on"]["name"] == "cub:16"
    assert found["protocol"]["trained on"]["name"] == "miniimagenet:16"
  kept = {path.name for path in (trained / "results").iterdir()}
  first = "miniimagenet-16_2way_1shot_fcn_seed0_"
  assert any(name.startswith(first) for name in kept) and len(kept) > 1


@SOAK
@pytest.mark.parametrize("name", RETRIEVAL)
def test_a_config_trains_and_retrieves(name, place, make_ready):
  """The run goes from an archive to a table.

  Training uses neither the validation classes nor the test classes.
  """
  config = recipe(name, place)
  make_ready(name)
  main.run(config, place / name)
  found = json.loads((place / name / "retrieve.json").read_text())
  assert found["gallery"] == {"images": 20 * PER_CLASS, "classes": 20}
  assert found["protocol"]["trained on"]["name"] == f"{name}:16"
  title = found["protocol"]["trained on"]["title"]
  assert "tenth training class held out" in title
  assert set(found["methods"]["EMD"]) == {
    *("stage", "R-Precision", "MAP@R"),
    *(f"Recall@{k}" for k in RETRIEVAL[name]),
  }
