"""The stage `evaluate` chooses encoders, and encodes each image once."""

import dataclasses

import jax
import numpy as np
import pytest
import toy_backbone

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.checkpoints.pretrained import BestEncoder
from deepemd_jax.config.changes import changed
from deepemd_jax.evaluation import fewshot
from deepemd_jax.models.backbone import Backbone


@pytest.fixture
def encoders(variables):
  best = BestEncoder("metatrain", 7, 50.0, variables)
  return {"deepemd": best, "prototype": best}


def test_an_image_is_encoded_once(small, images, encoders, monkeypatch):
  """The test counts the encoded images on the device."""
  counts = []
  encode = Backbone.encode

  def counted(self, variables, pixels):
    jax.debug.callback(lambda: counts.append(len(pixels)))
    return encode(self, variables, pixels)

  monkeypatch.setattr(Backbone, "encode", counted)
  settings = small(evaluate={"encode_batch_size": 5})
  cache = fewshot.NodeCache(encoders)
  first = fewshot.HeadComparison(settings, encoders, cache)(images, 9, "test")
  shots = changed(settings, "2-shot")
  again = fewshot.HeadComparison(shots, encoders, cache)(images, 3, "test")
  jax.effects_barrier()
  assert sum(counts) == 25  # 24, and one to fill the last batch
  assert first.timing.encoded_images == 24
  assert again.timing.encoded_images == 0
  assert set(again.accuracy) == {"deepemd", "deepemd_mean", "prototype"}
  assert again.shape.shot == 2 and first.shape.shot == 1
  for results in (first, again):
    for other, accuracy in results.accuracy.items():
      if other != "deepemd":
        difference = results.paired[f"deepemd - {other}"].mean
        own = results.accuracy["deepemd"].mean
        assert difference == pytest.approx(own - accuracy.mean, abs=1e-4)


def test_images_that_no_episode_uses_are_not_encoded(small, images, encoders):
  settings = small(evaluate={"heads": ("deepemd",)})
  cache = fewshot.NodeCache(encoders)
  cache.expect(images, [settings], 1)
  cache.expect(images, [changed(settings, "2-shot")], 1)
  compare = fewshot.HeadComparison(settings, encoders, cache)
  few = compare(images, 1, "test")
  assert few.timing.encoded_images == len(cache.rows(settings, images)) < 24
  every = compare(dataclasses.replace(images), 1, "test")  # not announced
  assert every.timing.encoded_images == 24
  assert few.accuracy == every.accuracy
  assert len(fewshot.rows_of_episodes(settings, images, 99)) == 24


def test_other_nodes_and_other_images_are_encoded_anew(small, images, encoders):
  settings = small()
  cache = fewshot.NodeCache(encoders)
  first = cache(settings, "metatrain", images)
  assert cache(settings, "metatrain", images) is first
  grid = cache(changed(settings, "grid"), "metatrain", images)
  assert grid.array.shape[1] == 5 and cache.encoded_images == 48
  assert cache(settings, "metatrain", images) is first


def test_the_prototype_gets_the_encoder_that_suits_it(
  small, images, monkeypatch, tmp_path
):
  """It is chosen on validation episodes; other heads get the last stage's."""
  found = {
    stage: BestEncoder(stage, step, 0.0, toy_backbone.variables(step))
    for stage, step in (("pretrain", 3), ("metatrain", 5))
  }
  scores = {3: {"prototype": 70.0}, 5: {"prototype": 60.0}}
  kernels = {
    step: np.asarray(toy_backbone.variables(step)["params"]["mix"]["kernel"])
    for step in scores
  }

  class Validator:
    def __init__(self, settings, images, count, stage):
      assert count == settings.metatrain.validation_episodes

    def __call__(self, variables):
      (step,) = [
        step
        for step, kernel in kernels.items()
        if np.array_equal(kernel, variables["params"]["mix"]["kernel"])
      ]
      return scores[step]

  class Source:
    def load(self, split):
      assert split == "val"
      return images

  monkeypatch.setattr(pretrained, "best_encoders", lambda *unused: found)
  monkeypatch.setattr(fewshot, "open_source", lambda *unused: Source())
  monkeypatch.setattr(fewshot, "Validator", Validator)
  for better, stage in ((70.0, "pretrain"), (50.0, "metatrain")):
    scores[3]["prototype"] = better
    chosen, validation = fewshot.choose_encoders(small(), tmp_path)
    assert chosen["deepemd"].stage == "metatrain"
    assert chosen["prototype"].stage == stage
    assert validation["prototype"]["prototype"] == max(better, 60.0)
