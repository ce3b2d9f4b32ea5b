"""Plots of matched regions and of calibration.

The functions take arrays and return matplotlib figures. They change no global
state and need no display.
"""

import dataclasses
import pathlib

import numpy as np

from deepemd_jax.errors import InputError
from deepemd_jax.utils import files

# The colors of Okabe and Ito, which color-blind readers can distinguish.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = "os^Dv*"  # for readers who see no colors
_SIMILARITIES = (-0.2, 1.0)  # range of the colors; lower values share a color


@dataclasses.dataclass(frozen=True)
class MatchedPair:
  """A query and a support image with the matching of their nodes.

  Attributes:
    support: uint8 [H, W, 3], the support image.
    query: uint8 [H, W, 3], the query image.
    support_boxes: [m, 4], left, top, right, bottom of each node, in pixels.
    query_boxes: [n, 4], the boxes of the query nodes.
    support_weights: [m], the weights of the support nodes in the EMD.
    query_weights: [n], the weights of the query nodes in the EMD.
    similarity: [n, m], cosines of query nodes and support nodes.
    flow: [n, m], the optimal flow.
    title: one line of text.
    contributions: [n, m], each pair's part of the logit, or None.
    support_mirrored: bool [m], whether each crop was mirrored, or None if no
      crop was.
    query_mirrored: bool [n], the same for the query, or None.
  """

  support: np.ndarray
  query: np.ndarray
  support_boxes: np.ndarray
  query_boxes: np.ndarray
  support_weights: np.ndarray
  query_weights: np.ndarray
  similarity: np.ndarray
  flow: np.ndarray
  title: str
  contributions: np.ndarray | None = None
  support_mirrored: np.ndarray | None = None
  query_mirrored: np.ndarray | None = None


def new_figure(width: float, height: float):
  """Makes an empty matplotlib figure, which needs no display.

  Args:
    width: width in inches, with 110 pixels per inch.
    height: height in inches.
  """
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), dpi=110, layout="constrained")


def save(figure, path) -> None:
  """Writes a figure as a PNG file, completely or not at all.

  Args:
    figure: the matplotlib figure.
    path: must end in .png; its folder is made if it is missing.

  Raises:
    InputError: the path has another ending.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() != ".png":
    raise InputError(
      f"{str(path)!r} must end in .png; use {str(path.with_suffix('.png'))!r}"
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as scratch:
    figure.savefig(scratch, format="png", pil_kwargs={"optimize": True})


def matched_regions(pairs: list[MatchedPair], lines: int = 8):
  """Plots the images, weights and strongest flows of each pair in one row.

  The outer images are shown unchanged. The inner copies are darkened where
  their weights are small. Lines between them show the `lines` strongest flows,
  or the largest contributions if these are given. The width of a line shows the
  mass moved, and its color shows the similarity. Mirrored crops are marked.
  """
  figure = new_figure(8.4, 2.45 * len(pairs))
  axes = figure.subplots(len(pairs), 4, squeeze=False)
  for row, pair in zip(axes, pairs, strict=True):
    for axis in row:
      axis.set_axis_off()
      axis.set_anchor("N")  # keeps titles off a taller neighboring image
    show_pixels(row[0], pair.support)
    show_pixels(row[3], pair.query)
    _weighted(row[1], pair.support, pair.support_boxes, pair.support_weights)
    _weighted(row[2], pair.query, pair.query_boxes, pair.query_weights)
    _mirrored(row[1], pair.support_boxes, pair.support_mirrored)
    _mirrored(row[2], pair.query_boxes, pair.query_mirrored)
    _flows(figure, row[1], row[2], pair, lines)
    # Dollar signs in a name must not start a formula.
    row[1].set_title(pair.title, fontsize=9, loc="left", parse_math=False)
  # Above the images, long titles would cover these words.
  for axis, name in ((axes[-1, 0], "support"), (axes[-1, 3], "query")):
    below = {"ha": "center", "va": "top", "transform": axis.transAxes}
    axis.text(0.5, -0.03, name, fontsize=9, **below)
  _similarity_bar(figure, axes)
  return figure


def show_pixels(axis, image) -> None:
  """Draws an image [H, W, 3] with the coordinates that boxes use.

  Pixels are drawn as squares, because smooth interpolation would nearly double
  the size of the files.
  """
  height, width = image.shape[:2]
  axis.imshow(image, extent=(0, width, height, 0), interpolation="nearest")


def weighted(
  image: np.ndarray, boxes: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Darkens an image where its nodes have small weights.

  Args:
    image: uint8 [H, W, 3].
    boxes: [n, 4], left, top, right, bottom of each node, in pixels.
    weights: [n], the weight of each node; overlapping boxes are averaged.

  Returns:
    uint8 [H, W, 3], the darkened image.
  """
  height, width = image.shape[:2]
  total, cover = np.zeros((height, width)), np.zeros((height, width))
  for (left, top, right, bottom), weight in zip(boxes, weights, strict=True):
    area = np.s_[round(top) : round(bottom), round(left) : round(right)]
    total[area] += weight
    cover[area] += 1
  mean = total / np.maximum(cover, 1)
  light = 0.12 + 0.88 * mean / max(mean.max(), 1e-12)
  return (image * light[..., None]).astype(np.uint8)


