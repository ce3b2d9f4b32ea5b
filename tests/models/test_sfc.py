"""The structured fully connected layer agrees with the official one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDEN

from deepemd_jax import emd
from deepemd_jax.models import matching, sfc

RECORDED = np.load(GOLDEN / "sfc.npz")
SOLVERS = [emd.NetworkSimplex(), emd.InteriorPoint()]
logits = jax.jit(matching.logits, static_argnames="solver")
fit = jax.jit(
  sfc.fit, static_argnames=("learning_rate", "batch_size", "solver", "gradient")
)


def episode(prefix=""):
  """Returns the recorded support [way, shot, n, c] and query [q, n, c]."""
  support, query = (
    RECORDED[f"{prefix}{k}_f16"].astype(np.float32)
    for k in ("support", "query")
  )
  flat = lambda x: x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)  # noqa: E731
  support = flat(support).reshape(5, 5, -1, 640).swapaxes(0, 1)
  return jnp.asarray(support), jnp.asarray(flat(query))


def test_it_starts_at_the_mean():
  support, query = episode()
  ours = logits(query, support.mean(1))
  np.testing.assert_allclose(ours, RECORDED["logits_mean_proto"], atol=1e-4)
  nothing = fit(support, order=jnp.zeros((0, 25), int))
  np.testing.assert_allclose(nothing, support.mean(1), atol=1e-6)


def compare(epochs, rate, tolerance, solver, prefix=""):
  support, query = episode(prefix)
  order = jnp.asarray(RECORDED["perms"][:epochs])
  ours = fit(support, order=order, learning_rate=rate, solver=solver)
  name = f"{prefix}lr{rate:g}_step{epochs}"
  np.testing.assert_allclose(
    logits(query, ours, solver),
    RECORDED[f"{name}_logits"],
    atol=tolerance,
  )
  if f"{name}_sfc_ch8" in RECORDED:
    theirs = RECORDED[f"{name}_sfc_ch8"]
    ours = np.moveaxis(np.asarray(ours)[..., ::8], -1, 1).reshape(theirs.shape)
    # Only the norm is compared: OpenCV stops at near ties, which changes single
    # nodes.
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


@pytest.mark.parametrize(("epochs", "rate"), [(1, 100.0), (5, 100.0), (5, 0.1)])
def test_few_epochs(epochs, rate):
  compare(epochs, rate, 1e-3, SOLVERS[0])


@pytest.mark.soak
@pytest.mark.parametrize(("rate", "tolerance"), [(100.0, 2e-2), (0.1, 1e-3)])
def test_a_hundred_epochs(rate, tolerance):
  """Over 700 steps, a rounding error of 1e-6 grows to 2e-3 in the logits."""
  compare(100, rate, tolerance, SOLVERS[0])


@pytest.mark.parametrize(
  "solver", [SOLVERS[0], pytest.param(SOLVERS[1], marks=pytest.mark.soak)]
)
def test_other_nodes(solver):
  compare(3, 100.0, 1e-3, solver, "patch_")


def test_episodes_side_by_side():
  support, _ = episode()
  both = jnp.stack([support, support[::-1]])
  order = jnp.asarray(RECORDED["perms"][:2])

  def one(support):
    return sfc.fit(support, order=order)

  together = jax.jit(jax.vmap(one))(both)
  for i in range(2):
    np.testing.assert_allclose(
      together[i], fit(both[i], order=order), atol=1e-4
    )


def test_the_exact_gradient_is_another_one():
  support, query = episode()
  order = jnp.asarray(RECORDED["perms"][:5])
  flow, exact = (
    logits(query, fit(support, order=order, gradient=gradient))
    for gradient in ("flow", "exact")
  )
  assert 1e-3 < np.abs(flow - exact).max() < 2


def test_orders():
  order = np.asarray(sfc.random_order(jax.random.key(0), 25, 7))
  assert order.shape == (7, 25)
  assert (np.sort(order, 1) == np.arange(25)).all()
  assert len({tuple(row) for row in order}) == 7
  with pytest.raises(ValueError, match="25"):
    sfc.fit(jnp.zeros((5, 5, 2, 3)), order=jnp.zeros((1, 24), int))
