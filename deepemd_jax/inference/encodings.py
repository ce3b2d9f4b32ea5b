"""From a person's images to nodes: read, cut, encode, remember."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import PIL

from deepemd_jax.checkpoints.pretrained import Trained
from deepemd_jax.config import resolve
from deepemd_jax.data import crops, image_input, image_io
from deepemd_jax.errors import InputError
from deepemd_jax.inference.feature_cache import Cache
from deepemd_jax.models import nodes, resnet12

# Crops in one device call. One shape compiles once, and one more for an image
# alone.
_CROPS = 64
_LISTED = 10
# Of what `_Read` keeps in the cache; another meaning gets another number.
_VERSION = 2


class Encoded(NamedTuple):
  """Some images as nodes.

  Attributes:
    nodes: float32 [N, n, c].
    boxes: float64 [N, n, 4], left, top, right, bottom of each node in pixels of
      the upright original.
    mirrored: bool [N, n], which nodes are of a mirrored crop.
    sizes: int [N, 2], height and width of the originals.
    contents: SHA-256 of each image, hexadecimal.
  """

  nodes: np.ndarray
  boxes: np.ndarray
  mirrored: np.ndarray
  sizes: np.ndarray
  contents: tuple[str, ...]


class _Read(NamedTuple):
  """One image that was read: its crops, or what the cache had."""

  content: str
  cut: tuple | None = None
  kept: dict | None = None


class Encoder:
  """Encodes images in batches of one shape; not to be pickled."""

  def __init__(
    self,
    trained: Trained,
    look: crops.Crops,
    cache: Cache | None = None,
  ) -> None:
    """Makes an encoder.

    Args:
      trained: the network.
      look: at the images.
      cache: of encodings; None remembers nothing.
    """
    self._variables = jax.device_put(trained.variables)
    self._normalize = resolve.normalize(trained.config)
    self._look = look
    self._pyramid = tuple(trained.config.nodes.pyramid)
    self._precision = trained.config.model.precision
    self._cache = cache
    image = trained.config.image
    meaning = repr(
      (
        *(_VERSION, trained.fingerprint, dataclasses.astuple(look)),
        *(self._pyramid, tuple(image.mean), tuple(image.std)),
        self._precision,
        PIL.__version__,
      )
    )
    self._model = hashlib.sha256(meaning.encode()).hexdigest()

  def batches(
    self,
    images: Sequence,
    bad: dict[int, str],
    progress: Callable[[int], None] | None = None,
  ) -> Iterator[tuple[list[int], Encoded]]:
    """Encodes images, a batch at a time, so that any number fits in memory.

    Args:
      images: as `image_input.read` takes them.
      bad: gets the number of each image that cannot be read, and why.
      progress: called with the number of images done.

    Yields:
      The numbers of some images, and these encoded; in order, without bad ones.
    """
    size = self._batch_size()
    starts = range(0, len(images), size)
    chunks = [images[start : start + size] for start in starts]
    workers = min(8, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      # The next batch is read while the device has this one.
      submit = lambda chunk: [pool.submit(self._read, x) for x in chunk]  # noqa: E731
      ahead = submit(chunks[0]) if chunks else []
      try:
        for number, start in enumerate(starts):
          futures = ahead
          ahead = submit(chunks[number + 1]) if chunks[number + 1 :] else []
          found = dict(enumerate((f.result() for f in futures), start))
          bad |= {i: x for i, x in found.items() if isinstance(x, str)}
          good = {i: x for i, x in found.items() if i not in bad}
          if good:
            yield list(good), self._encoded(list(good.values()))
          if progress:
            progress(start + len(found))
      finally:
        pool.shutdown(cancel_futures=True)
    if self._cache:
      self._cache.prune()

  def all(self, images: Sequence) -> Encoded:
    """All images at once.

    Raises:
      InputError: some cannot be read; it names them.
    """
    bad: dict[int, str] = {}
    parts = [encoded for _, encoded in self.batches(images, bad)]
    refuse(images, bad)
    arrays = (np.concatenate(x) for x in list(zip(*parts, strict=True))[:-1])
    return Encoded(*arrays, tuple(c for part in parts for c in part.contents))

  def _batch_size(self) -> int:
    # Whole images are larger than crops that show the like.
    count = 4 if self._look.kind == "fcn" else self._look.count
    return max(1, _CROPS // count)

  def _read(self, source) -> _Read | str:
    """One image, or why it cannot be read."""
    try:
      content, rest = image_input.read(source)
      kept = self._cache and self._cache.get(self._model, content)
      if kept:
        return _Read(content, kept=kept)
      image = image_input.decode(rest)
      size = np.array([image.height, image.width])
      return _Read(content, cut=(*self._look.cut(image), size))
    except Exception as error:  # decoders raise nearly anything
      return image_io.reason(error)

  def _encoded(self, found: list[_Read]) -> Encoded:
    fresh = [read for read in found if read.kept is None]
    made = iter(self._fresh([read.cut for read in fresh]) if fresh else ())
    rows = []
    for read in found:
      row = read.kept
      if row is None:
        row = next(made)
        if self._cache:
          self._cache.put(self._model, read.content, **row)
      rows.append(row)
    arrays = (np.stack([r[k] for r in rows]) for k in Encoded._fields[:-1])
    return Encoded(*arrays, tuple(read.content for read in found))

  def _fresh(self, cut: list[tuple]) -> list[dict]:
    pixels, boxes, mirrored, sizes = map(np.stack, zip(*cut, strict=True))
    count = len(pixels)
    wanted = 1 if count == 1 else self._batch_size()
    filled = pixels[np.minimum(np.arange(wanted), count - 1)]
    whole = self._look.kind == "fcn"
    encoded = encode(
      self._variables,
      self._normalize(filled.astype(np.float32)).astype(np.float32),
      whole,
      self._pyramid,
      self._precision,
    )
    encoded = np.asarray(encoded)[:count]
    if whole:
      boxes = np.stack([self._cells(box) for box in boxes[:, 0]])
      mirrored = np.zeros(boxes.shape[:2], bool)
    rows = zip(encoded, boxes, mirrored, sizes, strict=True)
    return [dict(zip(Encoded._fields[:-1], row, strict=True)) for row in rows]

  def _cells(self, box: np.ndarray) -> np.ndarray:
    """Where in the image the cells of its map are, seen through `box`."""
    grids = [*self._pyramid, self._look.size // 16]
    cells = np.concatenate([nodes.cell_boxes(g, g, 1) for g in grids])
    corner, side = np.tile(box[:2], 2), np.tile(box[2:] - box[:2], 2)
    return corner + cells * side


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def encode(
  variables,
  pixels,
  whole: bool,
  pyramid: tuple[int, ...],
  precision: str = "float32",
):
  """Nodes of network input: float32 [N, crops, S, S, 3] -> [N, n, c].

  Args:
    variables: of the ResNet-12.
    pixels: normalized.
    whole: the only crop is the image, and its map's cells are the nodes, under
      a `pyramid`; if not, crops are the nodes.
    pyramid: as `nodes.pyramid`.
    precision: as `resnet.apply`.
  """
  crops = pixels.reshape(-1, *pixels.shape[2:])
  maps = resnet12.encode(variables, crops, precision)
  if whole:
    return nodes.pyramid(maps, pyramid)
  return nodes.from_crops(maps.reshape(*pixels.shape[:2], *maps.shape[1:]))


def refuse(images: Sequence, bad: dict[int, str], remedy: str = "") -> None:
  """Does nothing if there are no bad images.

  Raises:
    InputError: there are; it names the first ones, and says why.
  """
  if not bad:
    return
  named = [f"{image_input.name(images[i], i)} ({bad[i]})" for i in sorted(bad)]
  more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
  raise InputError(
    f"{len(bad)} of {len(images)} images cannot be read: "
    f"{', '.join(named[:_LISTED])}{more}; repair or remove them{remedy}"
  )
