"""A workdir belongs to one config, which is in `config.json`."""

import json

import pytest

from deepemd_jax.config import defaults, stored
from deepemd_jax.config import workdir as workdirs
from deepemd_jax.errors import InputError
from deepemd_jax.utils import files

FIELDS = {
  "seed": 0,
  "streams": 2,
  "stages": ["pretrain"],
  "data": {"name": "cub", "workers": 0, "csv": ""},
  "model": {"width": 0.25, "precision": "float32"},
  "episode": {"way": 5},
}


def changed(**sections):
  """Returns FIELDS with other values; sections are merged."""
  return {
    name: value | sections.get(name, {})
    if isinstance(value, dict)
    else sections.get(name, value)
    for name, value in FIELDS.items()
  }


@pytest.fixture
def claimed(tmp_path):
  workdirs.claim(tmp_path, FIELDS)
  return tmp_path


def test_a_new_workdir_is_made_and_claimed(tmp_path):
  place = tmp_path / "runs" / "new"
  workdirs.check(place, FIELDS, trains=True)
  assert list(place.iterdir()) == []
  workdirs.claim(place, FIELDS)
  assert stored.read_fields(place / "config.json") == FIELDS
  workdirs.check(place, FIELDS, trains=True)


def test_what_a_killed_run_left_behind_does_not_matter(tmp_path):
  (tmp_path / f"{files.SCRATCH_PREFIX}123.config.json.tmp").touch()
  workdirs.check(tmp_path, FIELDS, trains=True)


def test_the_first_config_stays(claimed):
  workdirs.claim(claimed, changed(episode={"way": 10}))
  assert stored.read_fields(claimed / "config.json") == FIELDS


@pytest.mark.parametrize(
  "fields",
  [
    changed(stages=["evaluate"]),
    changed(episode={"way": 10}),
    changed(data={"workers": 4}),
    changed() | {"of a newer version": 1},
  ],
)
def test_what_training_does_not_see_may_change(claimed, fields):
  workdirs.check(claimed, fields, trains=True)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (changed(seed=7), "seed was 0 and is 7"),
    (changed(data={"name": "fc100"}), "data.name was 'cub' and is 'fc100'"),
    (changed(model={"width": 1.0}), "model.width was 0.25 and is 1.0"),
  ],
)
def test_another_config_is_refused(claimed, fields, message):
  with pytest.raises(InputError, match=message):
    workdirs.check(claimed, fields, trains=True)


def test_a_trained_model_is_tested_on_other_data_but_stays_itself(claimed):
  other = changed(seed=7, data={"name": "fc100"})
  workdirs.check(claimed, other, trains=False)
  with pytest.raises(InputError, match="model.width"):
    workdirs.check(claimed, changed(model={"width": 1.0}), trains=False)


def test_five_differences_are_enough(claimed):
  fields = {
    name: value + 1
    for name, value in defaults.get_config().pretrain.items()
    if type(value) is int
  }
  assert len(fields) > 5
  before = {name: value - 1 for name, value in fields.items()}
  (claimed / "config.json").write_text(json.dumps({"pretrain": before}))
  with pytest.raises(InputError) as refusal:
    workdirs.check(claimed, {"pretrain": fields}, trains=True)
  assert str(refusal.value).count(" was ") == 5


@pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"[7]", b"\xff\xfe"])
def test_a_config_json_that_is_not_ours_is_refused(content, tmp_path):
  path = tmp_path / "config.json"
  path.write_bytes(content)
  with pytest.raises(InputError) as refusal:
    workdirs.check(tmp_path, FIELDS, trains=True)
  assert str(path) in str(refusal.value)
  assert path.read_bytes() == content


def test_damage_is_told_from_another_config(claimed):
  """The message names the damage, even if the config has the edited fields."""
  path = claimed / "config.json"
  path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
  for fields in (FIELDS, changed(seed=1)):
    with pytest.raises(InputError, match="damaged.*checksum.*restore the file"):
      workdirs.check(claimed, fields, trains=True)


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({"crop_ratio": [1.0, float("inf")]}, "crop_ratio is .*; use finite"),
    ({"std": float("nan")}, "std is nan; use finite numbers"),
    ({"size": 5000}, "size is 5000; must be at most 4096"),
  ],
)
def test_what_could_not_be_read_back_is_refused(section, message, tmp_path):
  with pytest.raises(InputError, match=f"config.image.{message}"):
    workdirs.check(tmp_path / "new", FIELDS | {"image": section}, trains=True)
  assert not list(tmp_path.iterdir())


def test_a_run_from_before_mixed_precision_goes_on_in_float32(tmp_path):
  saved = {"model": {"width": 0.25}}
  (tmp_path / "config.json").write_text(json.dumps(saved))
  workdirs.check(tmp_path, FIELDS, trains=True)
  message = "model.precision was 'float32' and is 'bfloat16'"
  with pytest.raises(InputError, match=message):
    fields = changed(model={"precision": "bfloat16"})
    workdirs.check(tmp_path, fields, trains=True)


def test_a_workdir_full_of_other_files_is_refused(tmp_path):
  (tmp_path / "thesis.tex").write_text("x")
  with pytest.raises(InputError, match="contains files but no config.json"):
    workdirs.check(tmp_path, FIELDS, trains=True)
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_workdir_that_cannot_be_made_is_refused(place, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="give another --workdir"):
    workdirs.check(tmp_path / place, FIELDS, trains=True)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
  def full(*arguments):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files, "write", full)
  with pytest.raises(InputError, match="No space left on device; make room"):
    workdirs.claim(tmp_path, FIELDS)


def test_other_random_draws_are_refused_where_they_count(tmp_path):
  """They count in training, and if the seed selects the test classes."""
  old = {name: x for name, x in FIELDS.items() if name != "streams"}
  folder = changed(data={"name": "folder:160"})
  workdirs.claim(tmp_path, old)
  workdirs.check(tmp_path, FIELDS, trains=False)
  for fields, trains in ((FIELDS, True), (folder, False)):
    with pytest.raises(InputError, match="drew other random numbers"):
      workdirs.check(tmp_path, fields, trains=trains)
  listed = changed(data={"name": "folder", "csv": "split.csv"})
  workdirs.check(tmp_path, listed, trains=False)


def test_a_converted_encoder_has_no_draws(tmp_path):
  workdirs.claim(tmp_path, {"model": FIELDS["model"]})
  workdirs.check(tmp_path, FIELDS, trains=True)
