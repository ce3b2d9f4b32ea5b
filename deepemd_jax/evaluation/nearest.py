"""Finds the images of a gallery that are most similar to a query.

First, all images are compared exactly by pooled descriptors, with a matrix
product and a top-K for each block of the gallery. Then the best few images are
compared by EMD, with one call for a batch of queries. Queries are split over
the devices, which never wait for each other. The gallery, or its current block,
is on every device.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from deepemd_jax.distributed import runtime, sharding
from deepemd_jax.evaluation.features import Nodes, on_nodes
from deepemd_jax.models import matching

_HIGHEST = jax.lax.Precision.HIGHEST  # TF32 would swap images of similar rank


def describe(nodes, out: np.ndarray, block: int = 4096) -> np.ndarray:
  """Computes pooled descriptors of unit length, written to `out`.

  Args:
    nodes: [N, n, c], a JAX or NumPy array; a memory map is read in blocks.
    out: float32 [N, c], an array or a memory map.
    block: number of images in a block.

  Returns:
    `out`.
  """
  pooled = jax.jit(matching.pooled)
  for start in range(0, len(nodes), block):
    out[start : start + block] = pooled(nodes[start : start + block])
  return out


def top(
  gallery: np.ndarray,
  rows: np.ndarray,
  k: int,
  *,
  batch_size: int = 256,
  block: int = 16384,
  progress: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray]:
  """Finds exactly the k most similar of all other images for each query.

  `batch_size` and `block` change the result only for images whose similarities
  differ in the last digit.

  Args:
    gallery: [N, c], of unit length. A whole array is put on the devices. Of a
      memory map, at most two blocks are on the devices at a time.
    rows: int [q], the rows of the gallery that are the queries.
    k: number of images to find, less than N.
    batch_size: number of queries in one device call.
    block: number of gallery images in one device call.
    progress: called with the number of queries done.

  Returns:
    int32 [q, k], rows of the gallery, most similar first, ties in the order of
    the gallery; and float32 [q, k], their cosines.
  """
  block = min(block, len(gallery))
  blocks = _Blocks(gallery, block)
  # All batches have one shape, and a batch is no larger than the queries need.
  batch_size = sharding.pad_to_devices(min(batch_size, len(rows)))
  parts = []
  for at in _batches(len(rows), batch_size):
    progress(int(at[0]))
    own = np.asarray(rows[at], np.int32)
    none = np.full((len(at), k), -np.inf, np.float32)
    queries = sharding.shard_batch((np.asarray(gallery[own]), own))
    best = sharding.shard_batch((none, np.zeros((len(at), k), np.int32)))
    runtime.mark_progress()
    for start, part in blocks:
      best = _step()(part, start, np.int32(len(gallery)), best, *queries)
    parts.append(_fetched(best))
  cosine, nearest = (np.concatenate(x) for x in zip(*parts, strict=True))
  return nearest[: len(rows)], cosine[: len(rows)]


@functools.cache
def _step() -> Callable:
  return jax.jit(sharding.shard_map_batch(_merged, whole=3))


def _merged(part, start, count, best, queries, own):
  """Merges the best images so far with the best of one block."""
  similarity = jnp.matmul(queries, part.T, precision=_HIGHEST)
  rows = start + jnp.arange(len(part), dtype=jnp.int32)
  # Excludes the query itself and the padding of the last block.
  out = (rows == own[:, None]) | (rows >= count)
  similarity = jnp.where(out, -jnp.inf, similarity)
  k = best[0].shape[1]
  values, places = jax.lax.top_k(similarity, min(k, len(part)))
  # The images found before come first, so that ties keep the gallery's order.
  values = jnp.concatenate([best[0], values], 1)
  rows = jnp.concatenate([best[1], rows[places]], 1)
  values, places = jax.lax.top_k(values, k)
  return values, jnp.take_along_axis(rows, places, 1)


class _Blocks:
  """A reiterable of (number of the first row, rows on every device)."""

  def __init__(self, gallery: np.ndarray, size: int) -> None:
    self._gallery, self._size = gallery, size
    streamed = isinstance(gallery, np.memmap)
    self._kept = None if streamed else list(self._read())

  def __iter__(self) -> Iterator:
    return iter(self._kept) if self._kept is not None else self._read()

  def _read(self):
    for start in range(0, len(self._gallery), self._size):
      part = np.asarray(self._gallery[start : start + self._size])
      missing = self._size - len(part)
      part = np.pad(part, ((0, missing), (0, 0)))  # one shape, one compilation
      yield np.int32(start), sharding.replicate(part)


class Reranker:
  """Compares each query with a few candidates by EMD.

  Create it only once, because it compiles for each number of candidates.
  """

  def __init__(self, solver=None) -> None:
    """Takes an EMD solver; None means the best solver for this platform."""

    def similarity(query, candidates):  # [n, c], [K, n, c] -> [K]
      return matching.logits(query[None], candidates, solver, 1.0)[0]

    self._compare = on_nodes(jax.vmap(similarity))

  def __call__(
    self,
    nodes: Nodes,
    rows: np.ndarray,
    candidates: np.ndarray,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda done: None,
  ) -> np.ndarray:
    """Computes the similarities of each query and its candidates.

    Args:
      nodes: the nodes of all images.
      rows: int [q], the rows of the queries.
      candidates: int [q, K], the rows of each query's candidates.
      batch_size: number of queries in one call; it changes no result.
      progress: called with the number of queries done.

    Returns:
      float32 [q, K], similarities of at most min(n, m) / n, which is 1 if all
      images have the same number of nodes.
    """
    batch_size = sharding.pad_to_devices(min(batch_size, len(rows)))
    parts = []
    for at in _batches(len(rows), batch_size):
      progress(int(at[0]))
      parts.append(_fetched(self._compare(nodes, (rows[at], candidates[at]))))
    return np.concatenate(parts)[: len(rows)]


def _batches(count: int, size: int) -> Iterator[np.ndarray]:
  """Yields this process's part of every batch, filled with the last item."""
  for start in range(0, count, size):
    yield np.minimum(start + sharding.local_indices(size), count - 1)


def _fetched(tree):
  """Gathers the results of all devices on every host."""
  return jax.tree.map(
    lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree
  )
