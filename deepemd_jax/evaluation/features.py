"""Encodes images into nodes.

`Features` combines the backbone, the view and the pyramid. Validation,
evaluation, retrieval, the classifier, figures and exported programs all use its
methods. `ImageSetEncoder` encodes a whole image set. `on_nodes` makes a
function of nodes accept rows, whether the nodes are on the device or the host.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from deepemd_jax.config.settings import Settings
from deepemd_jax.data.image_set import ImageSet
from deepemd_jax.data.views import (
  View,
  crop_on_device,
  evaluation_boxes,
  evaluation_side,
  evaluation_view,
)
from deepemd_jax.distributed import runtime, sharding
from deepemd_jax.models import nodes
from deepemd_jax.models.backbone import Backbone
from deepemd_jax.utils.progress import Progress


@dataclasses.dataclass(frozen=True)
class Features:
  """The encoding of images into nodes; JAX can trace its methods.

  Attributes:
    backbone: computes feature maps.
    view: the view settings.
    pyramid: numbers of cells along a side of the averages over a map.
  """

  backbone: Backbone
  view: View
  pyramid: tuple[int, ...]

  @classmethod
  def of(cls, settings: Settings) -> "Features":
    """Returns the features of a run's settings."""
    return cls(settings.backbone, settings.view, settings.pyramid)

  def nodes(self, variables, pixels: jax.Array | np.ndarray) -> jax.Array:
    """Encodes network input [N, crops, S, S, 3] into nodes [N, n, c].

    A whole image is one crop, and the cells of its feature map are the nodes.
    Otherwise every crop is a node.
    """
    crops = pixels.reshape(-1, *pixels.shape[2:])
    maps = self.backbone.encode(variables, crops)
    if self.view.is_whole:
      maps = nodes.averaged(maps, self.view.cells)
      own = nodes.pyramid(maps, self.pyramid)
    else:
      maps = maps.reshape(*pixels.shape[:2], *maps.shape[1:])
      own = nodes.from_crops(maps)
    return nodes.unit(own) if self.backbone.unit_nodes else own

  def nodes_of_images(self, variables, images: jax.Array) -> jax.Array:
    """Encodes whole test images, uint8 [N, H, W, 3], into nodes [N, n, c]."""
    return self.nodes(variables, evaluation_view(self.view, images)[:, None])

  def nodes_of_crops(self, variables, images, boxes, flip) -> jax.Array:
    """Encodes crops of images into nodes [N, crops, c].

    `crop_on_device` describes `images`, `boxes` and `flip`.
    """
    drawn = {"images": images, "boxes": boxes, "flip": flip}
    return self.nodes(
      variables, crop_on_device(self.view, self.view.size, drawn)
    )

  def node_boxes(self) -> np.ndarray:
    """Returns the boxes of the nodes of a whole image.

    Returns:
      [n, 4], left, top, right, bottom in pixels of the network's input.
    """
    size = self.view.size
    side = self.backbone.map_side(size)
    grids = [*self.pyramid, min(side, self.view.cells or side)]
    return np.concatenate([nodes.cell_boxes(g, g, size) for g in grids])


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceNodes:
  """Nodes that are stored on every device.

  Attributes:
    array: [N, n, c], the nodes of all images.
  """

  array: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class HostNodes:
  """Nodes that do not fit on the devices, in a temporary file.

  Attributes:
    array: [N, n, c], the nodes of all images.
  """

  array: np.ndarray

  def take(self, rows: np.ndarray, episodes: np.ndarray | None) -> np.ndarray:
    """Returns nodes [e, ..., n, c] of rows [e, ...]; ignores `episodes`."""
    del episodes
    return self.array[rows]


