"""Tests of the loss of pre-training."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import recipes
import toy_backbone

from deepemd_jax.training import pretrain


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_cross_entropy_with_smoothed_labels(smoothing):
  settings = recipes.settings(
    {"image.size": 16, "pretrain.label_smoothing": smoothing}
  )
  settings = dataclasses.replace(settings, backbone=toy_backbone.create())
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 4)
  views = {
    "images": rng.integers(0, 256, (4, 16, 16, 3), np.uint8),
    "boxes": np.tile(np.float32([0, 0, 16, 16]), (4, 1)),
    "flip": np.zeros(4, bool),
  }
  backbone = settings.backbone
  variables = backbone.init(jax.random.key(0))
  classifier = pretrain.init_classifier(0, backbone.channels, 3)
  loss, _ = pretrain.loss_function(settings)(
    variables["params"],
    {"classifier": classifier},
    variables["batch_stats"],
    {"views": views, "labels": labels},
  )
  images = settings.view.normalize(views["images"].astype(np.float32))
  maps, _ = backbone.apply(variables, images, train=True)
  logits = maps.mean((1, 2)) @ classifier["kernel"] + classifier["bias"]
  smooth = optax.smooth_labels(np.eye(3)[labels], smoothing)
  expected = optax.softmax_cross_entropy(logits, smooth).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
