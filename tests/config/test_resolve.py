"""From names in a config to data: what is meant, and every mistake."""

import pytest

from deepemd_jax.config import defaults, resolve
from deepemd_jax.errors import InputError, MissingData


def config(name="glyph_clutter", **data):
  made = defaults.get_config()
  made.data.update({"name": name, "folder": "images", **data})
  return made


@pytest.mark.parametrize(
  ("name", "protocol"),
  [
    ("glyph_clutter", "glyph_clutter:64"),
    ("folder", "folder:160"),
    ("folder:84", "folder:84"),
    ("folder:original", "folder:original"),
    ("cub", "cub:160"),
    ("cub:84", "cub:84"),
    ("cub:original", "cub:original"),
    ("fc100", "fc100:32"),
    ("tieredimagenet", "tieredimagenet:original"),
  ],
)
def test_a_name_is_a_protocol(name, protocol):
  made = config(name)
  resolve.check(made)
  source = resolve.source(made)
  assert source.protocol == protocol
  assert source.title and "\n" not in source.title


def test_copies_of_a_folder_grow_with_the_images_that_are_seen():
  made = config("folder")
  for size, side in ((84, 160), (42, 80), (32, 61)):
    made.image.size = size
    assert resolve.source(made).side == side


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("cup", "did you mean cub"),
    ("glyph_cluter", "did you mean glyph_clutter"),
    ("folders", "did you mean folder"),
    ("nothing_alike", "glyph_clutter, folder, cub"),
    ("cub:1", "'1' is no size"),
    ("cub:orignal", "'orignal' is no size"),
    ("fc100:84", "its images are 32 pixels wide"),
    ("folder:0", "'0' is no size"),
    ("folder:x", "'x' is no size"),
    ("glyph_clutter:64", "did you mean glyph_clutter"),
  ],
)
@pytest.mark.parametrize("field", ["name", "test_name"])
def test_a_wrong_name_is_refused(name, message, field):
  with pytest.raises(InputError, match=message) as refused:
    resolve.check(config(**{field: name}))
  assert f"config.data.{field}" in str(refused.value)


def test_other_mistakes():
  with pytest.raises(InputError, match="data.workers is -1"):
    resolve.check(config(workers=-1))
  with pytest.raises(InputError, match="data.folder is ''"):
    resolve.check(config("cub", test_name="folder", folder=""))


def test_the_split_test_may_be_of_another_data_set(tmp_path):
  made = config("miniimagenet", test_name="cub:84", directory=str(tmp_path))
  resolve.check(made)
  for split, protocol in (
    ("", "miniimagenet:160"),
    ("train", "miniimagenet:160"),
    ("val", "miniimagenet:160"),
    ("test", "cub:84"),
  ):
    assert resolve.source(made, split=split).protocol == protocol
  made.data.name = "glyph_clutter"  # always there
  made.stages = ("pretrain",)
  resolve.check_feasible(made)
  made.stages = ("evaluate",)
  with pytest.raises(MissingData, match="cub is not prepared"):
    resolve.check_feasible(made)


@pytest.mark.parametrize(
  ("name", "classes"),
  [
    ("cub_retrieval", (90, 10, 100)),
    ("cars196", (89, 9, 98)),
    ("stanford_online_products", (10187, 1131, 11316)),
  ],
)
def test_retrieval_sets_hold_training_classes_out(name, classes, tmp_path):
  """For validation; none is in two splits, and the title says it."""
  source = resolve.source(config(name, directory=str(tmp_path)))
  splits = [set(source.counts(s)) for s in ("train", "val", "test")]
  assert tuple(map(len, splits)) == classes
  assert len(set.union(*splits)) == sum(classes)
  assert source.title.endswith(
    "every tenth training class held out for validation"
  )
  with pytest.raises(MissingData, match=f"{name} is not prepared"):
    resolve.check_feasible(config(name, directory=str(tmp_path)))


def test_retrieval_needs_something_to_find(monkeypatch, tmp_path):
  class Source:
    def counts(self, split):
      return {"val": {"a": 2, "b": 1}, "test": {"c": 1, "d": 1}}[split]

    def check(self):
      pass

  monkeypatch.setattr(resolve, "source", lambda *unused: Source())
  made = config()
  made.stages = ("retrieve",)
  with pytest.raises(InputError, match="'test' has 2 classes, 0 of them"):
    resolve.check_feasible(made)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("split", "train"),
    ("depths", ()),
    ("recalls", (0,)),
    ("queries", -1),
    ("block", 0),
  ],
)
def test_fields_of_retrieval(field, value):
  made = config()
  made.retrieve[field] = value
  with pytest.raises(InputError, match=f"config.retrieve.{field}"):
    resolve.check(made)


def test_retrieval_encodes_an_image_once():
  made = config()
  made.stages = ("retrieve",)
  made.nodes.kind = "sampling"
  resolve.check(made)
  made.nodes.redraw = True
  with pytest.raises(InputError, match="nodes.redraw"):
    resolve.check(made)
