"""A run's workdir, or a converted checkpoint, becomes an encoder."""

import json
import types

import numpy as np
import pytest
from recipes import tiny_run

from deepemd_jax import emd
from deepemd_jax.checkpoints import convert, pretrained
from deepemd_jax.config import defaults, resolve
from deepemd_jax.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return tiny_run(tmp_path_factory.mktemp("runs") / "run")


def plain(config):
  """A ConfigDict's fields as JSON and back would give them."""
  return json.loads(json.dumps(config.to_dict()))


def test_what_a_config_leaves_out_is_as_in_configs_default():
  fields = plain(defaults.get_config())
  ours = json.loads(json.dumps(pretrained._DEFAULTS))
  for name, section in ours.items():
    if isinstance(section, dict):
      for field, value in section.items():
        assert fields[name][field] == value, f"{name}.{field}"
    else:
      assert fields[name] == section


def test_the_last_stage_is_taken(run, tmp_path):
  found = pretrained.load(run)
  assert found.place == "pretrain, step 7"
  later = pretrained.load(
    tiny_run(tmp_path / "a", stages=("pretrain", "metatrain"), seed=1)
  )
  assert later.place == "metatrain, step 7"
  assert later.fingerprint != found.fingerprint
  assert pretrained.load(str(run)).fingerprint == found.fingerprint


def test_runs_quickstart_is_the_default(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match="make quickstart"):
    pretrained.load()
  (tmp_path / "runs").mkdir()
  tiny_run(tmp_path / "runs" / "quickstart")
  assert pretrained.load().config.image.size == 32


def test_a_converted_checkpoint(tmp_path, monkeypatch):
  variables = pretrained.load(tiny_run(tmp_path / "run")).variables
  monkeypatch.setattr(convert, "from_torch", lambda found: variables)
  monkeypatch.setattr(convert.torch_file, "load", lambda source: {})
  convert.convert("max_acc.pth", tmp_path / "official")
  found = pretrained.load(tmp_path / "official")
  assert found.config.image.size == 84 and found.config.image.crop == "center"
  assert found.config.model.width == 1 / 16


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
    ({"seed": "0"}, "seed is '0', .* a whole number"),
    ([], "there is .., which should be named fields"),
    (3, "there is 3, which should be named fields"),
  ],
)
def test_a_field_of_the_wrong_kind_is_named(tmp_path, fields, message):
  (tmp_path / "config.json").write_text(json.dumps(fields))
  with pytest.raises(InputError, match="config.json' " + message) as error:
    pretrained.load(tmp_path)
  assert "\n" not in str(error.value)


def test_whole_numbers_will_do_for_real_ones(tmp_path):
  run = tiny_run(tmp_path / "run", emd={"temperature": 12})
  assert pretrained.load(run).config.emd.temperature == 12


def test_variants_and_solvers(run):
  config = pretrained.load(run).config
  assert pretrained.look(config, None).kind == "fcn"
  assert pretrained.look(config, "grid").grid == (2,)
  assert pretrained.look(config, "sampling").patches == 4
  with pytest.raises(InputError, match="use one of fcn"):
    pretrained.look(config, "voc")
  assert pretrained.solver(config, None) is None
  assert pretrained.solver(config, "sinkhorn") == emd.Sinkhorn(0.01)
  assert pretrained.solver(config, emd.InteriorPoint()) == emd.InteriorPoint()
  own = types.SimpleNamespace(emd=types.SimpleNamespace(solver="sinkhorn"))
  own.emd.epsilon = 0.5
  assert pretrained.solver(own, None) == emd.Sinkhorn(0.5)
  for wrong in ("simplex", 3, emd.Sinkhorn):
    with pytest.raises(InputError, match="solver is"):
      pretrained.solver(config, wrong)
  assert set(resolve.NODES) == {"fcn", "grid", "sampling"}
  assert all(isinstance(x, np.ndarray) for x in _leaves(pretrained.load(run)))


def _leaves(found):
  import jax

  return jax.tree.leaves(found.variables)
