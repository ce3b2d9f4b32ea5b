"""Reads, crops and encodes a user's images, and caches their nodes."""

import concurrent.futures
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import PIL

from deepemd_jax.checkpoints.pretrained import Pretrained
from deepemd_jax.data import image_input, image_io
from deepemd_jax.data.views import View
from deepemd_jax.errors import InputError
from deepemd_jax.evaluation.features import Features
from deepemd_jax.inference import crops
from deepemd_jax.inference.feature_cache import Cache

# Crops in one device call. This is one shape to compile; a single image is
# another.
_CROPS_A_CALL = 64
_LISTED = 10
# The version of the cached arrays, to be raised if their meaning changes.
_CACHE_VERSION = 4


class EncodedImages(NamedTuple):
  """Images that were encoded into nodes.

  Attributes:
    nodes: float32 [N, n, c], the nodes.
    boxes: float64 [N, n, 4], left, top, right, bottom of each node in pixels of
      the upright original.
    mirrored: bool [N, n], whether each node's crop was mirrored.
    sizes: int [N, 2], height and width of the originals in pixels.
    contents: the hexadecimal SHA-256 of each image.
  """

  nodes: np.ndarray
  boxes: np.ndarray
  mirrored: np.ndarray
  sizes: np.ndarray
  contents: tuple[str, ...]


_ARRAYS = EncodedImages._fields[:-1]


class _ReadImage(NamedTuple):
  """One image that was read.

  Attributes:
    content: the hexadecimal SHA-256 of the image.
    crops: pixels, boxes, mirrored and size if it must be encoded, or None.
    cached: the cached arrays, or None.
  """

  content: str
  crops: tuple | None = None
  cached: dict | None = None


