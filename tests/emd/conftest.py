import jax
import pytest


@pytest.fixture
def x64(request):
  """Computes in float64, unless the test's parameter says False."""
  # The flag is set for the whole process, because host callbacks run in other
  # threads. A context manager would have no effect there.
  jax.config.update("jax_enable_x64", getattr(request, "param", True))
  yield getattr(request, "param", True)
  jax.config.update("jax_enable_x64", False)
