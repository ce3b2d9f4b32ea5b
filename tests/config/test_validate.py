"""Mistakes in a config give one line, before other modules are loaded."""

import subprocess
import sys

import pytest
from paths import ROOT

from deepemd_jax.config import defaults, validate
from deepemd_jax.errors import InputError
from deepemd_jax.models.heads import HEADS


def config(**fields):
  made = defaults.get_config()
  made.data.folder = "images"
  fields = {name.replace("__", "."): value for name, value in fields.items()}
  made.update_from_flattened_dict(fields)
  return made


def test_the_defaults_are_legal_and_every_rule_is_of_a_field():
  made = config()
  validate.validate(made)
  for field in validate.RULES:
    validate._value(made, field)


# Fields of numbers that are checked together with other fields.
TOGETHER = {
  *("data.fractions", "pretrain.warmup_epochs", "metatrain.warmup_epochs"),
}


def test_every_field_of_numbers_has_a_rule():
  """Text and switches may have none: their kind is checked for all fields."""
  fields = set()
  for name, value in config().items():
    inside = value.items() if hasattr(value, "items") else ()
    fields |= {(f"{name}.{key}", str(x)) for key, x in inside}
  numbers = {name for name, value in fields if any(map(str.isdigit, value))}
  assert len(numbers) > 40
  assert numbers - set(validate.RULES) == TOGETHER


# field -> a value that is refused, and a word of the advice in the message
MISTAKES = {
  "seed": (-1, "integer"),
  "stages": (("train",), "metatrain"),
  "data.workers": (-1, "data.workers is -1; must be at least 0"),
  "image.size": (8, "0 for the backbone's own"),
  "image.pretrain_size": (15, "0 for config.image.size"),
  "image.crop": ("left", "center, whole"),
  "image.mean": ((1.0, 2.0), "use 3 numbers"),
  "image.std": ((63.0, 0.0, 66.7), "above 0"),
  "image.crop_scale": ((-1.0, 5.0), "at most 1"),
  "image.crop_ratio": ((0.0, 0.0), "low, high"),
  "metatrain.decay_rate": (-3.0, "above 0"),
  "model.backbone": ("resnet21", "resnet12"),
  "model.width": (0.0, "above 0"),
  "model.pools": (5, "use 1 to 4"),
  "model.precision": ("half", "float32, bfloat16"),
  "nodes.kind": ("voc", "fcn, grid, sampling"),
  "model.weights": ("folder", "only vit has a folder"),
  "nodes.cells": (-1, "at least 0"),
  "nodes.pyramid": ((0,), "at least 1"),
  "nodes.grid": ((), "at least 1"),
  "nodes.ratio": (0.0, "above 0"),
  "nodes.train_ratio": ((3.0, 1.0), "low, high"),
  "nodes.patches": (0, "at least 1"),
  "nodes.test_patches": (-1, "at least 0"),
  "emd.solver": ("simplex", "network_simplex"),
  "emd.gradient": ("none", "exact, flow"),
  "emd.form": ("L1", "L2, QP"),
  "emd.temperature": (0.0, "above 0"),
  "sfc.gradient": ("none", "exact, flow"),
  "pretrain.label_smoothing": (1.0, "below 1"),
  "episode.way": (1, "at least 2"),
  "episode.shot": (0, "at least 1"),
  "metatrain.way": (1, "0 for config.episode.way"),
  "metatrain.batch_norm": ("none", "batch, fixed"),
  "metatrain.warmup_epochs": (100, "below epochs"),
  "pretrain.warmup_epochs": (-1, "below epochs"),
  "pretrain.optimizer": ("adam", "sgd, adamw"),
  "metatrain.schedule": ("linear", "step, cosine"),
  "pretrain.lr": (0.0, "above 0"),
  "metatrain.decay_every": (0, "at least 1"),
  "evaluate.episodes": (1, "at least 2"),
  "evaluate.heads": (("deepemd", "deepmd_l2"), "deepmd_l2"),
  "evaluate.more": (("0-shot",), "0-shot"),
  "retrieve.split": ("train", "val, test"),
  "retrieve.depths": ((), "at least 1"),
  "retrieve.recalls": ((0,), "at least 1"),
  "retrieve.queries": (-1, "at least 0"),
  "retrieve.block": (0, "at least 1"),
}


