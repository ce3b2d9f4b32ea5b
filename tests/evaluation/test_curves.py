"""Curves and rows of pictures show the given values."""

import numpy as np

from deepemd_jax.evaluation import curves


def test_learning_curves_draw_what_there_is():
  rows = [{"step": s, "loss": 2 - s, "val_accuracy": 50 + s} for s in range(3)]
  figure = curves.learning_curves(
    {"pretrain": rows, "metatrain": [{"step": 0, "val_accuracy": "nan"}]}
  )
  above, below = figure.axes[0], figure.axes[2]
  assert above.lines[0].get_ydata().tolist() == [2, 1, 0]
  assert below.lines[0].get_ydata().tolist() == [50, 51, 52]


def test_robustness_has_a_panel_a_background():
  panels = {
    name: {"DeepEMD": [(k, 90 - k, 1.0) for k in range(4)]}
    for name in ("plain", "busy")
  }
  figure = curves.robustness_curves(panels, "distractors")
  assert [axis.get_title() for axis in figure.axes] == ["plain", "busy"]


def test_robustness_shows_every_head():
  heads = {f"head {i}": [(0, 50 + i, 1.0), (3, 40 + i, 2.0)] for i in range(8)}
  figure = curves.robustness_curves({"plain": heads}, "distractors")
  (axis,) = figure.axes
  found = {}
  for bars in axis.containers:
    line, _, (intervals,) = bars.lines
    ends = [segment[:, 1].tolist() for segment in intervals.get_segments()]
    found[bars.get_label()] = (line.get_ydata().tolist(), ends)
  assert found["head 7"] == ([57, 47], [[56, 58], [45, 49]])
  assert len(found) == 8
  assert axis.get_xticks().tolist() == [0, 3]


def test_retrieval_has_a_panel_a_metric_and_one_of_time():
  panels = {
    metric: {"global": [(1, 50.0), (5, 50.0)], "EMD": [(1, 50.0), (5, 60.0)]}
    for metric in ("Recall@1", "MAP@R")
  }
  figure = curves.retrieval_curves(panels, [(1, 0.5), (5, 2.0)])
  labels = [axis.get_ylabel() for axis in figure.axes]
  assert labels == ["Recall@1, %", "MAP@R, %", "re-ranking, ms per query"]
  assert figure.axes[1].lines[1].get_ydata().tolist() == [50, 60]
  assert figure.axes[2].lines[0].get_ydata().tolist() == [0.5, 2.0]


def test_what_a_query_got_is_marked_right_or_wrong():
  pixels = np.full((4, 8, 8, 3), 128, np.uint8)
  right = np.array([True, False, True])
  row = curves.Retrieved(
    pixels[0],
    "a $class_",
    {"global": (pixels[1:], ~right), "EMD": (pixels[1:], right)},
  )
  figure = curves.retrieved([row])
  titles = [axis.get_title() for axis in figure.axes]
  assert titles[:4] == ["a $class_", "wrong", "right", "wrong"]
  assert titles[5:] == ["right", "wrong", "right"]
  assert [figure.axes[i].get_ylabel() for i in (0, 4)] == ["global", "EMD"]
