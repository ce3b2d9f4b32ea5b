"""Missing data and too few data are reported before a file is made."""

import dataclasses

import pytest
import recipes

from deepemd_jax.config import feasible
from deepemd_jax.data.sources import open_source
from deepemd_jax.errors import InputError, MissingData
from deepemd_jax.models import efficientnet_lite


@pytest.fixture
def counts(monkeypatch):
  """The counts of a fake source by split, which a test may change."""
  known = dict.fromkeys(("train", "val", "test"), dict.fromkeys("abcd", 6))

  class Source:
    def counts(self, split):
      return known[split]

    def check(self):
      pass

  monkeypatch.setattr(feasible, "open_source", lambda *_, **__: Source())
  return known


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_few_classes_of_ones_own_need_no_training(count, counts):
  counts["train"] = dict.fromkeys("abcd"[:count], 20)
  data = {"name": "folder", "folder": "/photos"}
  with pytest.raises(InputError, match="or add classes; or do not train") as e:
    feasible.check_feasible(recipes.settings(data=data))
  assert "deepemd_jax classify and FewShotClassifier" in str(e.value)
  counts["train"] = dict.fromkeys("abcde", 3)
  with pytest.raises(InputError, match="or add images; or do not train"):
    feasible.check_feasible(recipes.settings(data=data))
  with pytest.raises(InputError, match="or add images$"):
    feasible.check_feasible(recipes.settings())


def test_the_split_test_may_be_of_another_data_set(tmp_path):
  data = {
    "name": "miniimagenet",
    "test_name": "cub:84",
    "directory": str(tmp_path),
  }
  spec = recipes.settings(data=data).data
  for split, protocol in (
    ("", "miniimagenet:160"),
    ("train", "miniimagenet:160"),
    ("val", "miniimagenet:160"),
    ("test", "cub:84"),
  ):
    assert open_source(spec, split=split).protocol == protocol
  data["name"] = "glyph_clutter"  # needs no download
  feasible.check_feasible(recipes.settings(data=data, stages=("pretrain",)))
  with pytest.raises(MissingData, match="cub:84 is not prepared"):
    feasible.check_feasible(recipes.settings(data=data, stages=("evaluate",)))


@pytest.mark.parametrize(
  ("name", "classes"),
  [
    ("cub_retrieval", (90, 10, 100)),
    ("cars196", (89, 9, 98)),
    ("stanford_online_products", (10187, 1131, 11316)),
  ],
)
def test_retrieval_sets_hold_training_classes_out(name, classes, tmp_path):
  """They are for validation. No class is in two splits."""
  made = recipes.settings(data={"name": name, "directory": str(tmp_path)})
  source = open_source(made.data)
  splits = [set(source.counts(s)) for s in ("train", "val", "test")]
  assert tuple(map(len, splits)) == classes
  assert len(set.union(*splits)) == sum(classes)
  assert source.title.endswith(
    "every tenth training class held out for validation"
  )
  with pytest.raises(MissingData, match=f"{name} is not prepared"):
    feasible.check_feasible(made)


def test_retrieval_needs_something_to_find(counts):
  counts["val"] = {"a": 2, "b": 1}
  counts["test"] = {"c": 1, "d": 1}
  made = recipes.settings(stages=("retrieve",))
  with pytest.raises(InputError, match="'test' has 2 classes, 0 of them"):
    feasible.check_feasible(made)
  counts["test"] = {"c": 2, "d": 1}
  feasible.check_feasible(made)


def test_more_shots_need_more_images(counts):
  fields = {"stages": ("evaluate",), "episode.way": 3, "episode.query": 2}
  feasible.check_feasible(recipes.settings(fields))
  fields["evaluate.more"] = ("5-shot",)
  with pytest.raises(InputError, match="5 support and 2 query"):
    feasible.check_feasible(recipes.settings(fields))


@pytest.mark.parametrize(
  ("stage", "split"), [("pretrain", "val"), ("metatrain", "train")]
)
def test_every_split_that_a_stage_needs_is_looked_at(stage, split, counts):
  fields = {"stages": (stage,), "episode.way": 3, "episode.query": 2}
  feasible.check_feasible(recipes.settings(fields))
  counts["test"] = {}  # training does not use this split
  feasible.check_feasible(recipes.settings(fields))
  counts[split] = {"a": 6}
  with pytest.raises(InputError, match=f"split '{split}' has 1"):
    feasible.check_feasible(recipes.settings(fields))


def test_a_frozen_backbone_is_not_trained(counts):
  fields = {"stages": ("evaluate",), "episode.way": 3, "episode.query": 2}
  made = recipes.settings(fields)
  frozen = dataclasses.replace(
    made.backbone, weights=efficientnet_lite.lite0().weights
  )
  made = dataclasses.replace(made, backbone=frozen)
  feasible.check_feasible(made)
  made = dataclasses.replace(made, stages=("pretrain", "evaluate"))
  with pytest.raises(InputError, match="'resnet12', which is frozen"):
    feasible.check_feasible(made)
