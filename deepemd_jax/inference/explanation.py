"""Why an image got its score: matched regions whose contributions add up."""

import dataclasses
from typing import NamedTuple

import numpy as np
from PIL import Image

from deepemd_jax.evaluation import plots


class Shown(NamedTuple):
  """One side of a match.

  Attributes:
    picture: uint8 [h, w, 3], a small copy of the image.
    size: height and width of the original in pixels.
    boxes: [n, 4] left, top, right, bottom of each node in pixels of the
      original.
    mirrored: bool [n], which nodes are of a mirrored crop.
    weights: [n], as they entered the EMD; they sum to n.
  """

  picture: np.ndarray
  size: tuple[int, int]
  boxes: np.ndarray
  mirrored: np.ndarray
  weights: np.ndarray

  def small_boxes(self) -> np.ndarray:
    """The boxes in pixels of the small copy."""
    scale = np.array(self.picture.shape[1::-1]) / np.array(self.size[::-1])
    return self.boxes * np.tile(scale, 2)


class Pair(NamedTuple):
  """A region of the query matched with one of the class.

  Attributes:
    query_box: left, top, right, bottom in pixels of the query image.
    support_box: the same in the support image.
    similarity: cosine, -1 to 1.
    flow: mass moved.
    contribution: T / n * similarity * flow, this pair's part of the logit.
  """

  query_box: tuple[float, ...]
  support_box: tuple[float, ...]
  similarity: float
  flow: float
  contribution: float


@dataclasses.dataclass(frozen=True)
class Explanation:
  """How one image was matched with one class.

  Attributes:
    label: the class.
    logit: the class's score, as `FewShotClassifier.logits` gives it.
    probability: of the class, among those fitted.
    pairs: all with a flow, the largest contribution first. They sum to `logit -
      remainder`.
    remainder: what of the logit no pair has: rounding, but for solvers that
      smooth (sinkhorn, regularized_qp).
    query: the image.
    support: of the class's images the one most like the query. With several
      images a class, class nodes are fitted to all of them, and their boxes are
      those of this image's nodes of the same number: the same places with fcn
      and grid; with sampling, whose crops are random, they say little.
    images: how many images the class was fitted to.
    similarity: [n, m], query nodes by class nodes.
    flow: [n, m].
    contributions: [n, m].
  """

  label: object
  logit: float
  probability: float
  pairs: tuple[Pair, ...]
  remainder: float
  query: Shown
  support: Shown
  images: int
  similarity: np.ndarray
  flow: np.ndarray
  contributions: np.ndarray

  def matched(self, title: str | None = None) -> plots.MatchedPair:
    """For `visualize.matched_regions`, which draws several on a page."""
    if title is None:
      title = f"{self.label}: {self.sum()}"
    return plots.MatchedPair(
      support=self.support.picture,
      query=self.query.picture,
      support_boxes=self.support.small_boxes(),
      query_boxes=self.query.small_boxes(),
      support_mirrored=self.support.mirrored,
      query_mirrored=self.query.mirrored,
      support_weights=self.support.weights,
      query_weights=self.query.weights,
      similarity=self.similarity,
      flow=self.flow,
      title=title,
      contributions=self.contributions,
    )

  def sum(self, shown: int = 4) -> str:
    """The logit as a sum, in words: "logit 9.10 = 2.01 + 1.50 + 5.59 (40
    others)"."""
    first = [pair.contribution for pair in self.pairs[:shown]]
    rest = self.logit - sum(first)
    parts = [f"{x:.2f}" for x in first]
    others = len(self.pairs) - len(first)
    if others:
      parts.append(f"{rest:.2f} ({others} other pairs)")
    text = " + ".join(parts).replace("+ -", "- ")
    return f"logit {self.logit:.2f} = {text}"

  def figure(self, lines: int = 8):
    """A matplotlib figure: both images, their weights, the `lines` pairs that
    contribute most."""
    return plots.matched_regions([self.matched()], lines)

  def save(self, path, lines: int = 8) -> None:
    """Writes `figure` as a PNG, whole or not at all."""
    plots.save(self.figure(lines), path)


def explain(
  *,
  label,
  logit: float,
  probability: float,
  query: Shown,
  support: Shown,
  images: int,
  similarity: np.ndarray,
  flow: np.ndarray,
  temperature: float,
) -> Explanation:
  """Takes a match apart; see `Explanation`."""
  contributions = temperature / len(flow) * similarity * flow
  rows, columns = np.nonzero(flow > 1e-6)
  order = np.argsort(-contributions[rows, columns], kind="stable")
  pairs = tuple(
    Pair(
      tuple(query.boxes[i].tolist()),
      tuple(support.boxes[j].tolist()),
      float(similarity[i, j]),
      float(flow[i, j]),
      float(contributions[i, j]),
    )
    for i, j in zip(rows[order], columns[order], strict=True)
  )
  return Explanation(
    label=label,
    logit=logit,
    probability=probability,
    pairs=pairs,
    remainder=logit - sum(pair.contribution for pair in pairs),
    query=query,
    support=support,
    images=images,
    similarity=similarity,
    flow=flow,
    contributions=contributions,
  )


def small(image: Image.Image, side: int) -> np.ndarray:
  """A copy to look at, uint8 [h, w, 3]: no side longer than `side`, and none
  shorter than a quarter of the other, where nothing could be seen."""
  share = min(1.0, side / max(image.size))
  least = max(image.size) * share / 4
  size = tuple(max(1, round(max(x * share, least))) for x in image.size)
  return np.asarray(image.resize(size, Image.Resampling.BILINEAR))
