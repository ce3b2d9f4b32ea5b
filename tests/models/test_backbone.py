"""Tests the promises of all backbones.

Another backbone can replace ResNet-12 in every stage.
"""

import json

import commands
import jax
import jaxtyping
import numpy as np
import pytest
import recipes
import toy_backbone
from paths import GOLDEN
from PIL import Image

from configs import folder
from deepemd_jax import main
from deepemd_jax.checkpoints import pretrained
from deepemd_jax.errors import InputError
from deepemd_jax.evaluation.features import Features
from deepemd_jax.inference import export
from deepemd_jax.models import (
  backbone,
  efficientnet_lite,
  projection,
  resnet12,
  vit,
)

MADE = {
  "toy": toy_backbone.create,
  "resnet12": lambda: resnet12.create(width=1 / 64),
  "resnet12, three pools": lambda: resnet12.create(width=1 / 64, pools=3),
  "efficientnet_lite0": efficientnet_lite.lite0,
  "efficientnet_lite1": efficientnet_lite.lite1,
  "efficientnet_lite2": efficientnet_lite.lite2,
  "a projected one": lambda: projection.project(toy_backbone.create(), 4),
  "vit": lambda: vit.create(TINY_VIT, image_size=32, mean=GRAY, std=GRAY),
}
TINY_VIT = vit.Architecture(
  width=8, hidden=16, depth=1, heads=2, patch=8, grid=4, registers=1
)
GRAY = (128.0, 128.0, 128.0)
SLOW = (
  "resnet12, three pools",
  *("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
)
# All sizes of EfficientNet-Lite have the same code. A few blocks test it.
FEW_BLOCKS = "efficientnet_lite, few blocks"


def test_every_backbone_has_a_row():
  assert set(backbone.BACKBONES) <= set(MADE)


@pytest.fixture(
  scope="module",
  params=[
    *(pytest.param(x, marks=[pytest.mark.soak] * (x in SLOW)) for x in MADE),
    FEW_BLOCKS,
  ],
)
def made(request):
  with pytest.MonkeyPatch.context() as patch:
    if request.param == FEW_BLOCKS:
      # These have each halving of the maps, both kernels, and a residual sum.
      few = tuple(
        (*stage, 1 + (stage[3] == 24))
        for *stage, _ in efficientnet_lite._STAGES
        if stage[1] == 2 or stage[2] == 1
      )
      patch.setattr(efficientnet_lite, "_STAGES", few)
      # Another name is used, because compiled programs are found by it.
      lite0 = efficientnet_lite.SIZES["lite0"]
      patch.setitem(efficientnet_lite.SIZES, FEW_BLOCKS, lite0)
      yield efficientnet_lite.create(FEW_BLOCKS)
    else:
      yield MADE[request.param]()


@pytest.fixture(scope="module")
def maps(made):
  """Variables, images, and their maps in training and in evaluation.

  Two batches are encoded together, and one of them also beside another batch.
  """
  init = jax.jit(made.init)  # eager calls compile for longer
  variables = init(jax.random.key(0))
  rng = np.random.default_rng(0)
  images = rng.standard_normal((2, 3, 48, 32, 3), np.float32)
  trained = jax.jit(made.apply, static_argnames="train")
  together = trained(variables, images, train=True)
  other = rng.standard_normal(images[0].shape, np.float32)
  apart = trained(variables, np.stack([other, images[0]]), train=True)
  looked = trained(variables, images[0], train=False)
  return variables, images, together, apart, looked, init


def test_maps_are_as_large_as_it_says(made, maps):
  variables, images, together, _, (looked, stats), _ = maps
  height, width = made.map_side(48), made.map_side(32)
  assert looked.shape == (3, height, width, made.channels)
  assert together[0].shape == (2, *looked.shape)
  assert looked.dtype == together[0].dtype == np.float32
  np.testing.assert_allclose(made.encode(variables, images[0]), looked)
  # The statistics do not change.
  for old, new in _pairs(variables["batch_stats"], stats):
    np.testing.assert_array_equal(old, new)


def test_each_of_several_batches_is_by_itself(maps):
  """The maps and statistics of the first batch do not depend on the second."""
  _, _, (together, stats), (apart, others), *_ = maps
  scale = np.abs(apart[1]).max()
  np.testing.assert_allclose(together[0], apart[1], atol=1e-4 * scale)
  assert np.abs(together[1] - apart[0]).max() > 0.01 * scale
  for here, there in _pairs(stats, others):
    assert len(here) == 2
    np.testing.assert_allclose(here[0], there[1], rtol=1e-4, atol=1e-6)
    assert (here[1] != there[0]).any()


def _pairs(tree, other):
  """Returns pairs of leaves as NumPy arrays; JAX would compile each shape."""
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  trees = (jax.tree.leaves(jax.device_get(x)) for x in (tree, other))
  return zip(*trees, strict=True)


def test_the_seed_decides_and_the_shapes_are_known_before(made, maps):
  variables, *_, init = maps
  for own, other in _pairs(variables, init(jax.random.key(0))):
    np.testing.assert_array_equal(own, other)
  shapes = jax.eval_shape(lambda: variables)
  assert made.abstract() == shapes
  fresh = init(jax.random.key(7))["params"]
  kernels = [x for x in _pairs(variables["params"], fresh) if x[0].ndim > 1]
  assert kernels and all((a != b).any() for a, b in kernels)


def test_a_backbone_is_a_value():
  """Equal settings give the same backbone, so no program is compiled twice."""
  assert resnet12.create(width=0.5) is resnet12.create(width=0.5)
  assert resnet12.create(width=0.5) != resnet12.create(width=0.25)
  assert hash(resnet12.create()) == hash(resnet12.create())


def test_every_backbone_can_be_made_by_its_name():
  for name, entry in backbone.BACKBONES.items():
    assert entry.title
    more = {"not_a_setting": 1, "weights": str(GOLDEN / "vit" / "dinov2")}
    made = backbone.create(name, **more)
    assert isinstance(made, backbone.Backbone)
    # Otherwise each call would compile its programs again.
    again = backbone.create(name, **more)
    assert made == again and hash(made) == hash(again)
    published = isinstance(made.weights, backbone.PublishedWeights)
    assert entry.published == published
  with pytest.raises(InputError, match="resnet12"):
    backbone.create("resnet21")


TINY = {
  "stages": ("pretrain", "metatrain", "evaluate", "retrieve"),
  "model.backbone": toy_backbone.NAME,
  "image.size": 0,
  "image.mean": (),
  "image.std": (),
  "episode.way": 2,
  "episode.query": 2,
  "pretrain.epochs": 2,
  "pretrain.batch_size": 8,
  "pretrain.validate_every": 2,
  "pretrain.validation_episodes": 2,
  "metatrain.epochs": 1,
  "metatrain.steps": 2,
  "metatrain.batch_size": 2,
  "metatrain.validation_episodes": 2,
  "evaluate.episodes": 3,
  "evaluate.batch_size": 3,
  "evaluate.encode_batch_size": 8,
  "evaluate.more": ("grid",),
  "evaluate.more_episodes": 2,
  "evaluate.pictures": 1,
  "retrieve.depths": (3,),
  "retrieve.pictures": 1,
  "sfc.epochs": 1,
}


def test_another_backbone_goes_through_everything(
  tmp_path, monkeypatch, capsys
):
  """It is only added to the registry."""
  toy_backbone.register(monkeypatch)
  images = recipes.draw_polygons(
    tmp_path / "images", dict.fromkeys(range(3, 13), 4)
  )
  config = folder.get_config()
  places = {
    "data.folder": str(images),
    "data.directory": str(tmp_path / "kept"),
    "data.fractions": (0.4, 0.3, 0.3),
  }
  config.update_from_flattened_dict(TINY | places)
  workdir = tmp_path / "run"
  main.run(config, workdir)
  best = pretrained.best_encoders(workdir, toy_backbone.create())
  assert list(best) == ["pretrain", "metatrain"]
  assert pretrained.load(workdir).settings.backbone is toy_backbone.create()
  for encoder in best.values():
    assert encoder.variables["batch_stats"] == {}
    assert encoder.variables["params"]["mix"]["kernel"].shape[-1] == 6
  results = json.loads((workdir / "results.json").read_text())
  assert results["model"]["backbone"] == toy_backbone.NAME
  assert results["image"]["size"] == 16
  assert set(results["more"]) == {"grid"}
  assert json.loads((workdir / "retrieve.json").read_text())["depth"] == 3
  for figure in ("learning_curves", "matched_regions", "retrieval"):
    Image.open(workdir / "figures" / f"{figure}.png").verify()
  assert "DeepEMD, equal weights" in capsys.readouterr().out
  _classify(tmp_path, workdir, images, capsys)
  _export(tmp_path, workdir, monkeypatch, capsys)


def _classify(tmp_path, workdir, images, capsys):
  """Calls `classify`; every image is an example and a query."""
  out = tmp_path / "predictions.csv"
  code, _, errors = commands.call(
    *(capsys, "classify", "--support", images, "--query", images),
    *("--checkpoint", workdir, "--out", out),
  )
  assert code == 0, errors
  found = commands.rows(out)
  assert len(found) == 40
  assert {row["prediction"] for row in found} <= {
    p.name for p in images.iterdir()
  }


def _export(tmp_path, workdir, monkeypatch, capsys):
  """Exports, and compares the nodes of the program with the backbone's."""
  monkeypatch.setattr(export, "PLATFORMS", ("cpu",))  # a third of the time
  exported = tmp_path / "exported"
  # The check of shapes (see conftest.py) would refuse symbols.
  jaxtyping.config.update("jaxtyping_disable", True)
  code, _, errors = commands.call(
    capsys, "export", "--checkpoint", workdir, "--out", exported
  )
  jaxtyping.config.update("jaxtyping_disable", False)
  assert code == 0, errors
  program = export.load(exported)
  pixels = np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 16, 16, 3)
  nodes = program.encode(pixels)
  assert nodes.shape == (2, 4, toy_backbone.CHANNELS)
  trained = pretrained.load(exported)
  expected = Features.of(trained.settings).nodes_of_images(
    trained.encoder.variables, pixels
  )
  np.testing.assert_allclose(nodes, expected, rtol=1e-5, atol=1e-6)
