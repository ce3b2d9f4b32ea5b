"""With Pyramid, Grid and Sampling nodes, the head agrees with the official."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import GOLDEN

from deepemd_jax import emd
from deepemd_jax.models import matching, nodes

VARIANTS = ("pyr", "patch", "sampling", "rect")
LABELS = np.tile(np.arange(5), 3)  # in the recording, the class changes fastest
SOLVERS = [emd.NetworkSimplex(), emd.InteriorPoint()]
logits = jax.jit(matching.logits, static_argnames="solver")
match = jax.jit(matching.match)
# InteriorPoint is tested where it compiles fast. `make soak` tests all cases.
CASES = [(variant, SOLVERS[0]) for variant in VARIANTS]
CASES += [("rect", SOLVERS[1])]
CASES += [
  pytest.param(variant, SOLVERS[1], marks=pytest.mark.soak)
  for variant in VARIANTS[:3]
]


@pytest.fixture(scope="module")
def golden():
  return np.load(GOLDEN / "head_variants.npz")


def encoded(golden, variant):
  """Returns (queries, classes), for which gradients were recorded."""
  if variant == "pyr":
    features = np.load(GOLDEN / "head_fcn.npz")["feats_f16"]
    maps = features.astype(np.float32).transpose(0, 2, 3, 1)
    return jnp.asarray(maps[5:]), jnp.asarray(maps[:5])

  def crops(name):
    features = golden[f"{name}_feats_f16"].astype(np.float32)
    return jnp.asarray(features[..., 0].transpose(0, 2, 1))

  if variant == "rect":  # 13 nodes in a query, 9 in a class
    return crops("patch")[5:], crops("sampling")[:5]
  return crops(variant)[5:], crops(variant)[:5]


def as_nodes(variant, x):
  return nodes.pyramid(x, (2, 3)) if variant == "pyr" else x


def test_the_pyramid(golden):
  query, support = (
    np.asarray(as_nodes("pyr", x)) for x in encoded(golden, "pyr")
  )
  assert query.shape == (15, 38, 640)
  np.testing.assert_allclose(
    support[..., 0], golden["pyr_pyr_proto_ch0"][:, 0], atol=1e-6
  )
  np.testing.assert_allclose(
    query[..., 639], golden["pyr_pyr_query_ch639"][:, 0], atol=1e-6
  )


def test_a_pyramid_that_does_not_divide_the_map():
  """Adaptive pooling cuts 7 rows into 3 cells: 0-2, 2-4 and 4-6."""
  maps = jnp.arange(7.0)[None, :, None, None] * jnp.ones((1, 7, 2, 1))
  pooled = nodes.pyramid(maps, (3,))[0, :9].reshape(3, 3)
  np.testing.assert_allclose(pooled[:, 0], [1.0, 3.0, 5.0])
  assert nodes.pyramid(maps, (2, 1)).shape == (1, 4 + 1 + 14, 1)


def test_a_map_is_averaged_to_fewer_cells():
  """The mean is by area: of 5 places, each of 2 cells gets 2.5."""
  maps = np.arange(10.0).reshape(1, 5, 2, 1)
  found = nodes.averaged(maps, 2)
  assert found.shape == (1, 2, 2, 1)
  np.testing.assert_allclose(found[0, 0, :, 0], [(0 + 2 + 4 / 2) / 2.5, 2.6])
  np.testing.assert_allclose(found.mean((1, 2)), maps.mean((1, 2)))
  # If the number of cells is 0 or at least the side, the map does not change.
  for cells in (5, 7, 0):
    np.testing.assert_array_equal(nodes.averaged(maps, cells), maps)
  square = np.arange(16.0).reshape(1, 4, 4, 1)
  np.testing.assert_allclose(
    nodes.averaged(square, 2)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]]
  )


def test_crops_are_pooled_one_node_each():
  maps = np.random.default_rng(0).random((2, 13, 5, 5, 8))
  expected = maps.reshape(2, 13, 25, 8).mean(2)
  np.testing.assert_allclose(nodes.from_crops(maps), expected, rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_and_similarity(golden, variant):
  query, support = (as_nodes(variant, x) for x in encoded(golden, variant))
  get = lambda k: golden[f"{variant}_{k}"]  # noqa: E731
  problem = match(query, support)
  np.testing.assert_allclose(problem.similarity, get("sim"), atol=1e-4)
  w1, w2 = (
    w * (w.shape[-1] / w.sum(-1, keepdims=True)) for w in map(get, ("w1", "w2"))
  )
  np.testing.assert_allclose(problem.query_weights, w1, atol=1e-4)
  np.testing.assert_allclose(
    problem.class_weights, w2.swapaxes(0, 1), atol=1e-4
  )


@pytest.mark.parametrize(
  ("variant", "solver"),
  CASES,
)
def test_logits(golden, variant, solver):
  query, support = (as_nodes(variant, x) for x in encoded(golden, variant))
  ours = logits(query, support, solver)
  np.testing.assert_allclose(
    ours, golden[f"{variant}_logits_opencv"], atol=1e-4
  )


# `rect` is not compared, because OpenCV's optimal vertex differs.
FLOW = {"pyr": 2e-3, "patch": 1e-4, "sampling": 1e-4}


@pytest.mark.parametrize(("variant", "solver"), CASES)
def test_loss_gradients(golden, variant, solver):
  """Exact gradients agree with qpth; those of a constant flow, with OpenCV."""
  query, support = encoded(golden, variant)
  get = lambda k: golden[f"{variant}_{k}"]  # noqa: E731

  def gradients(count, gradient):
    def loss(query, support):
      scores = matching.logits(
        *(as_nodes(variant, x) for x in (query, support)),
        solver,
        gradient=gradient,
      )
      labels = LABELS[:count]
      return optax.softmax_cross_entropy_with_integer_labels(
        scores, labels
      ).mean()

    return jax.jit(jax.grad(loss, (0, 1)))(query[:count], support)

  cases = [("qpth1e-06", "exact", 5e-3)]
  if variant in FLOW:
    cases.append(("opencv", "flow", FLOW[variant]))
  for recorded, gradient, tolerance in cases:
    count = len(get(f"{recorded}_gquery"))
    ours = gradients(count, gradient)
    for x, name in zip(ours, ("gquery", "gproto"), strict=True):
      theirs = get(f"{recorded}_{name}")
      x = np.moveaxis(np.asarray(x)[..., ::8], -1, 1).reshape(theirs.shape)
      error = np.linalg.norm(x - theirs) / np.linalg.norm(theirs)
      assert error < tolerance, (recorded, name)