@dataclasses.dataclass(frozen=True, eq=False)
class RedrawnNodes:
  """Nodes that are encoded again from new crops for every episode.

  Attributes:
    encode: (rows int [e, k], episodes int [e]) -> nodes [e * k, n, c].
  """

  encode: Callable[[np.ndarray, np.ndarray], np.ndarray]

  def take(self, rows: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Returns nodes [e, ..., n, c] of rows [e, ...] in episodes int [e]."""
    flat = rows.reshape(len(rows), -1)
    encoded = self.encode(flat, episodes)
    return encoded.reshape(*rows.shape, *encoded.shape[1:])


Nodes = DeviceNodes | HostNodes | RedrawnNodes


def on_nodes(function: Callable, *, replicate: bool = False) -> Callable:
  """Turns a function of nodes into a function of rows.

  Args:
    function: `(*nodes, *others) -> values`. Its arrays have a leading axis,
      which is split over the devices.
    replicate: whether to put the values on every device.

  Returns:
    The function `(stored, rows, others=(), episodes=None) -> values`. `stored`
    are `Nodes`. `rows` is a tuple of int arrays [b, ...], this process's share;
    `function` gets their nodes [b, ..., n, c]. Create it only once, because it
    compiles on first use.
  """
  out: dict[str, Any] = (
    {"out_shardings": sharding.replicated()} if replicate else {}
  )
  of_nodes = jax.jit(sharding.shard_map_batch(function), **out)

  def gathered(array, rows, others):
    return function(*(array[each] for each in rows), *others)

  of_rows = jax.jit(sharding.shard_map_batch(gathered, whole=1), **out)

  def call(stored: Nodes, rows, others=(), episodes: Any = None):
    if isinstance(stored, DeviceNodes):
      batch = sharding.shard_batch((tuple(rows), tuple(others)))
      runtime.mark_progress()
      return of_rows(stored.array, *batch)
    taken = [stored.take(each, episodes) for each in rows]
    batch = sharding.shard_batch((*taken, *others))
    runtime.mark_progress()
    return of_nodes(*batch)

  return call


def empty_or_memmap(shape: tuple[int, ...], limit: float) -> np.ndarray:
  """Returns an uninitialized float32 array [*shape].

  It is in memory, or in a temporary file if it has more than `limit` bytes.
  """
  if 4 * np.prod(shape) <= limit:
    return np.empty(shape, np.float32)
  with tempfile.TemporaryFile() as file:  # the memory map keeps it open
    return np.memmap(file, np.float32, "w+", shape=shape)


class ImageSetEncoder:
  """An encoder of image sets, whose work all devices share.

  Create it only once, because it compiles.

  Attributes:
    encoded_images: number of images encoded so far, with repetitions.
  """

  def __init__(
    self, features: Features, *, batch_size: int, memory: float, stage: str
  ) -> None:
    """Makes an encoder.

    Args:
      features: the encoding of images into nodes.
      batch_size: number of images or crops in one device call.
      memory: limit in bytes; nodes that need more are kept in a file.
      stage: the name of the stage, for the message if a signal stops it.
    """
    self._features = features
    self._batch_size, self._memory = batch_size, memory
    self._stage = stage
    self.encoded_images = 0
    whole = features.view.is_whole
    encode = features.nodes_of_images if whole else features.nodes_of_crops
    encode = sharding.shard_map_batch(encode, whole=1)
    self._to_all = jax.jit(encode, out_shardings=sharding.replicated())
    self._to_each = jax.jit(encode, out_shardings=sharding.batch_sharding())

  @classmethod
  def of(cls, settings: Settings, stage: str) -> "ImageSetEncoder":
    """Returns the encoder of a run."""
    return cls(
      Features.of(settings),
      batch_size=settings.evaluate.encode_batch_size,
      memory=settings.evaluate.memory,
      stage=stage,
    )

  def __call__(
    self, variables, images: ImageSet, rows: np.ndarray | None = None
  ) -> Nodes:
    """Encodes images in order.

    Args:
      variables: the backbone's variables, on every device.
      images: the image set.
      rows: int [k], the rows of the images to encode; None means all.

    Returns:
      The nodes. Position i belongs to row `rows[i]` of the image set.

    Raises:
      StopRequested: a signal asked to stop.
    """
    if rows is None:
      rows = np.arange(len(images.labels))
    view = self._features.view
    if view.redraw and view.kind == "sampling":
      encode = functools.partial(self._encode_episodes, variables, images, rows)
      return RedrawnNodes(encode)
    array = self._encode_all(variables, images, rows)
    self.encoded_images += len(rows)
    if isinstance(array, np.memmap):
      return HostNodes(array)
    return DeviceNodes(jax.block_until_ready(sharding.replicate(array)))

  def check_stop(self) -> None:
    """Raises StopRequested if a signal asked to stop; called for each batch."""
    runtime.raise_if_stopping(self._stage)

  def _images_a_call(self) -> int:
    return max(1, self._batch_size // self._features.view.crops_per_image)

  def _inputs(self, images: ImageSet, rows: np.ndarray) -> tuple:
    """Returns the arrays of some images that the device encodes."""
    view = self._features.view
    if view.is_whole:
      return (images.whole(rows, evaluation_side(view)),)
    boxes, flip = evaluation_boxes(view, images, rows)
    return (*images.extract_crops(rows, boxes, view.size), flip)

  def _encode_all(self, variables, images: ImageSet, rows) -> np.ndarray:
    count = len(rows)
    size = sharding.pad_to_devices(self._images_a_call())
    encoded = None
    with Progress() as progress:
      for start in range(0, count, size):
        self.check_stop()
        progress("images encoded", start, count)
        # The last batch repeats an image, so that all batches have one shape
        # and there is one compilation.
        local = np.minimum(start + sharding.local_indices(size), count - 1)
        batch = sharding.shard_batch(self._inputs(images, rows[local]))
        runtime.mark_progress()
        part = np.asarray(self._to_all(variables, *batch))
        if encoded is None:
          encoded = empty_or_memmap((count, *part.shape[1:]), self._memory)
        encoded[start : start + size] = part[: count - start]
    # pyrefly: ignore[bad-return]: there is at least one row
    return encoded

  def _encode_episodes(
    self, variables, images, among, places, episodes
  ) -> np.ndarray:
    """Encodes positions [e, k] in `among` for episodes [e] -> [e * k, n, c].

    Each episode has its own crops. These are this process's episodes; every
    process has the same number of them.
    """
    view, rows = self._features.view, among[places]
    drawn = [
      evaluation_boxes(view, images, own, int(episode))
      for own, episode in zip(rows, episodes, strict=True)
    ]
    boxes, flip = (np.concatenate(part) for part in zip(*drawn, strict=True))
    rows, count = rows.ravel(), rows.size
    size = len(sharding.local_indices(self._images_a_call()))
    parts = []
    for start in range(0, count, size):
      self.check_stop()
      own = np.minimum(np.arange(start, start + size), count - 1)
      crops = images.extract_crops(rows[own], boxes[own], view.size)
      batch = sharding.shard_batch((*crops, flip[own]))
      runtime.mark_progress()
      parts.append(sharding.local_rows(self._to_each(variables, *batch)))
    self.encoded_images += count
    return np.concatenate(parts)[:count]
