"""Centering removes what photographs of one place have in common."""

import pickle

import numpy as np
import pytest
from commands import assert_refused, rows

from deepemd_jax import FewShotClassifier
from deepemd_jax.errors import InputError
from deepemd_jax.inference import centering
from deepemd_jax.inference.image_encoder import EncodedImages


class Batches:
  """A fake encoder, which returns nodes in batches of 4."""

  def __init__(self, nodes):
    self.nodes = nodes

  def batches(self, images, bad, progress=None):
    assert len(images) == len(self.nodes)
    for start in range(0, len(self.nodes), 4):
      part = self.nodes[start : start + 4]
      yield list(range(start, start + 4)), EncodedImages(part, *[None] * 4)


def test_a_center_is_the_mean_and_spread_of_all_nodes():
  rng = np.random.default_rng(0)
  nodes = rng.normal(3, [0.1, 2, 5, 0], (10, 7, 4)).astype(np.float32)
  nodes[..., 3] = 8  # a channel that is the same everywhere
  center = centering.Center.of(Batches(nodes), range(10))
  flat = nodes.reshape(-1, 4).astype(np.float64)
  spread = np.sqrt(flat.std(0) ** 2 + (0.3 * flat.std(0).mean()) ** 2)
  np.testing.assert_allclose(center.mean, flat.mean(0), rtol=1e-5)
  np.testing.assert_allclose(center.spread, spread, rtol=1e-5)
  expected = (flat - flat.mean(0)) / spread
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  found = center(nodes).reshape(-1, 4)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert np.isfinite(center(flat.mean(0))).all()


@pytest.mark.parametrize(
  ("given", "classes", "published", "expected"),
  [
    (None, 5, True, 6),
    (None, 4, True, None),  # with four classes, too little would be left
    (None, 5, False, None),  # not for the encoder of a run
    ("support", 2, False, 6),
    ("none", 20, True, None),
    ([0] * 10, 2, True, 10),
  ],
)
def test_what_nodes_are_centered_by(given, classes, published, expected):
  rng = np.random.default_rng(0)
  photographs, support = rng.random((10, 7, 4)), rng.random((6, 7, 4))
  encoder = Batches(photographs.astype(np.float32))
  center = centering.find(given, encoder, support, classes, published)
  assert (center and center.photographs) == expected


def test_photographs_of_a_place(run, folder):
  """A folder and a list of its files give the same; pickling works."""
  paths = sorted((folder / "query").rglob("*.png"))
  images = [folder / "support" / f"{c}/0.png" for c in ("red", "green", "blue")]
  plain, centered, listed = (
    FewShotClassifier(run, center=center).fit(images, ["r", "g", "b"])
    for center in (None, folder / "query", paths)
  )
  logits = centered.logits(paths)
  assert np.abs(logits - plain.logits(paths)).max() > 0.1
  np.testing.assert_array_equal(logits, listed.logits(paths))
  again = pickle.loads(pickle.dumps(centered))
  np.testing.assert_array_equal(logits, again.logits(paths))
  assert centered.describe()["centered by"] == "6 photographs"
  assert "centered by" not in plain.describe()
  why = centered.explain(paths[0])
  total = sum(pair.contribution for pair in why.pairs)
  np.testing.assert_allclose(total, why.logit, rtol=1e-4)
  with pytest.raises(InputError, match="center has no images"):
    FewShotClassifier(run, center=[]).fit(images, ["r", "g", "b"])


def test_the_command(call, folder):
  arguments = ("--support=support", "--query=query", "--out=out.csv")
  code, out, errors = call("classify", *arguments, "--center=query")
  assert code == 0, errors
  assert "6 right" in out and len(rows("out.csv")) == 6
  assert_refused(
    call("classify", *arguments, "--center=absent"), "no image folder|absent"
  )
