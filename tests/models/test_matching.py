"""The head agrees with the official one and with its docstring."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import GOLDEN

from deepemd_jax import emd
from deepemd_jax.models import matching, nodes

RECORDED = GOLDEN / "head_fcn.npz"
SOLVERS = [emd.NetworkSimplex(), emd.InteriorPoint()]
# These are compiled once for each shape, and the tests have few shapes.
match = jax.jit(matching.match, static_argnames=("weights", "metric"))
logits = jax.jit(matching.logits, static_argnames="solver")
weights_of = jax.jit(matching.cross_reference_weights)
LABELS = np.tile(np.arange(5), 3)  # in the recording, the class changes fastest


@pytest.fixture(scope="module")
def golden():
  return np.load(RECORDED)


@pytest.fixture(scope="module")
def episode(golden):
  """(query_nodes [15, 25, 640], class_nodes [5, 25, 640])."""
  maps = golden["feats_f16"].astype(np.float32).transpose(0, 2, 3, 1)
  encoded = nodes.from_map(jnp.asarray(maps))
  return encoded[5:], encoded[:5]


def test_weights(golden, episode):
  query, support = episode
  ours = [[weights_of(q, s) for s in support] for q in query]
  np.testing.assert_allclose(ours, golden["w1"], rtol=1e-4, atol=1e-4)
  ours = [[weights_of(s, q) for q in query] for s in support]
  np.testing.assert_allclose(ours, golden["w2"], rtol=1e-4, atol=1e-4)


def test_similarity_and_scaled_weights(golden, episode):
  problem = match(*episode)
  np.testing.assert_allclose(problem.similarity, golden["sim"], atol=1e-5)
  for ours in (problem.query_weights, problem.class_weights):
    np.testing.assert_allclose(ours.sum(-1), 25.0, rtol=1e-5)
  scaled = golden["w1"] * (25 / golden["w1"].sum(-1, keepdims=True))
  np.testing.assert_allclose(problem.query_weights, scaled, atol=1e-4)


@pytest.mark.parametrize(
  "solver",
  # In the short tests, `test_variants` tests the logits of InteriorPoint.
  [SOLVERS[0], pytest.param(SOLVERS[1], marks=pytest.mark.soak)],
  ids=lambda s: type(s).__name__,
)
def test_logits(golden, episode, solver):
  ours = logits(*episode, solver)
  np.testing.assert_allclose(ours, golden["logits_opencv"], atol=1e-4)
  np.testing.assert_allclose(ours, golden["qpth1e-06_logits"], atol=1e-4)


def gradients(episode, solver, **options):
  @jax.jit
  def run(query, support):
    def loss(query, support):
      scores = matching.logits(query, support, solver, **options)
      return optax.softmax_cross_entropy_with_integer_labels(
        scores, LABELS
      ).mean()

    return jax.grad(loss, (0, 1))(query, support)

  query, support = run(*episode)
  as_recorded = [
    np.asarray(g).reshape(-1, 5, 5, 640).transpose(0, 3, 1, 2)
    for g in (query, support)
  ]
  return {"gquery": as_recorded[0], "gproto": as_recorded[1]}


SIMPLEX, INTERIOR_POINT = SOLVERS
EXACT = "qpth1e-06", {"gradient": "exact"}, 5e-3
FLOW = "opencv", {"gradient": "flow"}, 2e-3


@pytest.mark.parametrize(
  "solver, recorded, options, tolerance",
  [
    (SIMPLEX, *EXACT),
    (SIMPLEX, *FLOW),
    # Little of this depends on the solver.
    pytest.param(INTERIOR_POINT, *EXACT, marks=pytest.mark.soak),
    pytest.param(INTERIOR_POINT, *FLOW, marks=pytest.mark.soak),
  ],
  ids=lambda x: type(x).__name__ if x in SOLVERS else None,
)
def test_loss_gradients(golden, episode, solver, recorded, options, tolerance):
  for name, ours in gradients(episode, solver, **options).items():
    theirs = golden[f"{recorded}_{name}"]
    error = np.linalg.norm(ours[:, ::8] - theirs) / np.linalg.norm(theirs)
    assert error < tolerance
    norms = np.linalg.norm(ours.reshape(len(ours), -1), axis=1)
    np.testing.assert_allclose(
      norms, golden[f"{recorded}_{name}_norm"], rtol=tolerance
    )


def test_the_exact_gradient_is_not_the_official_opencv_one(golden, episode):
  """So the test above shows that the weights get a gradient."""
  ours = gradients(episode, SOLVERS[0], gradient="exact")["gquery"][:, ::8]
  theirs = golden["opencv_gquery"]
  error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
  assert 0.02 < error < 0.2


def test_a_match_is_symmetric_when_both_sides_have_as_many_nodes(episode):
  query, support = episode
  there = logits(query, support)
  back = logits(support, query)
  np.testing.assert_allclose(there, back.T, atol=1e-4)


def test_an_image_matches_itself_best(episode):
  query, _ = episode
  scores = np.asarray(logits(query, query[:5]))[:5]
  np.testing.assert_allclose(np.diag(scores), matching.TEMPERATURE, rtol=1e-5)
  assert (scores.argmax(1) == np.arange(5)).all()


def test_equal_weights_are_one_a_node(episode):
  problem = match(*episode, weights="equal")
  assert (np.asarray(problem.query_weights) == 1).all()
  assert problem.query_weights.shape == (15, 5, 25)
  with pytest.raises(ValueError, match="cross_reference"):
    matching.match(*episode, weights="uniform")


def test_a_constant_node_has_finite_gradients():
  constant = jnp.ones((1, 4, 8))
  other = jnp.asarray(np.random.default_rng(0).random((2, 4, 8)), jnp.float32)
  slope = jax.jit(jax.grad(lambda q: matching.logits(q, other).sum()))
  gradient = slope(constant)
  assert np.isfinite(np.asarray(gradient)).all()


def test_chamfer_takes_the_most_alike(episode):
  query, support = (np.asarray(x) for x in episode)
  query, support = (x - x.mean(-1, keepdims=True) for x in (query[:3], support))
  query, support = (
    x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, support)
  )
  ours = np.asarray(matching.chamfer_logits(*episode))
  for i, j in np.ndindex(3, 5):
    cosine = query[i] @ support[j].T
    expected = (cosine.max(1).mean() + cosine.max(0).mean()) / 2 * 12.5
    np.testing.assert_allclose(ours[i, j], expected, rtol=1e-4)


def test_l2_is_the_squared_distance_of_centered_nodes(episode):
  query, support = (np.asarray(x, np.float64) for x in episode)
  query, support = (x - x.mean(-1, keepdims=True) for x in (query[:2], support))
  squares = ((query[:, None, :, None] - support[None, :, None]) ** 2).sum(-1)
  ours = match(*episode, metric="l2").similarity[:2]
  np.testing.assert_allclose(ours, 1 - squares, rtol=1e-4, atol=1e-4)
  same = match(episode[0], episode[0][:5], metric="l2").similarity
  assert same.max() <= 1
  with pytest.raises(ValueError, match="cosine"):
    matching.match(*episode, metric="L2")


def test_prototype_is_the_cosine_of_pooled_nodes(episode):
  query, support = (np.asarray(x).mean(1) for x in episode)
  query /= np.linalg.norm(query, axis=1, keepdims=True)
  support /= np.linalg.norm(support, axis=1, keepdims=True)
  np.testing.assert_allclose(
    matching.prototype_logits(*episode), 12.5 * query @ support.T, rtol=1e-4
  )


def test_cell_boxes_tile_the_image():
  boxes = nodes.cell_boxes(2, 3, 12)
  assert boxes.tolist()[0] == [0, 0, 4, 6]
  assert boxes.tolist()[4] == [4, 6, 8, 12]
