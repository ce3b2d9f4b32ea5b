"""results.json and the table have the results in a fixed format."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import recipes

from deepemd_jax.checkpoints.pretrained import BestEncoder
from deepemd_jax.data.episodes import EpisodeShape
from deepemd_jax.evaluation import results
from deepemd_jax.evaluation.protocol import Protocol


def measured(shot=1, nodes=None, **heads):
  """Makes results of an episode test from the accuracies of heads."""
  accuracy = {
    name: results.Estimate(mean, 0.25 + shot) for name, mean in heads.items()
  }
  return results.EpisodeResults(
    accuracy=accuracy,
    paired={
      f"deepemd - {name}": results.Estimate(heads["deepemd"] - mean, 0.125)
      for name, mean in heads.items()
      if name != "deepemd"
    },
    episodes=600,
    timing=results.Timing(
      1.25, 48, dict.fromkeys(heads, 61.5), dict.fromkeys(heads, 7.25)
    ),
    shape=EpisodeShape(5, shot, 15),
    nodes=nodes or {"kind": "fcn", "pyramid": [2, 1]},
  )


@pytest.fixture
def found():
  heads = {"deepemd": 61.234, "deepemd_equal_weights": 59.5, "prototype": 55.0}
  more = {"deepemd": 77.0, "deepemd_mean": 76.0, "prototype": 71.0}
  grid = {"kind": "grid", "grid": [2, 3], "ratio": 2.0}
  encoders = {
    "deepemd": BestEncoder("metatrain", 90, 60.0, {}),
    "prototype": BestEncoder("pretrain", 16, 58.0, {}),
  }
  return results.FewShotResults(
    main=measured(**heads),
    more={"5-shot": measured(5, **more), "grid": measured(1, grid, **heads)},
    variants={"d0_plain": measured(**heads)},
    encoders=encoders,
    validation={
      name: {"accuracy": 60.0, "prototype": 58.0} for name in encoders
    },
    protocol=Protocol(
      data="miniimagenet",
      trained_on={"name": "miniimagenet:160", "title": "of one"},
      tested_on={"name": "cub:160", "title": "of another"},
      image={"size": 84, "crop": "center"},
      model={"backbone": "resnet12", "width": 1.0, "precision": "float32"},
      emd={"solver": "auto", "temperature": 12.5},
      sfc={"epochs": 100},
      seed=3,
    ),
    seconds=12.345,
  )


HEADS = {"accuracy", "ci95"}
TIMING = {
  *("encoding_seconds", "encoded_images", "episodes_per_second"),
  "episodes_per_second_with_encoding",
}
MEASURED = {"heads", "paired", "episodes"}
PROTOCOL = {
  *("data", "protocol", "image", "model", "emd", "sfc", "seed"),
  *("versions", "device"),
}


def test_json_has_the_keys_that_others_read(found):
  document = json.loads(json.dumps(found.to_json()))
  assert set(document) == {
    *(*MEASURED, "timing", "episode", "nodes", "more", "variants"),
    *("encoders", *PROTOCOL),
  }
  assert set(document["timing"]) == {*TIMING, "seconds"}
  assert document["timing"]["seconds"] == 12.3
  for change in document["more"].values():
    assert set(change) == {*MEASURED, "timing", "episode", "nodes"}
    assert set(change["timing"]) == TIMING
  assert set(document["variants"]["d0_plain"]) == MEASURED
  assert document["heads"]["deepemd"] == {"accuracy": 61.234, "ci95": 1.25}
  assert document["paired"]["deepemd - prototype"]["ci95"] == 0.125
  assert document["encoders"]["prototype"] == {
    "stage": "pretrain",
    "step": 16,
    "sha256": hashlib.sha256().hexdigest(),
    "validation": {"accuracy": 60.0, "prototype": 58.0},
  }
  assert document["episode"] == {"way": 5, "shot": 1, "query": 15}
  assert document["nodes"] == {"kind": "fcn", "pyramid": [2, 1]}
  assert document["protocol"]["trained on"] == {
    "name": "miniimagenet:160",
    "title": "of one",
  }
  assert {"jax", "numpy", "python", "deepemd_jax"} <= set(document["versions"])


# The table in the format that it has always had.
TABLE = """\
miniimagenet:160 to cub:160: 5-way 1-shot, 15 queries per class, 600 test episodes, seed 3; nodes: fcn, pyramid (2, 1)

                                                             episodes/s      with
head                              accuracy %        encoder              encoding
DeepEMD                        61.23 +- 1.25   metatrain 90        61.5      7.25
DeepEMD, equal weights         59.50 +- 1.25   metatrain 90        61.5      7.25
Prototype (pooled, cosine)     55.00 +- 1.25    pretrain 16        61.5      7.25

paired differences on the same episodes
deepemd - deepemd_equal_weights         +1.73 +- 0.12
deepemd - prototype                     +6.23 +- 0.12

miniimagenet:160 to cub:160: 5-way 5-shot, 15 queries per class, 600 test episodes, seed 3; nodes: fcn, pyramid (2, 1)

                                                             episodes/s      with
head                              accuracy %        encoder              encoding
DeepEMD, SFC                   77.00 +- 5.25   metatrain 90        61.5      7.25
DeepEMD, mean nodes            76.00 +- 5.25   metatrain 90        61.5      7.25
Prototype (pooled, cosine)     71.00 +- 5.25    pretrain 16        61.5      7.25

