"""Recipes are found by their names, and variants change what they should.

They change nothing else, and every variant can run.
"""

import ast
import importlib
import itertools

import pytest
from paths import ROOT

from deepemd_jax.config import recipes, resolve, validate, variants
from deepemd_jax.errors import InputError

# Data set -> number of its training images.
IMAGES = {
  "cub": 5_891,
  "fc100": 36_000,
  "cifar_fs": 38_400,
  "miniimagenet": 38_400,
  "tieredimagenet": 448_695,
}
BENCHMARKS = tuple(IMAGES)


def load(name):
  return importlib.import_module(f"configs.{name}")


def changes(plain, changed, prefix=""):
  """Yields the names of the fields in which two configs differ."""
  for name in plain:
    if hasattr(plain[name], "items"):
      yield from changes(plain[name], changed[name], f"{prefix}{name}.")
    elif plain[name] != changed[name]:
      yield prefix + name


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_config_says_how_to_use_it(name):
  text = load(name).__doc__
  assert f"python -m deepemd_jax.main --config=configs/{name}.py" in text
  assert f"deepemd_jax data prepare {name}" in text
  assert "Published accuracy" in text and "hours" in text
  config = load(name).get_config()
  assert config.data.name == name
  validate.validate(config)


@pytest.mark.parametrize(
  "name", ["cub_retrieval", "cars196", "stanford_online_products"]
)
def test_a_config_of_retrieval(name):
  text = load(name).__doc__
  assert f"python -m deepemd_jax.main --config=configs/{name}.py" in text
  assert f"deepemd_jax data prepare {name}" in text
  for variant in ("", *variants.TRAINING):
    config = load(name).get_config(variant)
    assert config.data.name == name
    trained = () if variant == "photographs" else ("pretrain", "metatrain")
    assert config.stages == (*trained, "retrieve")
    validate.validate(config)
  with pytest.raises(ValueError, match="5shot"):
    load(name).get_config("5shot")


def test_the_config_of_a_frozen_encoder():
  text = load("grocery").__doc__
  assert "python -m deepemd_jax.main --config=configs/grocery.py" in text
  assert "deepemd_jax data prepare grocery" in text
  for variant in ("", *variants.FROZEN):
    config = load("grocery").get_config(variant)
    assert config.data.name == "grocery" and config.stages == ("evaluate",)
    validate.validate(config)
  with pytest.raises(ValueError, match="grid"):
    load("grocery").get_config("grid")


EXPECTED = {
  "": set(),
  "fcn": set(),
  "pyramid": {"nodes.pyramid", "variant"},
  "grid": {"nodes.kind", "variant"},
  "sampling": {"nodes.kind", "variant"},
  "photographs": {
    *("model.backbone", "nodes.kind", "nodes.ratio", "variant", "stages"),
    *("image.size", "image.mean", "image.std", "image.crop", "nodes.cells"),
  },
  "5shot": {"episode.shot", "evaluate.episodes"},
  "10shot": {"episode.shot", "evaluate.episodes"},
  "10way": {"episode.way", "metatrain.way"},
  "ablation": {"evaluate.heads"},
}


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("variant", EXPECTED)
def test_a_variant_changes_what_it_says(name, variant):
  plain, changed = (load(name).get_config(arg) for arg in ("", variant))
  assert set(changes(plain, changed)) == EXPECTED[variant]
  validate.validate(changed)


def test_the_model_is_trained_alike_however_it_is_tested():
  def training_episode(config):
    return resolve.resolve(config).training_episode

  plain = load("cub").get_config()
  for variant in ("5shot", "10shot", "10way", "5shot,10way,ablation"):
    changed = load("cub").get_config(variant)
    assert changed.variant == ""
    assert training_episode(changed) == training_episode(plain)


def test_variants_combine_in_any_order():
  names = ("grid", "10way", "laptop")
  configs = [
    load("cub").get_config(",".join(order)).to_dict()
    for order in itertools.permutations(names)
  ]
  assert all(config == configs[0] for config in configs)
  assert configs[0]["variant"] == "grid-laptop"
  assert configs[0]["episode"] == {"way": 10, "shot": 1, "query": 15}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_laptop_has_a_schedule_that_fits_and_25_cells(name):
  config = load(name).get_config("laptop")
  validate.validate(config)
  settings = resolve.resolve(config)
  assert settings.backbone.map_side(settings.view.size) == 5
  images = settings.pretrain.optimizer.epochs * IMAGES[name]
  assert 200_000 < images < 500_000


def test_across_domains():
  config = load("miniimagenet").get_config("cross_cub")
  assert config.data.test_name == "cub" and not config.variant
  with pytest.raises(ValueError, match="cross_cub"):
    load("cub").get_config("cross_cub")


@pytest.mark.parametrize("wrong", ["7shot", "grid,sampling", "5shot,10shot"])
def test_mistakes_are_told(wrong):
  with pytest.raises(ValueError, match=wrong.split(",")[-1]):
    load("cub").get_config(wrong)
  assert set(variants.COMMON) >= set(EXPECTED) - {""}


@pytest.mark.parametrize("name", ["cub", "cub.py", "configs/cub.py"])
@pytest.mark.parametrize("rest", ["", ":grid,5shot"])
def test_a_recipe_is_found_from_any_folder(name, rest, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert recipes.find(name + rest) == f"{ROOT / 'configs' / 'cub.py'}{rest}"


@pytest.mark.parametrize("name", ["mine.py", "configs/cub.py", "cub.py"])
def test_a_file_of_ones_own_comes_first(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.touch()
  assert recipes.find(f"{name}:grid") == f"{name}:grid"
  assert recipes.find(str(path)) == str(path)


@pytest.mark.parametrize(
  ("name", "hint"),
  [
    ("cubs", "did you mean configs/cub.py[?]"),
    ("configs/quickstar.py", "did you mean configs/quickstart.py[?]"),
    ("elsewhere/cub.py", "did you mean configs/cub.py[?]"),
    ("zzz", "the files in configs/ are cars196.py, .*, tieredimagenet.py"),
  ],
)
def test_an_unknown_recipe_is_told_with_those_that_are_near(name, hint):
  with pytest.raises(InputError, match=f"no config file '{name}'; {hint}"):
    recipes.find(name)


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_imports_the_config_room_and_nothing_else(name):
  tree = ast.parse((recipes.folder() / f"{name}.py").read_text())
  for node in ast.walk(tree):
    assert not isinstance(node, ast.Import)
    if isinstance(node, ast.ImportFrom):
      names = {f"{node.module}.{alias.name}" for alias in node.names}
      assert names <= {
        *("deepemd_jax.config.defaults", "deepemd_jax.config.variants"),
        "deepemd_jax.config.defaults.get_config",
      }
