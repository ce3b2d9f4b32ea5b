"""The images of a gallery that are most like a query: first all, then a few.

All are compared by pooled descriptors, exactly: a matrix product and a top-K,
block by block of the gallery. The few that come first are compared by EMD, all
those of a batch of queries in one call. Queries are split over the devices,
which never wait for each other; the gallery, or the block of it at hand, is on
every device.
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

_HIGHEST = jax.lax.Precision.HIGHEST  # TF32 would swap neighbors in rank


def describe(nodes, out: np.ndarray, block: int = 4096) -> np.ndarray:
  """Pooled nodes of unit length: [N, n, c] -> float32 [N, c], written to `out`.

  Args:
    nodes: a JAX or NumPy array; a memory map is read block by block.
    out: an array of that shape, which may be a memory map too.
    block: images at a time.
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
  """For each query the k most similar of all other images. Exact.

  Args:
    gallery: [N, c] of unit length. An array is put on the devices whole; of a
      memory map no more than two blocks are there at a time.
    rows: int [q], which images of the gallery are the queries.
    k: below N.
    batch_size: queries in one device call.
    block: images of the gallery in one device call. Neither changes what is
      found, but for images whose similarities differ in the last digit.
    progress: called with the number of queries done.

  Returns:
    Rows of the gallery, int32 [q, k], most similar first, of equals the first
    in the gallery; and their cosine, float32 [q, k].
  """
  block = min(block, len(gallery))
  blocks = _Blocks(gallery, block)
  # Neither so many that most of a batch is filling, nor of different shapes.
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
  """The best so far and those of one block: the best of both."""
  similarity = jnp.matmul(queries, part.T, precision=_HIGHEST)
  rows = start + jnp.arange(len(part), dtype=jnp.int32)
  # The query itself, and what fills up the last block.
  out = (rows == own[:, None]) | (rows >= count)
  similarity = jnp.where(out, -jnp.inf, similarity)
  k = best[0].shape[1]
  values, places = jax.lax.top_k(similarity, min(k, len(part)))
  # Those found before stand in front: equals keep the gallery's order.
  values = jnp.concatenate([best[0], values], 1)
  rows = jnp.concatenate([best[1], rows[places]], 1)
  values, places = jax.lax.top_k(values, k)
  return values, jnp.take_along_axis(rows, places, 1)


class _Blocks:
  """(number of the first row, rows on every device), as often as asked for."""

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
      part = np.pad(part, ((0, missing), (0, 0)))  # one shape compiles once
      yield np.int32(start), sharding.replicate(part)


class Reranker:
  """Compares queries with a few candidates each, by EMD.

  Make it once: it compiles for each number of candidates.
  """

  def __init__(self, solver=None) -> None:
    """Makes it with an EMD solver; None is the best for this platform."""

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
    """Similarities of each query's candidates.

    Args:
      nodes: of all images.
      rows: int [q], the queries.
      candidates: int [q, K].
      batch_size: queries in one call, which changes no result.
      progress: called with the number of queries done.

    Returns:
      float32 [q, K], at most min(n, m) / n, which is 1 if all images have as
      many nodes.
    """
    batch_size = sharding.pad_to_devices(min(batch_size, len(rows)))
    parts = []
    for at in _batches(len(rows), batch_size):
      progress(int(at[0]))
      parts.append(_fetched(self._compare(nodes, (rows[at], candidates[at]))))
    return np.concatenate(parts)[: len(rows)]


def _batches(count: int, size: int) -> Iterator[np.ndarray]:
  """This process's part of every batch; the last one repeats the last."""
  for start in range(0, count, size):
    yield np.minimum(start + sharding.local_indices(size), count - 1)


def _fetched(tree):
  """What all devices have found, on every host."""
  return jax.tree.map(
    lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree
  )