paired differences on the same episodes
deepemd - deepemd_mean                  +1.00 +- 0.12
deepemd - prototype                     +6.00 +- 0.12

miniimagenet:160 to cub:160: 5-way 1-shot, 15 queries per class, 600 test episodes, seed 3; nodes: grid, grid (2, 3), ratio 2.0

                                                             episodes/s      with
head                              accuracy %        encoder              encoding
DeepEMD                        61.23 +- 1.25   metatrain 90        61.5      7.25
DeepEMD, equal weights         59.50 +- 1.25   metatrain 90        61.5      7.25
Prototype (pooled, cosine)     55.00 +- 1.25    pretrain 16        61.5      7.25

paired differences on the same episodes
deepemd - deepemd_equal_weights         +1.73 +- 0.12
deepemd - prototype                     +6.23 +- 0.12

clutter                            deepemd     deepemd_equal_weights                 prototype
d0_plain                       61.2 +- 1.2               59.5 +- 1.2               55.0 +- 1.2"""  # noqa: E501


def test_the_table(found):
  assert found.table() == TABLE


def test_one_data_set_is_named_once(found):
  same = dataclasses.replace(
    found.protocol, trained_on=found.protocol.tested_on
  )
  assert same.data_title() == "cub:160"
  assert found.protocol.data_title() == "miniimagenet:160 to cub:160"


def test_one_test_does_not_wipe_out_another(found, tmp_path):
  """Tests that differ in a relevant setting have different file names."""

  def with_protocol(**fields):
    protocol = dataclasses.replace(found.protocol, **fields)
    return dataclasses.replace(found, protocol=protocol)

  grid = dataclasses.replace(found, main=found.more["grid"])
  others = [
    dataclasses.replace(found, main=measured(deepemd=61.0, chamfer=50.0)),
    with_protocol(seed=4),
    with_protocol(emd={"solver": "auto", "temperature": 10.0}),
    with_protocol(emd={"solver": "interior_point", "temperature": 12.5}),
    with_protocol(sfc={"epochs": 50}),
    with_protocol(image={"size": 92, "crop": "center"}),
    dataclasses.replace(
      found, main=dataclasses.replace(found.main, episodes=5000)
    ),
    dataclasses.replace(found, more={}),
    dataclasses.replace(found, variants={"d0_plain": found.more["grid"]}),
    dataclasses.replace(
      found,
      encoders=found.encoders
      | {"deepemd": BestEncoder("metatrain", 90, 60.0, {"x": np.zeros(1)})},
    ),
    grid,
  ]
  for results_ in (found, *others, dataclasses.replace(found, seconds=1.0)):
    results_.save(tmp_path)
  grid.save(tmp_path)
  names = {path.stem for path in (tmp_path / "results").iterdir()}
  assert names == {each.test_name() for each in (found, *others)}
  assert len(names) == 1 + len(others)
  assert found.test_name().startswith("cub-160_5way_1shot_fcn_seed3_")
  latest = json.loads((tmp_path / "results.json").read_text())
  assert latest["nodes"]["kind"] == "grid"
  assert set(tmp_path.iterdir()) == {
    tmp_path / "results",
    tmp_path / "results.json",
  }


@pytest.mark.parametrize(
  ("section", "text"),
  [
    ({}, "fcn"),
    ({"pyramid": (2, 1), "cells": 4}, "fcn, pyramid (2, 1), cells 4"),
    ({"kind": "grid"}, "grid, grid (2, 3), ratio 2.0"),
    ({"kind": "sampling"}, "sampling, patches 9"),
    (
      {"kind": "sampling", "test_patches": 4, "redraw": True},
      "sampling, patches 4, redraw True",
    ),
  ],
)
def test_nodes_in_words(section, text):
  fields = results.nodes_fields(recipes.settings(nodes=section))
  assert results.nodes_text(json.loads(json.dumps(fields))) == text


def test_what_was_trained_on_is_read_from_the_workdir(tmp_path):
  trained = recipes.config({"seed": 7}, data={"name": "miniimagenet"})
  (tmp_path / "config.json").write_text(trained.to_json_best_effort())
  tested = recipes.settings(data={"name": "cub", "test_name": "fc100"})
  protocol = Protocol.of(tested, tmp_path)
  assert protocol.emd["solver"] == "network_simplex"  # auto means this on a CPU
  assert protocol.emd["temperature"] == 12.5 and protocol.sfc["epochs"] == 100
  assert protocol.image["mean"] == (125.3, 123.0, 113.9)
  assert protocol.data == "cub"
  assert (protocol.trained_on["seed"], protocol.seed) == (7, 0)
  assert protocol.trained_on["name"] == "miniimagenet:160"
  assert protocol.tested_on["name"] == "fc100:32"
  assert protocol.model == {
    "backbone": "resnet12",
    "width": 1.0,
    "pools": 4,
    "precision": "float32",
  }
  (tmp_path / "config.json").write_text('{"model": {"width": 1.0}}')
  protocol = Protocol.of(tested, tmp_path)
  assert protocol.trained_on["name"] == "converted checkpoint"


def test_an_estimate_has_the_interval_of_the_official_code():
  values = np.array([50.0, 60.0, 70.0, 60.0])
  estimate = results.Estimate.of(values)
  assert estimate.mean == 60.0
  assert estimate.ci95 == pytest.approx(1.96 * np.sqrt(50) / 2)
