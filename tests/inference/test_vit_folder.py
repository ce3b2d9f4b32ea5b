"""The folder of a vision transformer can be used as a checkpoint."""

import functools
import shutil

import jax
import jaxtyping
import numpy as np
import pytest
from jax import export as jax_export
from paths import GOLDEN

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.evaluation.features import Features
from deepemd_jax.inference import export


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A model for images of 32 pixels: 8 x 8 tokens become 5 x 5 nodes."""
  source = GOLDEN / "vit" / "dinov2_with_registers"
  folder = shutil.copytree(source, tmp_path_factory.mktemp("vit") / "model")
  path = folder / "preprocessor_config.json"
  path.write_text(path.read_text().replace(": 20", ": 32"))
  return folder


def test_the_commands_take_it(model, call):
  code, out, errors = call(
    *("classify", "--support", "support", "--query", "query"),
    *("--out", "out.csv"),
    checkpoint=model,
  )
  assert code == 0, errors
  assert "6 right" in out
  code, out, errors = call(
    *("search", "--gallery", "query", "--query", "support/red/0.png"),
    checkpoint=model,
  )
  assert code == 0, errors
  assert out.index("query/red") < out.index("query/blue")


def test_an_exported_folder_has_the_weights(model, tmp_path, monkeypatch):
  """The exported folder may be moved, and the source may be deleted."""
  # The export leaves out the programs, which take seconds. The test below has
  # one of them.
  monkeypatch.setattr(export, "_programs", lambda trained: {})
  source = shutil.copytree(model, tmp_path / "source")
  trained = pretrained.load(source)
  export.save(source, tmp_path / "exported")
  shutil.rmtree(source)
  moved = pretrained.load((tmp_path / "exported").rename(tmp_path / "moved"))
  assert moved.fingerprint == trained.fingerprint
  assert moved.settings.view == trained.settings.view


def test_its_program_takes_any_number_of_images(model):
  trained = pretrained.load(model)
  features = Features.of(trained.settings)
  encode = functools.partial(features.nodes, trained.encoder.variables)
  shape = jax_export.symbolic_shape("images, 1, 32, 32, 3")
  pixels = jax.ShapeDtypeStruct(shape, np.float32)
  # The check of shapes (see conftest.py) would refuse symbols.
  jaxtyping.config.update("jaxtyping_disable", True)
  program = jax_export.export(jax.jit(encode))(pixels)
  jaxtyping.config.update("jaxtyping_disable", False)
  images = np.random.default_rng(0).standard_normal((2, 1, 32, 32, 3), "f")
  again = jax_export.deserialize(bytearray(program.serialize()))
  nodes = again.call(images)
  assert nodes.shape == (2, 25, 16)
  np.testing.assert_allclose(nodes, encode(images), atol=1e-5)
