"""Shipped configs: each variant can run, means what it says, and no more."""

import importlib
import itertools

import pytest

from deepemd_jax.config import resolve, variants

BENCHMARKS = ("cub", "fc100", "cifar_fs", "miniimagenet", "tieredimagenet")


def load(name):
  return importlib.import_module(f"configs.{name}")


def changes(plain, changed, prefix=""):
  """The names of the fields in which two configs differ."""
  for name in plain:
    if hasattr(plain[name], "items"):
      yield from changes(plain[name], changed[name], f"{prefix}{name}.")
    elif plain[name] != changed[name]:
      yield prefix + name


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_config_says_how_to_use_it(name):
  text = load(name).__doc__
  assert f"python -m deepemd_jax.main --config=configs/{name}.py" in text
  assert f"deepemd_jax.data prepare {name}" in text
  assert "Published accuracy" in text and "hours" in text
  config = load(name).get_config()
  assert config.data.name == name
  resolve.check(config)


@pytest.mark.parametrize(
  "name", ["cub_retrieval", "cars196", "stanford_online_products"]
)
def test_a_config_of_retrieval(name):
  text = load(name).__doc__
  assert f"python -m deepemd_jax.main --config=configs/{name}.py" in text
  assert f"deepemd_jax.data prepare {name}" in text
  for variant in ("", *variants.TRAINING):
    config = load(name).get_config(variant)
    assert config.data.name == name
    assert config.stages == ("pretrain", "metatrain", "retrieve")
    resolve.check(config)
  with pytest.raises(ValueError, match="5shot"):
    load(name).get_config("5shot")


EXPECTED = {
  "": set(),
  "fcn": set(),
  "pyramid": {"nodes.pyramid", "variant"},
  "grid": {"nodes.kind", "variant"},
  "sampling": {"nodes.kind", "variant"},
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
  resolve.check(changed)


def test_the_model_is_trained_alike_however_it_is_tested():
  plain = load("cub").get_config()
  for variant in ("5shot", "10shot", "10way", "5shot,10way,ablation"):
    changed = load("cub").get_config(variant)
    assert changed.variant == ""
    assert resolve.training_episode(changed) == resolve.training_episode(plain)


def test_variants_combine_in_any_order():
  names = ("grid", "5shot", "10way", "runlocal")
  found = [
    load("cub").get_config(",".join(order)).to_dict()
    for order in itertools.permutations(names)
  ]
  assert all(config == found[0] for config in found)
  assert found[0]["variant"] == "grid-runlocal"
  assert found[0]["episode"] == {"way": 10, "shot": 5, "query": 15}


def test_a_laptop_does_less_of_everything():
  plain, small = (load("cub").get_config(arg) for arg in ("", "runlocal"))
  for name in changes(plain, small):
    if name != "variant":
      group, field = name.split(".")
      assert small[group][field] < plain[group][field], name
  resolve.check(small)


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
