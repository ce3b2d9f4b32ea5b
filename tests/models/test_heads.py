"""Heads agree with slow versions: one query, one class, one plan at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from deepemd_jax import emd
from deepemd_jax.models import heads, matching, sfc

WAY, QUERIES, NODES, CHANNELS = 3, 4, 3, 5
EPOCHS, SEED = 2, 7
TEMPERATURE = 9.0
SETTINGS = heads.HeadSettings(
  temperature=TEMPERATURE,
  sfc=heads.SfcSettings(epochs=EPOCHS, learning_rate=50.0, batch_size=2),
  sinkhorn=emd.Sinkhorn(0.01),
  regularized_qp=emd.RegularizedQP(),
)
OPTIONS = {"temperature": TEMPERATURE}


def episode(shot):
  """Draws query nodes [q, n, c] and support nodes [way, shot, n, c]."""
  rng = np.random.default_rng(shot)
  shapes = (QUERIES, NODES, CHANNELS), (WAY, shot, NODES, CHANNELS)
  return tuple(rng.random(shape).astype(np.float32) for shape in shapes)


def exact_value(cost, a, b):
  """Returns the cost of the cheapest plan, by a linear program."""
  n, m = cost.shape
  rows = np.kron(np.eye(n), np.ones(m))
  columns = np.kron(np.ones(n), np.eye(m))
  done = scipy.optimize.linprog(
    cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=[*a, *b]
  )
  assert done.success
  return done.fun


def value_of(solver):
  """Returns a function that solves a single pair with a solver."""
  return jax.jit(functools.partial(emd.distance, solver=solver))


def pair_logit(query, of_class, *, weights="", metric="", value=exact_value):
  """Computes DeepEMD's logit of one query and one class, as in the paper."""
  query, of_class = (np.asarray(x, np.float64) for x in (query, of_class))
  centered = [x - x.mean(1, keepdims=True) for x in (query, of_class)]
  if metric == "l2":
    differences = centered[0][:, None] - centered[1][None]
    cost = (differences**2).sum(-1)
  else:
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in centered]
    cost = 1 - unit[0] @ unit[1].T
  masses = []
  for own, other in ((query, of_class), (of_class, query)):
    mass = np.maximum(own @ other.mean(0), 0) + 1e-3
    mass = np.ones(len(own)) if weights == "equal" else mass
    masses.append(mass * len(own) / mass.sum())
  return TEMPERATURE / len(query) * (len(query) - value(cost, *masses))


def each_pair(logit, query, classes):
  return np.array([[logit(q, c) for c in classes] for q in query])


def fitted(support, **options):
  """Returns the class nodes of a head with several shots."""
  way, shot = support.shape[:2]
  if shot == 1:
    return support[:, 0]
  order = sfc.random_order(jax.random.key(SEED), way * shot, EPOCHS)
  rate = SETTINGS.sfc.learning_rate
  return sfc.fit(
    jnp.asarray(support),
    order=order,
    learning_rate=rate,
    batch_size=SETTINGS.sfc.batch_size,
    **OPTIONS,
    **options,
  )


def deepemd(query, support, value=exact_value, solver=None, **options):
  classes = fitted(support, solver=solver, **options)
  logit = functools.partial(pair_logit, value=value, **options)
  return each_pair(logit, query, classes)


def deepemd_pooled(query, support):
  share = TEMPERATURE / matching.TEMPERATURE / 2
  return deepemd(query, support) + share * prototype(query, support)


def deepemd_nearest(query, support):
  shots = [
    each_pair(pair_logit, query, shot) for shot in support.swapaxes(0, 1)
  ]
  return np.max(shots, axis=0)


def prototype(query, support):
  def cosine(q, c):
    q, c = q.mean(0), c.mean(0)
    return matching.TEMPERATURE * q @ c / np.linalg.norm(q) / np.linalg.norm(c)

  return each_pair(cosine, query, support.mean(1))


def chamfer(query, support):
  def nearest(q, c):
    q, c = (x - x.mean(1, keepdims=True) for x in (q, c))
    q, c = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, c))
    cosine = q @ c.T
    both = cosine.max(1).mean() + cosine.max(0).mean()
    return matching.TEMPERATURE / 2 * both

  return each_pair(nearest, query, support.mean(1))


def logistic_regression(query, support):
  """Fits the weights by another method."""
  way, shot = support.shape[:2]
  query, seen = (
    x / np.linalg.norm(x, axis=-1, keepdims=True)
    for x in (query.mean(1), support.mean(2).reshape(way * shot, -1))
  )
  wanted = np.repeat(np.arange(way), shot)

  def loss(weights):
    logits = seen @ weights.reshape(-1, way)
    right = logits[np.arange(way * shot), wanted]
    entropy = scipy.special.logsumexp(logits, axis=1) - right
    return entropy.sum() + (weights**2).sum() / 2

  start = np.zeros(seen.shape[1] * way)
  found = scipy.optimize.minimize(loss, start, tol=1e-10).x
  return query @ found.reshape(-1, way)


OBVIOUS = {
  "deepemd": deepemd,
  "deepemd_equal_weights": functools.partial(deepemd, weights="equal"),
  "deepemd_l2": functools.partial(deepemd, metric="l2"),
  "deepemd_sinkhorn": functools.partial(
    deepemd, value=value_of(SETTINGS.sinkhorn), solver=SETTINGS.sinkhorn
  ),
  "deepemd_qp": functools.partial(
    deepemd,
    value=value_of(SETTINGS.regularized_qp),
    solver=SETTINGS.regularized_qp,
  ),
  "deepemd_mean": lambda query, support: each_pair(
    pair_logit, query, support.mean(1)
  ),
  "deepemd_pooled": deepemd_pooled,
  "deepemd_nearest": deepemd_nearest,
  "prototype": prototype,
  "logistic_regression": logistic_regression,
  "chamfer": chamfer,
}


SMOOTHED = ("deepemd_sinkhorn", "deepemd_qp")


def test_every_head_has_a_row_here_and_a_title():
  assert OBVIOUS.keys() == heads.HEADS.keys()
  titles = [heads.title(name, shot) for name in heads.HEADS for shot in (1, 5)]
  assert all(titles)
  assert heads.title("deepemd", 1) == "DeepEMD"
  assert heads.title("deepemd", 5) == "DeepEMD, SFC"
  shown = {heads.title(name) for name in heads.HEADS}
  assert len(shown) == len(heads.HEADS)
  for shot in (1, 5):
    assert heads.usual(shot)[0] == "deepemd"
    assert set(heads.usual(shot)) <= heads.HEADS.keys()


# The smoothed heads differ from deepemd only in their solver. One shot is
# enough to test them.
CASES = [(name, 1) for name in heads.HEADS]
CASES += [(name, 2) for name in heads.HEADS if name not in SMOOTHED]


@pytest.mark.parametrize(("name", "shot"), CASES)
def test_a_head_is_what_it_says(name, shot):
  query, support = (jnp.asarray(x) for x in episode(shot))
  score = jax.jit(heads.bind(name, SETTINGS))
  logits = score(query, support, jax.random.key(SEED))
  assert logits.shape == (QUERIES, WAY)
  expected = OBVIOUS[name](*episode(shot))
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SMOOTHED)
def test_smoothed_solvers_are_near_the_exact_one(name):
  query, support = (jnp.asarray(x) for x in episode(1))
  exact, other = (
    np.asarray(jax.jit(heads.bind(head, SETTINGS))(query, support, None))
    for head in ("deepemd", name)
  )
  assert 0 < np.abs(other - exact).max() < 0.5
