"""Explains the score of an image by matched regions and their contributions."""

import dataclasses
from typing import NamedTuple

import numpy as np
from PIL import Image

from deepemd_jax.evaluation import plots


class Side(NamedTuple):
  """One side of a match: the query or the class.

  Attributes:
    picture: uint8 [h, w, 3], a small copy of the image.
    size: height and width of the original in pixels.
    boxes: [n, 4], left, top, right, bottom of each node in pixels of the
      original.
    mirrored: bool [n], whether each node's crop was mirrored.
    weights: [n], the mass that each node supplies or demands in the EMD; the
      sum is n.
  """

  picture: np.ndarray
  size: tuple[int, int]
  boxes: np.ndarray
  mirrored: np.ndarray
  weights: np.ndarray

  def small_boxes(self) -> np.ndarray:
    """Returns the boxes [n, 4] in pixels of the small copy."""
    scale = np.array(self.picture.shape[1::-1]) / np.array(self.size[::-1])
    return self.boxes * np.tile(scale, 2)


class Pair(NamedTuple):
  """A region of the query and a matched region of the class.

  Attributes:
    query_box: left, top, right, bottom in pixels of the query image.
    support_box: left, top, right, bottom in pixels of the support image.
    similarity: the cosine of both nodes, -1 to 1.
    flow: the mass that the EMD moves between them.
    contribution: this pair's part of the logit, T / n * similarity * flow, with
      the temperature T and n nodes of the query.
  """

  query_box: tuple[float, ...]
  support_box: tuple[float, ...]
  similarity: float
  flow: float
  contribution: float


@dataclasses.dataclass(frozen=True)
class Explanation:
  """The match of one image with one class.

  Attributes:
    label: the class.
    logit: the score of the class from `FewShotClassifier.logits`.
    probability: the probability of the class among all classes, 0 to 1.
    pairs: all pairs with a flow, the largest contribution first. The sum of
      their contributions is `logit - remainder`.
    remainder: the part of the logit that belongs to no pair. It is only
      rounding, except with smoothing solvers (sinkhorn, regularized_qp).
    query: the query image.
    support: the image of the class that is most similar to the query. If the
      class has several images, its nodes are fitted to all of them and are
      shown at the boxes of this image's nodes. With fcn and grid, these boxes
      are the same in every image. With sampling, crops are random, and the
      boxes mean little.
    images: number of images that the class was fitted to.
    similarity: [n, m], cosines of query nodes and class nodes.
    flow: [n, m], the mass moved.
    contributions: [n, m], the contributions to the logit.
  """

  label: object
  logit: float
  probability: float
  pairs: tuple[Pair, ...]
  remainder: float
  query: Side
  support: Side
  images: int
  similarity: np.ndarray
  flow: np.ndarray
  contributions: np.ndarray

  def matched(self, title: str | None = None) -> plots.MatchedPair:
    """Returns the input of `plots.matched_regions`.

    Args:
      title: the title above the images; None means the label and `sum`.
    """
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

  def sum(self, terms: int = 4) -> str:
    """Writes out the logit: "logit 9.10 = 2.01 + 1.50 + 5.59 (40 other pairs)".

    Args:
      terms: number of pairs that have their own term.
    """
    first = [pair.contribution for pair in self.pairs[:terms]]
    # The printed numbers add up.
    rest = round(self.logit, 2) - sum(round(x, 2) for x in first)
    parts = [f"{x:.2f}" for x in first]
    others = len(self.pairs) - len(first)
    if others:
      parts.append(f"{rest:.2f} ({others} other pairs)")
    text = " + ".join(parts).replace("+ -", "- ")
    return f"logit {self.logit:.2f} = {text}"

  def figure(self, lines: int = 8):
    """Returns a matplotlib figure of both images and their weights.

    Args:
      lines: number of pairs to draw, the largest contributions first.
    """
    return plots.matched_regions([self.matched()], lines)

  def save(self, path, lines: int = 8) -> None:
    """Writes `figure` as a PNG file, completely or not at all.

    Args:
      path: must end in .png; its folder is made if it is missing.
      lines: the number of pairs of regions to draw.

    Raises:
      InputError: the path has another ending.
    """
    plots.save(self.figure(lines), path)


def explain(
  *,
  label,
  logit: float,
  probability: float,
  query: Side,
  support: Side,
  images: int,
  similarity: np.ndarray,
  flow: np.ndarray,
  temperature: float,
) -> Explanation:
  """Splits a logit into its pairs of regions.

  Args:
    label: the class.
    logit: the logit of the class.
    probability: the probability of the class, 0 to 1.
    query: the query image.
    support: the support image of the class.
    images: number of support images of the class.
    similarity: [n, m], the similarity of each pair of nodes.
    flow: [n, m], the optimal flow; it sums to n.
    temperature: the factor of the logit.
  """
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


def thumbnail(image: Image.Image, side: int) -> np.ndarray:
  """Returns a small copy of an image for display.

  Args:
    image: an RGB image of any size.
    side: the largest length of the longer side in pixels.

  Returns:
    uint8 [h, w, 3]. The shorter side is at least a quarter of the longer one,
    because a thinner image would show nothing.
  """
  scale = min(1.0, side / max(image.size))
  least = max(image.size) * scale / 4
  width, height = (max(1, round(max(x * scale, least))) for x in image.size)
  return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
