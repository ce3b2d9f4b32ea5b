"""Pictures: learning curves, matched regions, robustness. Arrays in, figures
out; nothing global is touched, no display is needed."""

import dataclasses
import itertools
import pathlib

import numpy as np

# Okabe and Ito's colors, which color-blind readers can tell apart.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_MARKERS = "os^Dv*"  # for readers without any
_SIMILARITIES = (-0.2, 1.0)  # the colors' ends; lower ones look alike


@dataclasses.dataclass(frozen=True)
class MatchedPair:
  """A query and a support image, and how their regions were matched.

  Attributes:
    support: uint8 [H, W, 3].
    query: uint8 [H, W, 3].
    support_boxes: [m, 4] left, top, right, bottom of each node, in pixels.
    query_boxes: [n, 4].
    support_weights: [m], as they entered the EMD.
    query_weights: [n].
    similarity: [n, m], query nodes by support nodes.
    flow: [n, m].
    title: one line.
    contributions: [n, m], each pair's part of the logit, or None.
    support_mirrored: bool [m], whose crops were mirrored, or None for none.
    query_mirrored: bool [n].
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


@dataclasses.dataclass(frozen=True)
class Retrieved:
  """What a query got, by several rankings.

  Attributes:
    query: uint8 [H, W, 3].
    title: what it shows.
    found: ranking -> (its first images, uint8 [k, H, W, 3]; bool [k], which of
      them show the same).
  """

  query: np.ndarray
  title: str
  found: dict[str, tuple[np.ndarray, np.ndarray]]


def _figure(width: float, height: float):
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), dpi=110, layout="constrained")


def save(figure, path) -> None:
  """Writes a PNG, whole or not at all."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  scratch = path.with_suffix(".tmp")
  figure.savefig(scratch, format="png", pil_kwargs={"optimize": True})
  scratch.replace(path)


def learning_curves(stages: dict[str, list[dict]]):
  """Loss above, accuracy below, one column a stage.

  Args:
    stages: name -> rows with "step" and any of "loss", "accuracy",
      "val_accuracy", "val_prototype".
  """
  figure = _figure(4.2 * len(stages), 5.2)
  axes = figure.subplots(2, len(stages), sharex="col", squeeze=False)
  lines = {
    "accuracy": ("training", _COLORS[3]),
    "val_accuracy": ("validation, DeepEMD", _COLORS[0]),
    "val_prototype": ("validation, prototype", _COLORS[1]),
  }
  for column, (name, rows) in enumerate(stages.items()):
    above, below = axes[:, column]
    above.set_title(name)
    below.set_xlabel("step")
    _line(above, rows, "loss", "training", _COLORS[3])
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


def matched_regions(pairs: list[MatchedPair], lines: int = 8):
  """One page: for each pair both images, their weights and strongest flows.

  Left and right are the images alone; between them the same images under their
  weights (dark: no mass), joined by the `lines` strongest flows, as thick as
  the mass moved and colored by similarity. Where contributions are known, the
  lines are the largest of those. Crops that were mirrored say so.
  """
  figure = _figure(8.4, 2.45 * len(pairs))
  axes = figure.subplots(len(pairs), 4, squeeze=False)
  for row, pair in zip(axes, pairs, strict=True):
    for axis in row:
      axis.set_axis_off()
      axis.set_anchor("N")  # or a title lies over a taller neighbor
    _pixels(row[0], pair.support)
    _pixels(row[3], pair.query)
    _weighted(row[1], pair.support, pair.support_boxes, pair.support_weights)
    _weighted(row[2], pair.query, pair.query_boxes, pair.query_weights)
    _mirrored(row[1], pair.support_boxes, pair.support_mirrored)
    _mirrored(row[2], pair.query_boxes, pair.query_mirrored)
    _flows(figure, row[1], row[2], pair, lines)
    # A name may hold dollars, which would be taken for mathematics.
    row[1].set_title(pair.title, fontsize=9, loc="left", parse_math=False)
  axes[0, 0].set_title("support", fontsize=9)
  axes[0, 3].set_title("query", fontsize=9)
  _similarity_bar(figure, axes)
  return figure


def _pixels(axis, image):
  """Square pixels, whose edges lie where the boxes' coordinates say; smooth
  ones would make files nearly twice as large."""
  height, width = image.shape[:2]
  axis.imshow(image, extent=(0, width, height, 0), interpolation="nearest")