def _weighted(axis, image, boxes, weights):
  """Draws an image darkened by its weights, and the boxes of its nodes."""
  height, width = image.shape[:2]
  show_pixels(axis, weighted(image, boxes, weights))
  for left, top, right, bottom in boxes:
    axis.plot(
      [left, right, right, left, left],
      [top, top, bottom, bottom, top],
      color="white",
      linewidth=0.3,
      alpha=0.5,
    )
  # A box that ends at the border would widen the view.
  axis.set_xlim(0, width)
  axis.set_ylim(height, 0)


def _mirrored(axis, boxes, mirrored):
  """Draws a dashed box and the word "mirrored" on each mirrored crop."""
  from matplotlib.patches import Rectangle

  if mirrored is None:
    return
  for left, top, right, bottom in np.asarray(boxes)[mirrored]:
    place, size = (left, top), (right - left, bottom - top)
    axis.add_patch(
      Rectangle(place, *size, fill=False, ls="--", lw=0.9, ec=COLORS[1])
    )
    axis.text(
      (left + right) / 2,
      top,
      "mirrored",
      fontsize=5,
      ha="center",
      va="top",
      bbox={"facecolor": COLORS[1], "edgecolor": "none", "pad": 0.6},
    )


def _flows(figure, left_axis, right_axis, pair, lines):
  from matplotlib.patches import ConnectionPatch
  from matplotlib.patheffects import withStroke

  colors = _similarity_colors()
  order = pair.flow if pair.contributions is None else pair.contributions
  strongest = np.argsort(order, axis=None)[::-1][:lines]
  largest = max(float(pair.flow.max()), 1e-12)
  for index in strongest:
    i, j = np.unravel_index(index, pair.flow.shape)
    share = float(pair.flow[i, j]) / largest
    if share < 0.02:
      continue
    width = 0.8 + 3 * share
    figure.add_artist(
      ConnectionPatch(
        _center(pair.support_boxes[j]),
        _center(pair.query_boxes[i]),
        "data",
        "data",
        axesA=left_axis,
        axesB=right_axis,
        color=colors.to_rgba(pair.similarity[i, j]),
        linewidth=width,
        capstyle="round",
        # Dark colors on a dark image need a light outline.
        path_effects=[withStroke(linewidth=width + 1.2, foreground="white")],
      )
    )


def _center(box):
  left, top, right, bottom = box
  return ((left + right) / 2, (top + bottom) / 2)


def _similarity_colors():
  from matplotlib import cm, colors

  return cm.ScalarMappable(colors.Normalize(*_SIMILARITIES), "viridis")


def _similarity_bar(figure, axes):
  bar = figure.colorbar(
    _similarity_colors(), ax=axes[:, 3], fraction=0.05, pad=0.04, panchor=False
  )
  bar.set_label("cosine of matched regions", fontsize=8)
  bar.ax.tick_params(labelsize=7)


def reliability(
  confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray
):
  """Plots accuracy against confidence, and the number of predictions below.

  Args:
    confidence: [bins], mean confidence, 0 to 1; NaN if a bin is empty.
    accuracy: [bins], share of correct predictions, 0 to 1.
    counts: int [bins], number of predictions.
  """
  figure = new_figure(4.2, 4.0)
  above, below = figure.subplots(
    2, 1, sharex=True, gridspec_kw={"height_ratios": (4, 1)}
  )
  there = counts > 0
  above.plot([0, 1], [0, 1], ":", color="gray", label="perfect")
  above.plot(
    confidence[there],
    accuracy[there],
    "o-",
    color=COLORS[0],
    label="predictions",
  )
  above.set_ylim(-0.03, 1.03)
  above.set_ylabel("share of correct predictions")
  above.legend(frameon=False, fontsize=8)
  edges = np.linspace(0, 1, len(counts) + 1)
  below.bar(edges[:-1], counts, np.diff(edges), align="edge", color=COLORS[5])
  below.set_ylabel("images")
  below.set_xlabel("probability of the predicted class")
  for axis in (above, below):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
  return figure
