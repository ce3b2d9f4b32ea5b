import jax
import pytest


@pytest.fixture
def x64(request):
  """Computes in float64, unless the test's parameter says False."""
  # For the whole process: host callbacks run in threads of their own, which a
  # context manager would not reach.
  jax.config.update("jax_enable_x64", getattr(request, "param", True))
  yield getattr(request, "param", True)
  jax.config.update("jax_enable_x64", False)
