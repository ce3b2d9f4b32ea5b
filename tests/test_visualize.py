"""Pictures show what they are given."""

import io

import numpy as np
import pytest
from PIL import Image

from deepemd_jax import visualize
from deepemd_jax.models import nodes


def pixels(figure) -> np.ndarray:
  file = io.BytesIO()
  figure.savefig(file, format="png")
  assert len(file.getvalue()) < 400_000
  return np.asarray(Image.open(file).convert("RGB"))


@pytest.fixture
def pair():
  rng = np.random.default_rng(0)
  boxes = nodes.cell_boxes(4, 4, 64)
  return visualize.MatchedPair(
    support=rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
    query=rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
    support_boxes=boxes,
    query_boxes=boxes,
    support_weights=rng.random(16),
    query_weights=rng.random(16),
    similarity=rng.uniform(-0.2, 1, (16, 16)),
    flow=np.eye(16),
    title="greek_small_alpha (right), logit 9.1",
  )


def test_a_flow_is_a_line_between_the_two_boxes(pair):
  figure = visualize.matched_regions([pair, pair], lines=5)
  lines = [a for a in figure.artists if hasattr(a, "xy1")]
  assert len(lines) == 10
  strongest = np.argsort(pair.flow, axis=None)[::-1][0]
  i, j = np.unravel_index(strongest, pair.flow.shape)
  centre = lambda box: ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)  # noqa: E731
  assert lines[0].xy1 == centre(pair.support_boxes[j])
  assert lines[0].xy2 == centre(pair.query_boxes[i])
  assert pixels(figure).std() > 10


def test_weights_darken_where_there_is_no_mass(pair):
  weights = np.zeros(16)
  weights[5] = 1.0
  figure = visualize.matched_regions(
    [visualize.MatchedPair(**{**vars(pair), "support_weights": weights})]
  )
  shown = np.asarray(figure.axes[1].images[0].get_array())
  np.testing.assert_array_equal(shown[16:32, 16:32], pair.support[16:32, 16:32])
  assert shown[:16].max() <= 0.12 * 255


def test_learning_curves_draw_what_there_is():
  rows = [{"step": s, "loss": 2 - s, "val_accuracy": 50 + s} for s in range(3)]
  figure = visualize.learning_curves(
    {"pretrain": rows, "metatrain": [{"step": 0, "val_accuracy": "nan"}]}
  )
  above, below = figure.axes[0], figure.axes[2]
  assert above.lines[0].get_ydata().tolist() == [2, 1, 0]
  assert below.lines[0].get_ydata().tolist() == [50, 51, 52]
  assert pixels(figure).std() > 1


def test_robustness_has_a_panel_a_background():
  panels = {
    name: {"DeepEMD": [(k, 90 - k, 1.0) for k in range(4)]}
    for name in ("plain", "busy")
  }
  figure = visualize.robustness_curves(panels, "distractors")
  assert [axis.get_title() for axis in figure.axes] == ["plain", "busy"]


def test_saving_leaves_no_scratch_file(tmp_path):
  figure = visualize.learning_curves({"pretrain": [{"step": 0, "loss": 1.0}]})
  visualize.save(figure, tmp_path / "deep" / "curves.png")
  assert [p.name for p in (tmp_path / "deep").iterdir()] == ["curves.png"]