def weighted(
  image: np.ndarray, boxes: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """An image, darkened where there is little mass.

  Args:
    image: uint8 [H, W, 3].
    boxes: [n, 4] left, top, right, bottom of each node, in pixels.
    weights: [n]; where boxes overlap, their mean counts.

  Returns:
    uint8 [H, W, 3].
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
  """The image under its weights, and the boxes."""
  height, width = image.shape[:2]
  _pixels(axis, weighted(image, boxes, weights))
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
  """Dashes around each mirrored crop, and the word below its upper edge."""
  from matplotlib.patches import Rectangle

  if mirrored is None:
    return
  for left, top, right, bottom in np.asarray(boxes)[mirrored]:
    place, size = (left, top), (right - left, bottom - top)
    axis.add_patch(
      Rectangle(place, *size, fill=False, ls="--", lw=0.9, ec=_COLORS[1])
    )
    axis.text(
      (left + right) / 2,
      top,
      "mirrored",
      fontsize=5,
      ha="center",
      va="top",
      bbox={"facecolor": _COLORS[1], "edgecolor": "none", "pad": 0.6},
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
        # Dark colors on a dark image need an edge.
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
  """Accuracy against confidence, a bin a point; below, how many they are of.

  Args:
    confidence: [bins], 0 to 1; NaN where a bin is empty.
    accuracy: [bins], 0 to 1.
    counts: [bins], of predictions.
  """
  figure = _figure(4.2, 4.0)
  above, below = figure.subplots(
    2, 1, sharex=True, gridspec_kw={"height_ratios": (4, 1)}
  )
  there = counts > 0
  above.plot([0, 1], [0, 1], ":", color="gray", label="perfect")
  above.plot(
    confidence[there],
    accuracy[there],
    "o-",
    color=_COLORS[0],
    label="predictions",
  )
  above.set_ylim(-0.03, 1.03)
  above.set_ylabel("share that is right")
  above.legend(frameon=False, fontsize=8)
  edges = np.linspace(0, 1, len(counts) + 1)
  below.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_COLORS[5])
  below.set_ylabel("images")
  below.set_xlabel("probability of the predicted class")
  for axis in (above, below):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
  return figure


def robustness_curves(panels: dict[str, dict[str, list[tuple]]], xlabel: str):
  """Accuracy with 95% intervals of several heads against a setting.

  Args:
    panels: panel title -> head -> [(x, accuracy, half width of interval), ...].
    xlabel: what x is.
  """
  figure = _figure(3.2 * len(panels) + 0.6, 3.4)
  axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
  for axis, (title, curves) in zip(axes, panels.items(), strict=True):
    looks = itertools.cycle(zip(_COLORS, _MARKERS, strict=True))
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
  """Quality, then time, against the number of images put in order by EMD.

  Args:
    panels: metric -> method -> [(images, percent), ...].
    times: [(images, milliseconds a query), ...].
  """
  figure = _figure(3.2 * (len(panels) + 1) + 0.6, 3.4)
  *above, last = figure.subplots(1, len(panels) + 1)
  for axis, (metric, curves) in zip(above, panels.items(), strict=True):
    looks = itertools.cycle(zip(_COLORS, _MARKERS, strict=True))
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
  last.plot(*zip(*times, strict=True), "o-", color=_COLORS[4])
  last.set_ylabel("re-ranking, ms a query")
  last.set_ylim(bottom=0)
  for axis in (*above, last):
    axis.set_xlabel("images put in order by EMD")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
  return figure


def retrieved(rows: list[Retrieved]):
  """A line for each query and ranking: the query, then what it got; framed and
  marked right or wrong."""
  lines = [(row, name) for row in rows for name in row.found]
  columns = 1 + max(
    len(images) for row in rows for images, _ in row.found.values()
  )
  figure = _figure(0.95 * columns + 0.5, 1.12 * len(lines) + 0.2)
  axes = figure.subplots(len(lines), columns, squeeze=False)
  for line, (row, name) in zip(axes, lines, strict=True):
    for axis in line:
      axis.set_xticks([])
      axis.set_yticks([])
      axis.spines[:].set_visible(False)
    _pixels(line[0], row.query)
    line[0].set_title(row.title, fontsize=7, parse_math=False)
    line[0].set_ylabel(name, fontsize=9)
    for axis, image, right in zip(line[1:], *row.found[name], strict=False):
      _pixels(axis, image)
      color = _COLORS[2] if right else _COLORS[4]
      axis.spines[:].set(visible=True, color=color, linewidth=2.5)
      axis.set_title("right" if right else "wrong", fontsize=7, color=color)
  return figure
