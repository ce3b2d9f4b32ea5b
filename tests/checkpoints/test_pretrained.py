"""A run's workdir, or a converted checkpoint, becomes an encoder."""

import json

import jax
import numpy as np
import pytest
from recipes import tiny_run

from deepemd_jax.checkpoints import convert, pretrained, torch_file
from deepemd_jax.errors import InputError
from deepemd_jax.models import resnet12
from deepemd_jax.utils import random_streams


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return tiny_run(tmp_path_factory.mktemp("runs") / "run")


def test_the_last_stage_is_taken(run, tmp_path):
  found = pretrained.load(run)
  assert found.encoder.place == "pretrain, step 7"
  later = pretrained.load(
    tiny_run(tmp_path / "a", stages=("pretrain", "metatrain"), seed=1)
  )
  assert later.encoder.place == "metatrain, step 7"
  assert later.fingerprint != found.fingerprint
  assert pretrained.load(str(run)).fingerprint == found.fingerprint


def test_by_default_the_encoder_has_seen_photographs():
  found = pretrained.load()
  assert found.settings.model["backbone"] == "efficientnet_lite0"
  assert found.settings.view.size == 224 and found.settings.view.kind == "grid"
  assert found.settings.view.mean == (127, 127, 127)
  assert found.encoder.place == "published weights"
  other = pretrained.load("efficientnet_lite1")
  assert other.settings.view.size == 240
  assert other.fingerprint != found.fingerprint


def test_fields_for_another_workdir_keep_the_version_of_the_draws(tmp_path):
  run = tiny_run(tmp_path / "run", streams=7)
  assert pretrained.fields_of(run)["streams"] == 7
  assert pretrained.fields_of()["streams"] == random_streams.VERSION


def test_a_folder_comes_before_a_backbone_of_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  tiny_run(tmp_path / "efficientnet_lite0")
  assert pretrained.load("efficientnet_lite0").settings.view.size == 32


def test_a_converted_checkpoint(tmp_path, monkeypatch):
  best = pretrained.load(tiny_run(tmp_path / "run")).encoder
  monkeypatch.setattr(convert, "from_torch", lambda found: best.variables)
  monkeypatch.setattr(torch_file, "load", lambda source: {})
  convert.convert("max_acc.pth", tmp_path / "official")
  found = pretrained.load(tmp_path / "official")
  view = found.settings.view
  assert view.size == 84 and view.whole_crop == "center"
  assert found.settings.model["width"] == 1 / 16
  assert found.encoder.variables.keys() == best.variables.keys()


def test_what_is_no_run(tmp_path, run):
  with pytest.raises(InputError, match="no config.json"):
    pretrained.load(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(InputError, match="not the config of a run"):
    pretrained.load(tmp_path)
  (tmp_path / "config.json").write_text('{"model": {"width": 0.0625}}')
  with pytest.raises(InputError, match="no trained encoder yet"):
    pretrained.load(tmp_path)
  with pytest.raises(InputError, match="layer1"):
    pretrained.load(tiny_run(tmp_path / "wide", model={"width": 1 / 8}))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"image": {"size": "large"}}, "image.size is 'large', .* whole number"),
    ({"image": {"size": 84.5}}, "image.size is 84.5, .* whole number"),
    ({"image": {"size": True}}, "image.size is True, .* whole number"),
    ({"image": {"flip": 1}}, "image.flip is 1, .* true or false"),
    ({"image": {"crop": ["center"]}}, "image.crop is .'center'., .* text"),
    ({"image": {"mean": [1, 2]}}, "image.mean is .1, 2., .* list of 3 numbers"),
    ({"image": {"std": 63}}, "image.std is 63, .* list of 3 numbers"),
    ({"model": {"width": None}}, "model.width is None, .* a number"),
    ({"nodes": None}, "nodes is None, .* named fields"),
    ({"nodes": {"grid": 3}}, "nodes.grid is 3, .* list of whole numbers"),
    ({"nodes": {"pyramid": ["2"]}}, "nodes.pyramid is .'2'., .* whole numbers"),
    ({"emd": {"temperature": "hot"}}, "emd.temperature is 'hot', .* a number"),
    ({"emd": {"solver": "foo"}}, "config.emd.solver is 'foo'; use one of"),
    ({"emd": {"form": "l2"}}, "config.emd.form is 'l2'; use one of L2"),
    ({"nodes": {"kind": "voc"}}, "config.nodes.kind is 'voc'; use one of fcn"),
    ({"seed": "0"}, "seed is '0', .* a whole number"),
    ([], "there is .., which should be an object"),
    (3, "there is 3, which should be an object"),
  ],
)
def test_a_field_of_the_wrong_kind_is_named(tmp_path, fields, message):
  (tmp_path / "config.json").write_text(json.dumps(fields))
  with pytest.raises(InputError, match="config.json' " + message) as error:
    pretrained.load(tmp_path)
  assert "\n" not in str(error.value)


def test_whole_numbers_will_do_for_real_ones(tmp_path):
  run = tiny_run(tmp_path / "run", emd={"temperature": 12})
  assert pretrained.load(run).settings.heads.temperature == 12


def test_the_settings_and_the_encoder_are_the_runs_own(run):
  found = pretrained.load(run)
  assert found.settings.view.grid == (2,)
  assert found.settings.view.test_patches == 4
  assert found.settings.heads.sfc.epochs == 3
  assert found.encoder.score == 50.0
  leaves = jax.tree.leaves(found.encoder.variables)
  assert leaves and all(isinstance(x, np.ndarray) for x in leaves)


def test_the_best_encoders_are_in_the_order_of_training(tmp_path):
  backbone = resnet12.create(width=1 / 16)
  stages = ("metatrain", "pretrain")
  workdir = tiny_run(tmp_path / "run", stages=stages)
  assert list(pretrained.best_encoders(workdir, backbone)) == [
    "pretrain",
    "metatrain",
  ]
  (workdir / "metatrain" / "checkpoints").rename(tmp_path / "elsewhere")
  assert pretrained.best_encoder(workdir, "metatrain", backbone) is None
  with pytest.raises(InputError, match="no checkpoint in .*metatrain"):
    pretrained.best_encoders(workdir, backbone)
  with pytest.raises(InputError, match="pretrain and metatrain first"):
    pretrained.best_encoders(tmp_path / "elsewhere", backbone)


def test_an_unknown_backbone_is_one_line(tmp_path):
  workdir = tiny_run(tmp_path / "run", model={"backbone": "resnet21"})
  with pytest.raises(InputError, match="resnet21.*resnet12") as error:
    pretrained.load(workdir)
  assert "\n" not in str(error.value)


def test_an_encoder_saved_alone_is_the_same(run, tmp_path):
  found = pretrained.load(run)
  with pretrained.new_workdir(tmp_path / "new") as workdir:
    (workdir / "config.json").write_bytes((run / "config.json").read_bytes())
    pretrained.save_encoder(workdir, found.encoder, {"from": "a test"})
    assert not (tmp_path / "new").exists()
  again = pretrained.load(tmp_path / "new")
  assert again.fingerprint == found.fingerprint
  assert again.encoder.place == found.encoder.place
  with pytest.raises(InputError, match="is not an empty directory"):
    with pretrained.new_workdir(tmp_path / "new"):
      pass
  with pytest.raises(RuntimeError):
    with pretrained.new_workdir(tmp_path / "failed"):
      raise RuntimeError
  assert {p.name for p in tmp_path.iterdir()} == {"new"}
