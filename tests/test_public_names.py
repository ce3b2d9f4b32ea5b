"""The public names exist and keep their arguments.

Functions that take long to compile are only traced. Other tests check their
numbers.
"""

import functools
import inspect
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from paths import ROOT
from recipes import recipe_state_dict

import deepemd_jax
from deepemd_jax import FewShotClassifier, convert, data, emd, models
from deepemd_jax.data import views
from deepemd_jax.models import matching, nodes, resnet, sfc

COST = np.array([[0.0, 1.0], [1.0, 0.5]], np.float32)
WEIGHTS = np.array([0.5, 0.5], np.float32)
NODES = jax.random.uniform(jax.random.key(0), (3, 2, 4))


def test_each_public_name_is_listed():
  assert set(deepemd_jax.__all__) <= set(dir(deepemd_jax))
  for name in deepemd_jax.__all__:
    assert getattr(deepemd_jax, name) is not None
  assert deepemd_jax.DeepEMD is models.DeepEMD
  with pytest.raises(AttributeError, match="'nothing'"):
    deepemd_jax.nothing  # noqa: B018


def test_the_emds_modules_need_no_import_of_their_own():
  """As the pages write them, before anything else is used."""
  for call in ("api.default_solver()", "solvers.make_solver('sinkhorn')"):
    program = f"from deepemd_jax import emd; emd.{call}"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_importing_the_package_loads_nothing():
  code = "import sys; before = set(sys.modules); import deepemd_jax; "
  code += "print({m.split('.')[0] for m in set(sys.modules) - before})"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
  )
  assert "jax'" not in done.stdout.replace("deepemd_jax'", ""), done.stdout


@pytest.mark.parametrize(
  "name", ["InteriorPoint", "NetworkSimplex", "RegularizedQP", "Sinkhorn"]
)
def test_a_solver_solves(name):
  solve = functools.partial(emd.solve, solver=getattr(emd, name)())
  assert jax.eval_shape(solve, COST, WEIGHTS, WEIGHTS).flow.shape == (2, 2)


def test_the_distance_of_two_weighted_sets():
  assert jax.eval_shape(emd.distance, COST, WEIGHTS, WEIGHTS).shape == ()
  both = jax.eval_shape(emd.distance_and_flow, COST, WEIGHTS, WEIGHTS)
  assert [x.shape for x in both] == [(), (2, 2)]


def test_the_wasserstein_distance_of_two_clouds():
  assert jax.eval_shape(emd.wasserstein, NODES[0], NODES[1]).shape == ()
  parameters = inspect.signature(emd.wasserstein).parameters
  assert list(parameters) == ["x", "y", "a", "b", "p", "solver"]
  assert parameters["p"].default == 2


def test_the_distances_of_all_pairs():
  assert emd.pairwise(list(NODES)).shape == (3, 3)
  parameters = list(inspect.signature(emd.pairwise).parameters)
  assert parameters[:4] == ["xs", "ys", "a", "b"]
  assert parameters[4:] == ["p", "cost", "solver", "progress"]


def test_the_weights_of_nodes():
  weights = matching.cross_reference_weights(NODES[0], NODES[1])
  assert weights.shape == (2,)


def test_the_scores_of_queries():
  score = functools.partial(matching.logits, solver=None, temperature=12.5)
  assert jax.eval_shape(score, NODES, NODES[:2]).shape == (3, 2)


def test_the_structured_classifier():
  fit = functools.partial(
    sfc.fit,
    order=jnp.array([[1, 0]]),
    learning_rate=0.1,
    batch_size=2,
    solver=emd.NetworkSimplex(),
    temperature=12.5,
  )
  assert jax.eval_shape(fit, NODES[:2, None]).shape == (2, 2, 4)


def test_nodes_of_a_feature_map():
  assert nodes.pyramid(NODES[:, None], ()).shape == (3, 2, 4)


def test_a_backbone_from_the_official_code_encodes():
  variables = convert.from_torch(recipe_state_dict())
  images = jax.ShapeDtypeStruct((2, 16, 16, 3), np.float32)
  maps = jax.eval_shape(resnet.encode, variables, images)
  assert maps.shape == (2, 1, 1, 640)


def test_crops_are_cut_and_resized():
  images = np.zeros((2, 8, 8, 3), np.uint8)
  boxes = np.array([[0, 0, 4, 4], [2, 2, 8, 8]], np.float32)
  flips = np.array([False, True])
  assert data.views is views
  assert views.crop_resize(images, boxes, flips, size=4).shape == (2, 4, 4, 3)
  assert inspect.signature(views.crop_resize).parameters["size"].default == 84


def test_a_module_scores_an_episode():
  def scores(support, query):
    return models.DeepEMD(rngs=nnx.Rngs(0))(support, query)

  support = jax.ShapeDtypeStruct((2, 1, 32, 32, 3), np.float32)
  query = jax.ShapeDtypeStruct((2, 3, 32, 32, 3), np.float32)
  assert nnx.eval_shape(scores, support, query).shape == (2, 3, 2)


def test_a_classifier_is_made_from_a_run():
  assert {"fit", "predict"} <= set(dir(FewShotClassifier))


def test_the_version_is_that_of_the_project_file():
  import deepemd_jax

  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert deepemd_jax.__version__ == project["version"]
