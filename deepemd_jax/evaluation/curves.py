"""Plots of training, robustness and retrieval.

The functions take arrays and return matplotlib figures.
"""

import dataclasses
import itertools

import numpy as np

from deepemd_jax.evaluation.plots import (
  COLORS,
  MARKERS,
  new_figure,
  show_pixels,
)


@dataclasses.dataclass(frozen=True)
class Retrieved:
  """A query and its first images in several rankings.

  Attributes:
    query: uint8 [H, W, 3], the query image.
    title: the name of its class.
    found: {ranking: (its first images, uint8 [k, H, W, 3]; whether each has the
      query's class, bool [k])}.
  """

  query: np.ndarray
  title: str
  found: dict[str, tuple[np.ndarray, np.ndarray]]


def learning_curves(stages: dict[str, list[dict]]):
  """Plots the loss above the accuracy, with one column per stage.

  Args:
    stages: {name: rows with "step" and any of "loss", "accuracy",
      "val_accuracy", "val_prototype"}.
  """
  figure = new_figure(4.2 * len(stages), 5.2)
  axes = figure.subplots(2, len(stages), sharex="col", squeeze=False)
  lines = {
    "accuracy": ("training", COLORS[3]),
    "val_accuracy": ("validation, DeepEMD", COLORS[0]),
    "val_prototype": ("validation, prototype", COLORS[1]),
  }
  for column, (name, rows) in enumerate(stages.items()):
    above, below = axes[:, column]
    above.set_title(name)
    below.set_xlabel("step")
    _line(above, rows, "loss", "training", COLORS[3])
    for key, (label, color) in lines.items():
      _line(below, rows, key, label, color)
    if below.lines:
      below.legend(frameon=False, fontsize=8)
  axes[0, 0].set_ylabel("loss")
  axes[1, 0].set_ylabel("accuracy, %")
  for axis in axes.flat:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
  return figure


def _line(axis, rows, key, label, color):
  points = [
    (row["step"], row[key])
    for row in rows
    if isinstance(row.get(key), int | float)
  ]
  if points:
    axis.plot(*zip(*points, strict=True), ".-", label=label, color=color)


def robustness_curves(panels: dict[str, dict[str, list[tuple]]], xlabel: str):
  """Plots the accuracy of several heads against a setting, with intervals.

  Args:
    panels: {title of a panel: {head: [(x, accuracy, half width), ...]}}. The
      accuracy and the half width of its 95% interval are in percent.
    xlabel: the label of the x axis.
  """
  figure = new_figure(3.2 * len(panels) + 0.6, 3.4)
  axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
  for axis, (title, curves) in zip(axes, panels.items(), strict=True):
    looks = itertools.cycle(zip(COLORS, MARKERS, strict=True))
    for head, points in curves.items():
      color, marker = next(looks)
      x, accuracy, ci95 = (np.array(v) for v in zip(*points, strict=True))
      axis.errorbar(
        x,
        accuracy,
        ci95,
        marker=marker,
        markersize=5,
        capsize=3,
        color=color,
        label=head,
      )
    axis.set_title(title)
    axis.set_xlabel(xlabel)
    axis.set_xticks(sorted({p[0] for c in curves.values() for p in c}))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
  axes[0].set_ylabel("accuracy, %")
  axes[0].legend(frameon=False, fontsize=8)
  return figure


def retrieval_curves(panels: dict[str, dict[str, list]], times: list[tuple]):
  """Plots quality and time against the number of images that EMD re-ranks.

  Args:
    panels: {metric: {method: [(images, percent), ...]}}.
    times: [(images, milliseconds per query), ...].
  """
  figure = new_figure(3.2 * (len(panels) + 1) + 0.6, 3.4)
  *above, last = figure.subplots(1, len(panels) + 1)
  for axis, (metric, curves) in zip(above, panels.items(), strict=True):
    looks = itertools.cycle(zip(COLORS, MARKERS, strict=True))
    for method, points in curves.items():
      color, marker = next(looks)
      axis.plot(
        *zip(*points, strict=True),
        color=color,
        marker=marker,
        markersize=5,
        label=method,
      )
    axis.set_ylabel(f"{metric}, %")
  above[0].legend(frameon=False, fontsize=8)
  last.plot(*zip(*times, strict=True), "o-", color=COLORS[4])
  last.set_ylabel("re-ranking, ms per query")
  last.set_ylim(bottom=0)
  for axis in (*above, last):
    axis.set_xlabel("images re-ranked by EMD")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
  return figure


def retrieved(rows: list[Retrieved]):
  """Plots one line of images for each query and ranking.

  The query comes first. The ranked images are framed and marked right or wrong.
  """
  lines = [(row, name) for row in rows for name in row.found]
  columns = 1 + max(
    len(images) for row in rows for images, _ in row.found.values()
  )
  figure = new_figure(0.95 * columns + 0.5, 1.12 * len(lines) + 0.2)
  axes = figure.subplots(len(lines), columns, squeeze=False)
  for line, (row, name) in zip(axes, lines, strict=True):
    for axis in line:
      axis.set_xticks([])
      axis.set_yticks([])
      axis.spines[:].set_visible(False)
    show_pixels(line[0], row.query)
    line[0].set_title(row.title, fontsize=7, parse_math=False)
    line[0].set_ylabel(name, fontsize=9)
    for axis, image, right in zip(line[1:], *row.found[name], strict=False):
      show_pixels(axis, image)
      color = COLORS[2] if right else COLORS[4]
      axis.spines[:].set(visible=True, color=color, linewidth=2.5)
      axis.set_title("right" if right else "wrong", fontsize=7, color=color)
  return figure
