"""Search and re-ranking agree with a slow version, for any blocks."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepemd_jax.evaluation import nearest
from deepemd_jax.evaluation.features import DeviceNodes, HostNodes
from deepemd_jax.models import matching

COUNT = 23


@pytest.fixture(scope="module")
def nodes():
  rng = np.random.default_rng(0)
  return rng.standard_normal((COUNT, 4, 6)).astype(np.float32)


def on_disk(array):
  with tempfile.TemporaryFile() as file:
    kept = np.memmap(file, array.dtype, "w+", shape=array.shape)
  kept[:] = array
  return kept


@pytest.fixture(scope="module")
def gallery(nodes):
  out = np.empty((COUNT, 6), np.float32)
  return nearest.describe(nodes, out, block=5)


def obvious(gallery, row, k):
  """Returns all other items in order of falling cosine."""
  cosine = gallery @ gallery[row]
  order = [i for i in np.argsort(-cosine, kind="stable") if i != row]
  return np.array(order[:k]), cosine[order[:k]]


def test_descriptors_are_the_prototypes_of_one_image(nodes, gallery):
  expected = matching.prototype_logits(*[jnp.asarray(nodes)] * 2, 1.0)
  np.testing.assert_allclose(gallery @ gallery.T, expected, atol=1e-6)


@pytest.mark.parametrize("keep", [np.asarray, on_disk])
@pytest.mark.parametrize(
  ("k", "block", "batch"),
  [
    *((1, 5, 4), (9, 5, 4), (COUNT - 1, 5, 4), (9, 99, 99), (22, 23, 23)),
    pytest.param(9, 8, 3, marks=pytest.mark.soak),
    pytest.param(1, 99, 99, marks=pytest.mark.soak),
  ],
)
def test_the_most_similar_are_found(gallery, keep, block, batch, k):
  rows = np.array([0, 22, 7, 7, 3, 11, 12])
  found, cosine = nearest.top(
    keep(gallery), rows, k, batch_size=batch, block=block
  )
  for i, row in enumerate(rows):
    expected, values = obvious(gallery, row, k)
    np.testing.assert_array_equal(found[i], expected)
    np.testing.assert_allclose(cosine[i], values, atol=1e-6)


def test_of_equals_the_first_comes_first(gallery):
  twice = np.concatenate([gallery[:6]] * 3)
  for block in (4, 18):
    found, _ = nearest.top(twice, np.arange(18), 2, block=block)
    expected = [
      [i for i in (r % 6, r % 6 + 6, r % 6 + 12) if i != r] for r in range(18)
    ]
    np.testing.assert_array_equal(found, expected)


def test_re_ranking_is_the_emd_of_each_pair(nodes):
  rows = np.array([4, 0, 9, 22, 17])
  rng = np.random.default_rng(1)
  candidates = np.stack([rng.permutation(COUNT)[:6] for _ in rows])
  each = jnp.asarray(nodes)[:, None]
  one = jax.jit(lambda query, other: matching.logits(query, other, None, 1.0))
  expected = [
    [float(one(each[r], each[c])[0, 0]) for c in row]
    for r, row in zip(rows, candidates, strict=True)
  ]
  rerank = nearest.Reranker()
  stored = DeviceNodes(jnp.asarray(nodes)), HostNodes(on_disk(nodes))
  for kept, sizes in zip(stored, ((2, 16), (5,)), strict=True):
    for batch in sizes:
      found = rerank(kept, rows, candidates, batch)
      np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_shape_compiles_once(nodes, gallery):
  rerank = nearest.Reranker()
  rows, candidates = np.arange(7), np.tile(np.arange(7, 10), (7, 1))
  kept = DeviceNodes(jnp.asarray(nodes))
  rerank(kept, rows, candidates, 3)
  nearest.top(gallery, rows, 4, batch_size=3, block=5)
  with jax.log_compiles(), _Compiled() as compiled:
    rerank(kept, rows, candidates, 3)
    nearest.top(gallery, rows, 4, batch_size=3, block=5)
  assert not compiled.lines, compiled.lines


class _Compiled:
  """Collects the lines in which JAX says that it compiles."""

  def __enter__(self):
    import logging

    self.lines = []
    self._handler = logging.Handler()
    self._handler.emit = lambda record: self.lines.append(record.getMessage())
    self._logger = logging.getLogger("jax")
    self._logger.addHandler(self._handler)
    return self

  def __exit__(self, *unused):
    self._logger.removeHandler(self._handler)
    self.lines = [line for line in self.lines if "ompiling" in line]
