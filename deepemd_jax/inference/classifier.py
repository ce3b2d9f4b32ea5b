"""DeepEMD as a classifier of a person's own images, after scikit-learn's ways.

    classifier = FewShotClassifier()
    classifier.fit(["cat1.jpg", "cat2.jpg", "dog.jpg"], ["cat", "cat", "dog"])
    classifier.predict(["unknown.jpg"])
    classifier.explain("unknown.jpg").save("why.png")

Fitting trains no network: a class is the nodes of its images.
"""

import dataclasses
import functools
import inspect
import sys
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
  explanation,
  feature_cache,
  image_encoder,
)
from deepemd_jax.inference import labels as label_arrays

_PICTURE = 224  # pixels, longer side of the copies kept for explanations


class FewShotClassifier:
  """Classifies images by a few examples of each class.

  It follows scikit-learn's protocol (clone, cross_val_score, pickle) without
  needing it. Images are paths, Pillow's images, or arrays [H, W] or [H, W, 3]:
  whole numbers 0..255, uint16, or floats 0..1; of any size, in a list or array.

  Classes with one image each are matched directly. As soon as one has more, the
  class nodes are fitted to all images (the structured FC layer, `models.sfc`);
  classes with fewer images than the largest have theirs repeated, so that each
  class weighs the same.

  Attributes:
    classes_: the labels, sorted.
    class_nodes_: float32 [way, n, c].
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
    """Keeps the settings; `fit` looks at them.

    Args:
      checkpoint: workdir of a run of `deepemd_jax.main`, a folder that
        `deepemd_jax.checkpoints.convert` wrote, a folder of Hugging Face's with
        a vision transformer, "hf:OWNER/NAME" from a hub, or a backbone that
        comes with its weights; None is "efficientnet_lite0", which has seen
        photographs.
      variant: "fcn", "grid" or "sampling"; None is the run's own.
      solver: a name ("auto", "interior_point", ...), an EMD solver, or None:
        the run's own.
      center: what images have in common is taken out of all nodes: of
        photographs of their place, without labels (a folder, or a list as `fit`
        takes it, or a `centering.Center`), of the examples ("support"), or
        nothing ("none"). None is the examples if the encoder is a published one
        and there are at least five classes.
      cache: folder in which encodings are kept; None keeps none.
    """
    self.checkpoint = checkpoint
    self.variant = variant
    self.solver = solver
    self.center = center
    self.cache = cache

  def get_params(self, deep: bool = True) -> dict:
    """The settings by name."""
    del deep
    return {name: getattr(self, name) for name in _names()}

  def set_params(self, **params):
    """Changes settings; returns the classifier.

    Raises:
      InputError: there is no such setting.
    """
    for name, value in params.items():
      if name not in _names():
        raise InputError(
          f"no parameter {name!r}; there are {', '.join(_names())}"
        )
      setattr(self, name, value)
    return self

  def __repr__(self) -> str:
    given = [
      f"{k}={v!r}" for k, v in self.get_params().items() if v is not None
    ]
    return f"FewShotClassifier({', '.join(given)})"

  def __getstate__(self) -> dict:
    # The encoder holds arrays of a device; it is made again where needed.
    return {k: v for k, v in self.__dict__.items() if k != "_encoder"}

  def __sklearn_is_fitted__(self) -> bool:
    return hasattr(self, "class_nodes_")

  def __sklearn_tags__(self):
    from sklearn import utils  # only scikit-learn asks

    return utils.Tags(
      estimator_type="classifier",
      target_tags=utils.TargetTags(required=True),
      classifier_tags=utils.ClassifierTags(),
      input_tags=utils.InputTags(two_d_array=False, three_d_array=True),
      non_deterministic=False,
    )

  def fit(self, images: Sequence, labels: Sequence):
    """Learns the classes.

    Args:
      images: see the class; at least one.
      labels: one an image: text, whole numbers, whatever sorts; of one kind.

    Returns:
      The classifier.

    Raises:
      InputError: the settings, the images or the labels do not fit.
    """
    images = image_input.several(images)
    if not images:
      raise InputError("no images; give at least one of each class")
    classes, index = label_arrays.classes(labels, len(images))
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
      self._encoder = None  # one that centers is made when it is needed
      encoded = encoded._replace(nodes=self._center(encoded.nodes))
      self._heads = centering.adapt(self._heads)
    self._support = [
      explanation.Side(
        _picture(image),
        tuple(size.tolist()),
        boxes,
        mirrored,
        None,  # pyrefly: ignore[bad-argument-type]: `explain` finds them
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
    return self

  def describe(self) -> dict[str, str]:
    """What was fitted, in words, by name."""
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
      facts["centered by"] = f"{self._center.photographs} photographs"
    return facts

  def encoder(self) -> image_encoder.ImageEncoder:
    """What encodes images for this classifier; `fit` comes first."""
    self._check_fitted(during_fit=True)
    encoder = self.__dict__.get("_encoder")
    if encoder is None:
      cache = None
      if self.cache is not None:
        cache = feature_cache.Cache(self.cache)
      encoder = self._encoder = image_encoder.ImageEncoder(
        self._trained, self._view, cache, self._center
      )
    return encoder

  def _check_fitted(self, during_fit: bool = False) -> None:
    there = "_trained" if during_fit else "class_nodes_"
    if there not in self.__dict__:
      raise not_fitted()

  def logits(self, images: Sequence) -> np.ndarray:
    """Scores, [N, way], columns as in `classes_`; larger is more alike.

    Raises:
      InputError: some images cannot be read; it names them.
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
    """As `logits`, for any number of images: a batch at a time.

    Args:
      images: a list.
      bad: gets the number of each image that cannot be read, and why.
      progress: called with the number of images done.

    Yields:
      Numbers of images, their logits [batch, way], their contents' SHA-256.
    """
    self._check_fitted()
    for numbers, encoded in self.encoder().batches(images, bad, progress):
      yield numbers, self._logits(encoded.nodes), encoded.contents

  def _logits(self, nodes: np.ndarray, classes=None) -> np.ndarray:
    """Scores [N, way] of encoded queries [N, n, c]."""
    classes = self.class_nodes_ if classes is None else classes
    return class_nodes.score(nodes, classes, self._heads)

  def predict_proba(self, images: Sequence) -> np.ndarray:
    """Softmax of the logits, [N, way], columns as in `classes_`."""
    return class_nodes.softmax(self.logits(images))

  def predict(self, images: Sequence) -> np.ndarray:
    """The most likely class of each image, [N]."""
    best = self.logits(images).argmax(1)
    return self.classes_[best]

  def score(self, images: Sequence, labels: Sequence, sample_weight=None):
    """Share of the images that get their label, 0 to 1."""
    predicted = self.predict(images)
    true = label_arrays.as_array(labels, len(predicted))
    return float(np.average(predicted == true, weights=sample_weight))

  def explain(self, image, label=None) -> explanation.Explanation:
    """How one image was matched with a class.

    Args:
      image: one image, see the class.
      label: of the class; None is the predicted one.

    Raises:
      InputError: the image cannot be read, or there is no such class.
    """
    self._check_fitted()
    encoded = self.encoder().all([image])
    logits = self._logits(encoded.nodes)[0]
    k = int(logits.argmax())
    if label is not None:
      (found,) = np.nonzero(self.classes_ == label)
      if not len(found):
        raise InputError(
          f"no class {label!r}; there are {', '.join(map(str, self.classes_))}"
        )
      k = int(found[0])
    rows = np.flatnonzero(self._support_index == k)
    # As many as the largest class has: one shape.
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


@functools.cache
def _names() -> tuple[str, ...]:
  return tuple(inspect.signature(FewShotClassifier).parameters)


def not_fitted() -> InputError:
  """The error of asking too early: scikit-learn's own, too, where that is in
  use."""
  text = "this FewShotClassifier is not fitted; call fit first"
  exceptions = sys.modules.get("sklearn.exceptions")
  if exceptions is None:
    return InputError(text)

  class NotFitted(InputError, exceptions.NotFittedError):
    def __reduce__(self):
      return not_fitted, ()

  return NotFitted(text)


def _picture(image) -> np.ndarray:
  content = image_input.read(image)[1]
  # Four times as wide is enough to be made smaller well.
  small = image_input.decode_small(content, (4 * _PICTURE) ** 2)
  return explanation.thumbnail(small, _PICTURE)