class ImageEncoder:
  """An encoder of images in batches of one shape; it cannot be pickled."""

  def __init__(
    self,
    pretrained: Pretrained,
    view: View,
    cache: Cache | None = None,
    center: Callable[[np.ndarray], np.ndarray] | None = None,
  ) -> None:
    """Makes an encoder.

    Args:
      pretrained: the trained encoder.
      view: the view settings.
      cache: the cache of encodings; None caches nothing.
      center: a function that is applied to all nodes; see `centering`.
    """
    settings = pretrained.settings
    self._features = Features(settings.backbone, view, settings.pyramid)
    self._variables = jax.device_put(pretrained.encoder.variables)
    self._view = view
    self._cache = cache
    self._center = center
    meaning = (
      *(_CACHE_VERSION, pretrained.fingerprint, view, settings.pyramid),
      *(sorted(settings.model.items()), PIL.__version__),
    )
    self._model = hashlib.sha256(repr(meaning).encode()).hexdigest()

  def batches(
    self,
    images: Sequence,
    bad: dict[int, str],
    progress: Callable[[int], None] | None = None,
  ) -> Iterator[tuple[list[int], EncodedImages]]:
    """Encodes images one batch at a time, so that any number fits in memory.

    Args:
      images: paths, Pillow images or arrays; see `image_input.read`.
      bad: receives {number of an unreadable image: reason}.
      progress: called with the number of images done.

    Yields:
      The numbers of the readable images of a batch, and these images encoded,
      in order.
    """
    size = self._images_a_call()
    starts = range(0, len(images), size)
    chunks = [images[start : start + size] for start in starts]
    workers = min(8, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      # The next batch is read while the device encodes this one.
      ahead = self._submit(pool, chunks[0]) if chunks else []
      try:
        for number, start in enumerate(starts):
          futures, ahead = ahead, []
          if chunks[number + 1 :]:
            ahead = self._submit(pool, chunks[number + 1])
          images_read = dict(enumerate((f.result() for f in futures), start))
          bad |= {i: x for i, x in images_read.items() if isinstance(x, str)}
          good = {i: x for i, x in images_read.items() if i not in bad}
          if good:
            yield list(good), self._encode_batch(list(good.values()))
          if progress:
            progress(start + len(images_read))
      finally:
        pool.shutdown(cancel_futures=True)
    if self._cache:
      self._cache.prune()

  def all(self, images: Sequence) -> EncodedImages:
    """Encodes all images at once.

    Args:
      images: paths, Pillow images or arrays; see `image_input.read`.

    Raises:
      InputError: some images cannot be read; the message names them.
    """
    bad: dict[int, str] = {}
    parts = [encoded for _, encoded in self.batches(images, bad)]
    refuse(images, bad)
    arrays = (
      np.concatenate([getattr(part, name) for part in parts])
      for name in _ARRAYS
    )
    contents = tuple(x for part in parts for x in part.contents)
    return EncodedImages._make((*arrays, contents))

  def _images_a_call(self) -> int:
    # A whole image has more pixels than a crop.
    cost = 4 if self._view.is_whole else self._view.crops_per_image
    return max(1, _CROPS_A_CALL // cost)

  def _submit(self, pool, chunk) -> list[concurrent.futures.Future]:
    return [pool.submit(self._read, image) for image in chunk]

  def _read(self, source) -> _ReadImage | str:
    """Returns one image, or the reason why it cannot be read."""
    try:
      content, rest = image_input.read(source)
      cached = self._cache and self._cache.get(self._model, content)
      if cached and self._fits(cached):
        return _ReadImage(content, cached=cached)
      image, size = image_input.decode(rest)
      pixels, boxes, mirrored = crops.extract_crops(self._view, image)
      # A large image is decoded at a smaller size than its original.
      boxes = boxes * np.tile(np.divide(size[::-1], image.size), 2)
      return _ReadImage(
        content, crops=(pixels, boxes, mirrored, np.array(size))
      )
    except Exception as error:  # decoders raise errors of many types
      return image_io.reason(error)

  def _fits(self, cached: dict[str, np.ndarray]) -> bool:
    """Returns whether cached arrays have this encoder's shapes and types."""
    count = len(self._features.node_boxes())
    if not self._view.is_whole:
      count = self._view.crops_per_image
    shapes = (
      (count, self._features.backbone.channels),
      (count, 4),
      (count,),
      (2,),
    )
    return tuple(cached) == _ARRAYS and all(
      array.shape == shape and array.dtype.kind in kinds
      for array, shape, kinds in zip(
        cached.values(), shapes, ("f", "f", "b", "iu"), strict=True
      )
    )

  def _encode_batch(self, images: list[_ReadImage]) -> EncodedImages:
    new = [image.crops for image in images if image.crops is not None]
    encoded = iter(self._encode_new(new) if new else ())
    rows = []
    for image in images:
      row = image.cached
      if row is None:
        row = next(encoded)
        if self._cache:
          self._cache.put(self._model, image.content, **row)
      rows.append(row)
    arrays = (np.stack([row[name] for row in rows]) for name in _ARRAYS)
    contents = tuple(image.content for image in images)
    encoded = EncodedImages._make((*arrays, contents))
    if self._center:  # applied after the cache, which serves every center
      encoded = encoded._replace(nodes=self._center(encoded.nodes))
    return encoded

  def _encode_new(self, images: list[tuple]) -> list[dict]:
    """Encodes the crops of images; returns {name: array} of each image."""
    pixels, boxes, mirrored, sizes = map(np.stack, zip(*images, strict=True))
    count = len(pixels)
    size = 1 if count == 1 else self._images_a_call()
    filled = pixels[np.minimum(np.arange(size), count - 1)]
    inputs = self._view.normalize(filled.astype(np.float32))
    inputs = inputs.astype(np.float32)
    nodes = _encode(self._features, self._variables, inputs)
    nodes = np.asarray(nodes)[:count]
    if not np.isfinite(nodes).all():
      raise InputError(
        "the nodes that the encoder computes are not finite (NaN or "
        "infinity): its weights, or image.mean and image.std in config.json, "
        "are damaged; use another checkpoint"
      )
    if self._view.is_whole:
      boxes = np.stack([self._cells(box) for box in boxes[:, 0]])
      mirrored = np.zeros(boxes.shape[:2], bool)
    rows = zip(nodes, boxes, mirrored, sizes, strict=True)
    return [dict(zip(_ARRAYS, row, strict=True)) for row in rows]

  def _cells(self, box: np.ndarray) -> np.ndarray:
    """Returns the boxes of a feature map's cells, if the view shows `box`."""
    cells = self._features.node_boxes() / self._view.size
    corner, side = np.tile(box[:2], 2), np.tile(box[2:] - box[:2], 2)
    return corner + cells * side


@functools.partial(jax.jit, static_argnums=0)
def _encode(features: Features, variables, pixels) -> jax.Array:
  """Calls `Features.nodes`, compiled once for encoders with equal features."""
  return features.nodes(variables, pixels)


def refuse(images: Sequence, bad: dict[int, str], remedy: str = "") -> None:
  """Raises an error if there are bad images.

  Args:
    images: all images.
    bad: {number of a bad image: reason}.
    remedy: text at the end of the message.

  Raises:
    InputError: there are bad images; the message names the first ones and the
      reasons.
  """
  if not bad:
    return
  named = [f"{image_input.name(images[i], i)} ({bad[i]})" for i in sorted(bad)]
  more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
  raise InputError(
    f"{len(bad)} of {len(images)} images cannot be read: "
    f"{', '.join(named[:_LISTED])}{more}; repair or remove them{remedy}"
  )
