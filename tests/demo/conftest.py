"""Fixtures: a run, a demo of it, and a server."""

import forms
import pytest
from recipes import tiny_run

from deepemd_jax.demo import server


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with 16 cells a map: more pairs than the page shows at first."""
  image = {"size": 64, "crop": "whole", "flip": True}
  return tiny_run(tmp_path_factory.mktemp("runs") / "run", image=image)


@pytest.fixture(scope="module")
def demo(run):
  return server.Demo(run, forms.LIMITS)


@pytest.fixture(scope="module")
def port(demo):
  with forms.serving(demo) as found:
    yield found
