"""A config becomes frozen settings; no other function takes a config."""

import ast
import dataclasses
import json

import pytest
import recipes
from paths import ROOT

from deepemd_jax import emd
from deepemd_jax.config import changes, defaults, resolve, stored
from deepemd_jax.data.episodes import EpisodeShape
from deepemd_jax.data.sources import open_source


def test_settings_are_frozen_all_the_way_down():
  made = recipes.settings()

  def check(value):
    if dataclasses.is_dataclass(value):
      assert value.__dataclass_params__.frozen
      for field in dataclasses.fields(value):
        check(getattr(value, field.name))
    assert not isinstance(value, list | set)

  check(made)
  with pytest.raises(dataclasses.FrozenInstanceError):
    made.seed = 1
  assert made == recipes.settings()
  assert made != recipes.settings(nodes={"ratio": 3.0})


def test_a_field_left_open_is_as_the_backbone_wants_it():
  open_ = {"image.size": 0, "image.mean": (), "image.std": ()}
  left, stated = recipes.settings(open_).view, recipes.settings().view
  assert left == stated  # the defaults are those of ResNet-12
  made = recipes.settings({"image.size": 42, "nodes.patches": 5})
  assert made.view.size == made.pretrain.image_size == 42
  assert made.data.image_size == 42
  assert made.view.test_patches == 5
  made = recipes.settings(
    {"image.pretrain_size": 64, "nodes.patches": 5, "nodes.test_patches": 7}
  )
  assert (made.pretrain.image_size, made.view.size) == (64, 84)
  assert (made.view.patches, made.view.test_patches) == (5, 7)


def test_training_episodes_are_the_tests_unless_said():
  made = recipes.settings(episode={"way": 7, "shot": 5, "query": 9})
  assert made.episode == EpisodeShape(way=7, shot=5, query=9)
  assert made.training_episode == EpisodeShape(way=7, shot=1, query=9)


SOLVERS = {
  "auto": None,
  "interior_point": emd.InteriorPoint(),
  "network_simplex": emd.NetworkSimplex(),
  "regularized_qp": emd.RegularizedQP("QP", 0.5),
  "sinkhorn": emd.Sinkhorn(0.3),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_has_its_own_settings(name):
  section = {"solver": name, "form": "QP", "l2_strength": 0.5, "epsilon": 0.3}
  made = recipes.config(emd=section, evaluate={"epsilon": 0.07})
  heads = resolve.resolve(made).heads
  assert heads.solver == SOLVERS[name]
  assert heads.sinkhorn == emd.Sinkhorn(0.07)  # only for the head
  assert heads.regularized_qp == SOLVERS["regularized_qp"]


@pytest.mark.parametrize(
  ("name", "protocol"),
  [
    ("glyph_clutter", "glyph_clutter:64"),
    ("folder", "folder:160"),
    ("folder:84", "folder:84"),
    ("folder:original", "folder:original"),
    ("cub", "cub:160"),
    ("cub:84", "cub:84"),
    ("cub:original", "cub:original"),
    ("fc100", "fc100:32"),
    ("tieredimagenet", "tieredimagenet:original"),
  ],
)
def test_a_name_is_a_protocol(name, protocol):
  made = recipes.settings(data={"name": name, "folder": "images"})
  source = open_source(made.data)
  assert source.protocol == protocol
  assert source.title and "\n" not in source.title


def test_copies_of_a_folder_grow_with_the_images_that_are_seen():
  for size, side in ((84, 160), (42, 80), (32, 61)):
    made = recipes.settings(
      image={"size": size}, data={"name": "folder", "folder": "images"}
    )
    assert open_source(made.data).side == side


def test_what_an_earlier_run_was_trained_on_is_read_from_its_config(tmp_path):
  """This run may test other data. Fields that the file lacks are this run's."""
  before = recipes.config(
    image={"size": 42},
    data={"name": "folder:61", "folder": "a", "fractions": (0.5, 0.25, 0.25)},
  )
  fields = json.loads(before.to_json_best_effort())
  now = recipes.settings(data={"name": "cub", "workers": 3}).data
  assert resolve.stored_data(now, fields) == resolve.resolve(before).data
  del fields["data"]["workers"], fields["data"]["fractions"]
  read = resolve.stored_data(now, fields)
  assert read.workers == 3 and read.fractions == now.fractions


def test_a_stored_config_is_the_one_that_was_written(tmp_path):
  """Its settings, and the sections that new images need, are the same."""
  for made in (
    recipes.config(
      {"seed": 3, "image.mean": (), "image.size": 0, "nodes.pyramid": (2, 1)}
    ),
    recipes.config({"nodes.kind": "grid", "emd.solver": "sinkhorn"}),
  ):
    path = tmp_path / "config.json"
    path.write_text(made.to_json_best_effort())
    read = stored.read(path)
    for section in stored.SECTIONS:
      assert read[section] == made[section], section
    assert resolve.resolve(read) == resolve.resolve(made)


def test_a_file_that_says_nothing_has_the_defaults(tmp_path):
  path = tmp_path / "config.json"
  path.write_text("{}")
  assert stored.read(path).to_dict() == defaults.get_config().to_dict()


def test_a_change_changes_one_thing():
  made = recipes.settings()
  shots = changes.changed(made, "7-shot")
  assert shots.episode == dataclasses.replace(made.episode, shot=7)
  assert dataclasses.replace(shots, episode=made.episode) == made
  nodes = changes.changed(made, "grid")
  assert nodes.view == dataclasses.replace(made.view, kind="grid")
  assert dataclasses.replace(nodes, view=made.view) == made


def functions(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
      yield node


@pytest.mark.parametrize(
  "part", ["training", "evaluation", "models", "inference"]
)
def test_no_function_takes_a_config(part):
  """Stages and the functions below them get frozen settings."""
  taken = [
    f"{path.relative_to(ROOT)}:{node.lineno}"
    for path in sorted((ROOT / "deepemd_jax" / part).rglob("*.py"))
    for node in functions(path)
    for argument in ast.walk(node.args)
    if isinstance(argument, ast.arg) and argument.arg == "config"
  ]
  assert not taken
