"""DeepEMD as a classifier of a user's own images, in scikit-learn's style.

    classifier = FewShotClassifier()
    classifier.fit(["cat1.jpg", "cat2.jpg", "dog.jpg"], ["cat", "cat", "dog"])
    classifier.predict(["unknown.jpg"])
    classifier.explain("unknown.jpg").save("why.png")

Fitting trains no network. A class is represented by the nodes of its images.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.data import image_input
from deepemd_jax.emd.api import default_solver
from deepemd_jax.errors import InputError
from deepemd_jax.inference import (
  centering,
  choices,
  class_nodes,
  estimator,
  explanation,
  feature_cache,
  image_encoder,
)
from deepemd_jax.inference import labels as label_arrays

_PICTURE = 224  # pixels, the longer side of the copies in explanations


class FewShotClassifier(estimator.Estimator):
  """A classifier of images that learns from a few examples of each class.

  It follows the protocol of scikit-learn (clone, cross_val_score, pickle) but
  does not need it. Images come in a list or array and may have any size. They
  are paths, Pillow images, or arrays [H, W] or [H, W, 3] of whole numbers
  0..255, uint16, or floats 0..1.

  If each class has one image, its nodes are matched directly. Otherwise, the
  class nodes are fitted to all images (the structured FC layer, `models.sfc`).
  Images of smaller classes are repeated, so that all classes weigh the same.

  Attributes:
    classes_: [way], the sorted labels.
    class_nodes_: float32 [way, n, c], the nodes of the classes.
  """

  def __init__(
    self,
    checkpoint=None,
    variant=None,
    solver=None,
    *,
    center=None,
    cache=None,
  ) -> None:
    """Stores the settings, which `fit` checks.

    Args:
      checkpoint: the workdir of a run of `deepemd_jax.main`, a folder written
        by `deepemd_jax.checkpoints.convert`, a Hugging Face folder with a
        vision transformer, "hf:OWNER/NAME", or a backbone that comes with its
        weights; None is "efficientnet_lite0", trained on photographs.
      variant: "fcn", "grid" or "sampling"; None means that of the run.
      solver: a name ("auto", "interior_point", ...), an EMD solver, or None for
        that of the run.
      center: the images whose common features are removed from all nodes:
        photographs of the same place without labels (a folder, a list as for
        `fit`, or a `centering.Center`), the examples ("support"), or no images
        ("none"). None is "support" if the encoder is a published one and there
        are at least five classes, otherwise "none".
      cache: the folder in which encodings are cached; None caches nothing.
    """
    self.checkpoint = checkpoint
    self.variant = variant
    self.solver = solver
    self.center = center
    self.cache = cache

  def __getstate__(self) -> dict:
    # The encoder has arrays on a device; it is made again when it is needed.
    return {k: v for k, v in self.__dict__.items() if k != "_encoder"}

  def fit(self, images: Sequence, labels: Sequence):
    """Learns the classes.

    Args:
      images: the examples, at least one; the class describes their types.
      labels: one label per image: text, whole numbers or other sortable values,
        all of one kind.

    Returns:
      The classifier.

    Raises:
      InputError: the settings, the images or the labels are unsuitable.
    """
    images = image_input.several(images)
    if not images:
      raise InputError("no images; give at least one of each class")
    classes, index = label_arrays.classes(labels, len(images))
    with self._as_before_on_errors():
      self._fit(images, classes, index)
    return self

  def _fit(self, images, classes, index) -> None:
    trained = pretrained.load(self.checkpoint)
    settings = trained.settings
    self._trained = trained
    self._view = choices.choose_view(settings, self.variant)
    self._heads = dataclasses.replace(
      settings.heads, solver=choices.choose_solver(settings, self.solver)
    )
    self._center = self._encoder = None
    encoded = self.encoder().all(images)
    published = settings.backbone.weights is not None
    self._center = centering.find(
      self.center, self.encoder(), encoded.nodes, len(classes), published
    )
    if self._center:
      self._encoder = None  # one with the center is made when it is needed
      encoded = encoded._replace(nodes=self._center(encoded.nodes))
      self._heads = centering.adapt(self._heads)
    self._support = [
      explanation.Side(
        _picture(image),
        tuple(size.tolist()),
        boxes,
        mirrored,
        None,  # pyrefly: ignore[bad-argument-type]: `explain` sets them
      )
      for image, size, boxes, mirrored in zip(
        *(images, encoded.sizes, encoded.boxes, encoded.mirrored), strict=True
      )
    ]
    self._support_nodes, self._support_index = encoded.nodes, index
    self.support_contents_ = encoded.contents
    self.class_nodes_ = class_nodes.fit(
      encoded.nodes, index, self._heads, settings.seed
    )
    self.classes_ = classes

  def describe(self) -> dict[str, str]:
    """Returns {name: text} that describes the fitted classifier."""
    self._check_fitted()
    shots = np.bincount(self._support_index)
    solver = self._heads.solver or default_solver()
    facts = {
      "checkpoint": f"{self.checkpoint or pretrained.DEFAULT} "
      f"({self._trained.encoder.place})",
      "variant": f"{self._view.kind}, {self.class_nodes_.shape[1]} nodes",
      "solver": type(solver).__name__,
      "classes": str(len(shots)),
      "class nodes": "of the example"
      if shots.max() == 1
      else "fitted to the examples (SFC)",
    }
    if self._center is not None:
      count = self._center.photographs
      facts["centered by"] = f"{count} photograph{'s' * (count != 1)}"
    return facts

  def encoder(self) -> image_encoder.ImageEncoder:
    """Returns the encoder of images; `fit` must be called first."""
    if "_trained" not in self.__dict__:  # `fit` calls this method, too
      raise estimator.not_fitted(type(self).__name__)
    encoder = self.__dict__.get("_encoder")
    if encoder is None:
      cache = None
      if self.cache is not None:
        cache = feature_cache.Cache(self.cache)
      encoder = self._encoder = image_encoder.ImageEncoder(
        self._trained, self._view, cache, self._center
      )
    return encoder

  def logits(self, images: Sequence) -> np.ndarray:
    """Returns scores [N, way], columns as in `classes_`; larger is better.

    Raises:
      InputError: some images cannot be read; the message names them.
    """
    self._check_fitted()
    images = image_input.several(images)
    bad: dict[int, str] = {}
    parts = [scores for _, scores, _ in self.scored(images, bad)]
    image_encoder.refuse(images, bad)
    return np.concatenate(parts or [np.empty((0, len(self.classes_)))])

  def scored(
    self,
    images: Sequence,
    bad: dict[int, str],
    progress: Callable[[int], None] | None = None,
  ) -> Iterator[tuple[list[int], np.ndarray, tuple[str, ...]]]:
    """Computes logits one batch at a time, for any number of images.

    Args:
      images: a list of images.
      bad: receives {number of an unreadable image: reason}.
      progress: called with the number of images done.

    Yields:
      The numbers of the images of a batch, their logits [batch, way], and the
      hexadecimal SHA-256 of each.
    """
    self._check_fitted()
    for numbers, encoded in self.encoder().batches(images, bad, progress):
      yield numbers, self._logits(encoded.nodes), encoded.contents

  def _logits(self, nodes: np.ndarray, classes=None) -> np.ndarray:
    """Returns the scores [N, way] of encoded queries [N, n, c]."""
    classes = self.class_nodes_ if classes is None else classes
    return class_nodes.score(nodes, classes, self._heads)

  def explain(self, image, label=None) -> explanation.Explanation:
    """Explains how one image is matched with a class.

    Args:
      image: one image; the class describes its types.
      label: the label of the class; None means the predicted class.

    Raises:
      InputError: the image cannot be read, or there is no such class.
    """
    self._check_fitted()
    encoded = self.encoder().all([image])
    logits = self._logits(encoded.nodes)[0]
    k = int(logits.argmax()) if label is None else self._number_of(label)
    rows = np.flatnonzero(self._support_index == k)
    # Filled up to the size of the largest class, to compile only one shape.
    filled = np.resize(rows, np.bincount(self._support_index).max())
    alike = self._logits(encoded.nodes, self._support_nodes[filled])[0]
    support = self._support[filled[alike.argmax()]]
    similarity, flow, query_weights, class_weights = class_nodes.match(
      encoded.nodes, self.class_nodes_[k : k + 1], self._heads
    )
    size = tuple(encoded.sizes[0].tolist())
    return explanation.explain(
      label=self.classes_[k],
      logit=float(logits[k]),
      probability=float(class_nodes.softmax(logits)[k]),
      query=explanation.Side(
        _picture(image),
        size,
        encoded.boxes[0],
        encoded.mirrored[0],
        query_weights,
      ),
      support=support._replace(weights=class_weights),
      images=len(rows),
      similarity=similarity,
      flow=flow,
      temperature=self._heads.temperature,
    )


def _picture(image) -> np.ndarray:
  content = image_input.read(image)[1]
  # Four times the final width is enough for a good reduction.
  small = image_input.decode_small(content, (4 * _PICTURE) ** 2)
  return explanation.thumbnail(small, _PICTURE)