@pytest.mark.parametrize("field", MISTAKES)
def test_a_mistake_names_the_field_the_value_and_the_remedy(field):
  value, word = MISTAKES[field]
  assert word in refusal(field, value)


@pytest.mark.parametrize(
  "field, value",
  [
    ("image.mean", (120.0, 1e4, 120.0)),
    ("image.std", (63.0, 1e-320, 66.7)),
    ("emd.temperature", 1e308),
    ("emd.epsilon", 1e-45),
  ],
)
def test_what_float32_would_make_0_or_infinite_is_refused(field, value):
  refusal(field, value)


def refusal(field, value):
  """Returns the message that refuses a value."""
  made = config()
  section, _, last = field.rpartition(".")
  (made[section] if section else made)[last] = value
  with pytest.raises(InputError) as refused:
    validate.validate(made)
  message = str(refused.value)
  assert message.startswith(f"config.{field} is {value!r}; ")
  assert "\n" not in message
  return message


def test_all_mistakes_are_told_at_once():
  made = config(seed=-1, nodes__kind="voc", emd__solver="simplex")
  with pytest.raises(InputError) as refused:
    validate.validate(made)
  for field in ("config.seed", "config.nodes.kind", "config.emd.solver"):
    assert field in str(refused.value)


def test_zero_and_nothing_stand_for_what_the_backbone_was_made_for():
  made = config(
    image__size=0, image__mean=(), image__std=(), image__pretrain_size=0
  )
  validate.validate(made)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("cup", "did you mean cub"),
    ("glyph_cluter", "did you mean glyph_clutter"),
    ("folders", "did you mean folder"),
    ("nothing_alike", "glyph_clutter, folder, cub"),
    ("cub:1", "'1' is not a size"),
    ("cub:orignal", "'orignal' is not a size"),
    ("fc100:84", "its images are 32 pixels wide"),
    ("folder:0", "'0' is not a size"),
    ("folder:x", "'x' is not a size"),
    ("glyph_clutter:64", "did you mean glyph_clutter"),
  ],
)
@pytest.mark.parametrize("field", ["name", "test_name"])
def test_a_wrong_name_of_data_is_refused(name, message, field):
  made = config(**{f"data__{field}": name})
  with pytest.raises(InputError, match=message) as refused:
    validate.validate(made)
  assert f"config.data.{field}" in str(refused.value)


def test_a_folder_has_to_be_named():
  made = config(data__name="cub", data__test_name="folder", data__folder="")
  with pytest.raises(InputError, match="data.folder is ''"):
    validate.validate(made)


def test_retrieval_encodes_an_image_once():
  made = config(stages=("retrieve",), nodes__kind="sampling")
  validate.validate(made)
  made.nodes.redraw = True
  with pytest.raises(InputError, match="nodes.redraw"):
    validate.validate(made)


def test_an_ablation_compares_heads_that_there_are():
  made = defaults.get_config("ablation")
  validate.validate(made)
  assert "deepemd_l2" in made.evaluate.heads
  assert set(made.evaluate.heads) <= HEADS.keys()
  made.evaluate.heads = ("prototype",)
  with pytest.raises(InputError, match="include deepemd"):
    validate.validate(made)
  with pytest.raises(ValueError, match="ablation"):
    defaults.get_config("ablations")


def test_a_config_is_validated_without_jax():
  code = (
    "import sys; from deepemd_jax.config import defaults, validate; "
    "validate.validate(defaults.get_config()); print('jax' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
  )
  assert done.stdout.strip() == "False", done.stdout + done.stderr
