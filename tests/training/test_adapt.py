"""A frozen encoder is adapted to a user's photographs."""

import json

import commands
import jax
import numpy as np
import pytest
import toy_backbone
from commands import assert_refused
from PIL import Image
from recipes import tiny_run

from deepemd_jax import FewShotClassifier
from deepemd_jax.checkpoints import pretrained
from deepemd_jax.data.views import View
from deepemd_jax.evaluation.features import Features
from deepemd_jax.models import heads, projection
from deepemd_jax.training import projection as learning
from deepemd_jax.utils.progress import Progress

FEW = learning.Recipe(channels=16, steps=40, learning_rate=0.02, dropout=0.2)

HEAD = heads.bind("deepemd", heads.HeadSettings())


def labeled(signal, classes=12, each=6, channels=16):
  """Makes nodes whose first four channels depend on the class.

  `signal` is the strength of this. Other channels vary more, between images.
  """
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(classes), each)
  found = rng.standard_normal((len(labels), 5, channels))
  found[..., 4:] += 3 * rng.standard_normal((len(labels), 1, channels - 4))
  found[..., :4] *= 0.3
  found[..., :4] += signal * rng.standard_normal((classes, 1, 4))[labels]
  names = tuple(f"class {k}" for k in range(classes))
  return learning.Labeled((7 + 3 * found).astype(np.float32), labels, names)


def judge(images):
  with Progress() as progress:
    return learning.judge(images, FEW, HEAD, 0, progress)


def test_it_learns_what_tells_new_classes_apart():
  """It is judged by classes that it did not learn from, by each class once."""
  images, learn, seen = labeled(2.0), learning.learn, []

  def spy(images, *arguments, **options):
    seen.append(images)
    return learn(images, *arguments, **options)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(learning, "learn", spy)
    verdict = judge(images)
  assert verdict.helps and (verdict.classes, verdict.way) == (12, 4)
  gain = verdict.after.mean - verdict.before.mean
  assert gain > 5
  np.testing.assert_allclose(verdict.gain.mean, gain, atol=1e-4)
  held_out = [set(images.classes) - set(rest.classes) for rest in seen]
  assert sorted(x for part in held_out for x in part) == sorted(images.classes)
  for rest in seen:
    rows = [images.classes[k] in rest.classes for k in images.labels]
    np.testing.assert_array_equal(rest.nodes, images.nodes[rows])
    assert [rest.classes[k] for k in rest.labels] == [
      images.classes[k] for k in images.labels[rows]
    ]


def test_a_map_of_nodes_is_one_of_maps():
  """The map may be applied before or after the mean over a crop."""
  toy = toy_backbone.create()
  variables = toy.init(jax.random.key(0))
  kernel = np.random.default_rng(0).random((toy.channels, 3), np.float32)
  learned = {"kernel": kernel, "bias": np.arange(3, dtype=np.float32)}
  whole = projection.project(toy, 3)
  assert whole is projection.project(toy, 3)
  pixels = jax.random.normal(jax.random.key(1), (2, 4, 32, 32, 3))
  view = View(kind="grid", size=32, mean=(0,) * 3, std=(1,) * 3)
  nodes, inner = (
    Features(x, view, ()).nodes(own, pixels)
    for x, own in (
      (whole, projection.join(variables, learned)),
      (toy, variables),
    )
  )
  expected = inner @ kernel + learned["bias"]
  expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
  np.testing.assert_allclose(nodes, expected, rtol=1e-4, atol=1e-5)


def paint(folder, alike, classes=10, each=6):
  """Paints classes of pictures, whose lower halves have random colors.

  The upper half has the color of the class, or, if not `alike`, a random one.
  """
  rng = np.random.default_rng(1)
  for k in range(classes):
    color = rng.integers(60, 200, 3)
    (folder / f"class {k}").mkdir(parents=True)
    for i in range(each):
      pixels = np.empty((32, 32, 3))
      pixels[:] = rng.integers(0, 256, 3)
      pixels[:16] = color if alike else rng.integers(60, 200, 3)
      pixels += rng.normal(0, 10, pixels.shape)
      image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
      image.save(folder / f"class {k}" / f"{i}.png")
  return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return tiny_run(tmp_path_factory.mktemp("adapt") / "run")


@pytest.fixture
def call(checkpoint, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(learning, "Recipe", lambda: FEW)
  monkeypatch.chdir(tmp_path)

  def calling(*arguments, checkpoint=checkpoint):
    return commands.call(
      *(capsys, "adapt", "--images=photographs", "--out=adapted"),
      *(f"--checkpoint={checkpoint}", "--cache=kept", *arguments),
    )

  return calling


def test_the_command(call, checkpoint, tmp_path):
  folder = paint(tmp_path / "photographs", alike=True)
  paint(tmp_path / "more", alike=True, classes=1, each=1)
  (tmp_path / "more" / "class 0").rename(folder / "alone")
  (folder / "class 3" / "bad.png").write_bytes(b"not a picture")
  assert_refused(call(), "bad.png.*--skip-bad")
  assert not (tmp_path / "adapted").exists()
  code, said, errors = call("--skip-bad")
  assert code == 0, errors
  assert "left out" in errors and "'alone' has one photograph" in errors
  assert "3-way" in said and "each of the 10 classes once, in 3 parts" in said
  assert "learned from all 10 classes" in said
  facts = json.loads((tmp_path / "adapted" / "adapt.json").read_text())
  assert facts["gain"]["mean"] > facts["gain"]["ci95"] > 0
  assert f"{facts['after']['mean']:.1f} +- " in said
  trained = pretrained.load("adapted")
  assert trained.settings.backbone.channels == FEW.channels
  images = sorted(folder.glob("class */0.png"))
  adapted = FewShotClassifier("adapted").fit(images, range(10))
  found = adapted.score(sorted(folder.glob("class */1.png")), range(10))
  assert found >= 0.4  # of 10 classes
  lengths = np.linalg.norm(adapted.class_nodes_, axis=-1)
  np.testing.assert_allclose(lengths, 1, rtol=1e-5)
  assert_refused(call(checkpoint="adapted"), "not an empty directory")
  (tmp_path / "adapted").rename(tmp_path / "first")
  assert_refused(call("--skip-bad", checkpoint="first"), "adapted already")


def test_what_does_not_help_is_not_kept(call, tmp_path):
  paint(tmp_path / "photographs", alike=False)
  assert_refused(call(), "does not help: .* before, .* after.*not written")
  assert sorted(x.name for x in tmp_path.iterdir()) == ["kept", "photographs"]


def test_too_few_classes_are_refused_at_once(call, tmp_path):
  folder = paint(tmp_path / "photographs", alike=True, classes=9)
  (folder / "alone").mkdir()
  (folder / "class 0" / "0.png").rename(folder / "alone" / "0.png")
  assert_refused(call(), "has 9 classes with two .* 10 are needed.*classify")
  assert not (tmp_path / "kept").exists()
