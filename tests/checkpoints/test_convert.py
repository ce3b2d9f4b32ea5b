"""Files of the authors are read without PyTorch and without being executed."""

import collections
import contextlib
import functools
import importlib.util
import json
import os
import sys
import types

import commands
import jax
import ml_dtypes
import numpy as np
import pytest
import toy_backbone
from recipes import evaluation_of_folders, recipe_state_dict, tiny_run
from torch_files import Tensor, safetensors_of, save

from deepemd_jax import main
from deepemd_jax.checkpoints import (
  convert,
  pretrained,
  state_dicts,
  torch_file,
)
from deepemd_jax.config import stored
from deepemd_jax.errors import InputError


@functools.cache
def narrow_state(divisor):
  """Returns every `divisor`th channel of the recorded parameters."""

  def narrow(value):
    steps = (divisor if size >= 64 else 1 for size in value.shape)
    kept = value[tuple(slice(None, None, step) for step in steps)]
    return np.ascontiguousarray(kept)

  return {key: narrow(value) for key, value in recipe_state_dict().items()}


def state_dict(prefix="", divisor=1):
  """Returns `narrow_state` as tensors of PyTorch."""
  state = collections.OrderedDict(
    (prefix + key, Tensor(value))
    for key, value in narrow_state(divisor).items()
  )
  state._metadata = collections.OrderedDict(version=1)  # like PyTorch's
  return state


@pytest.mark.parametrize("old", [False, True])
def test_tensors_of_every_kind(old, torch, tmp_path):
  array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
  found = {
    "plain": Tensor(array),
    "transposed": Tensor(array, 0, (4, 2), (1, 12)),
    "part": Tensor(array, 5, (2,), (3,)),
    "scalar": Tensor(np.array(7), 0, (), ()),
    "empty": Tensor(array, 0, (0, 3), (3, 1)),
    "list": [1, "two", (3.0, None)],
  }
  save(tmp_path / "x.pth", found, old)
  read = torch_file.load(tmp_path / "x.pth")
  np.testing.assert_array_equal(read["plain"], array)
  np.testing.assert_array_equal(read["transposed"], array[:, 0].T)
  np.testing.assert_array_equal(read["part"], [5, 8])
  assert read["scalar"].dtype == np.int64 and read["scalar"] == 7
  assert read["empty"].shape == (0, 3)
  assert read["list"] == [1, "two", (3.0, None)]


@pytest.mark.parametrize("old", [False, True])
def test_a_converted_file_is_a_run_with_its_parameters(old, torch, tmp_path):
  """Another test shows that the network then gives the recorded maps."""
  path = tmp_path / "max_acc.pth"
  state = state_dict("module.encoder.", divisor=16)
  save(path, {"params": state}, old)
  convert.convert(path, tmp_path / "run")
  trained = pretrained.load(tmp_path / "run")
  expected = convert.from_torch(torch_file.load(path)["params"])
  jax.tree.map(
    np.testing.assert_array_equal, trained.encoder.variables, expected
  )
  stem = recipe_state_dict()["layer1.0.conv1.weight"][::16]
  np.testing.assert_array_equal(
    expected["params"]["layer1"]["conv1"]["kernel"], stem.transpose(2, 3, 1, 0)
  )
  assert trained.encoder.place == "pretrain, step 0"
  assert sorted(p.name for p in tmp_path.iterdir()) == ["max_acc.pth", "run"]


@pytest.mark.soak
def test_a_converted_file_is_tested_as_a_trained_one(
  torch, tmp_path, monkeypatch, capsys
):
  state = {"params": state_dict("encoder.", divisor=16)}
  save(tmp_path / "max_acc.pth", state)
  convert.convert(tmp_path / "max_acc.pth", tmp_path / "run")
  monkeypatch.undo()  # other packages would use the fake `torch`
  main.run(evaluation_of_folders(tmp_path), tmp_path / "run")
  found = json.loads((tmp_path / "run" / "results.json").read_text())
  assert found["protocol"]["trained on"]["name"] == "converted checkpoint"
  assert "converted checkpoint to folder:40" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_safetensors_file_is_read_as_well(kind, tmp_path):
  state = {
    f"module.encoder.{name}": np.asarray(value).astype(kind)
    for name, value in narrow_state(16).items()
  }
  (tmp_path / "x.safetensors").write_bytes(safetensors_of(state))
  convert.convert(tmp_path / "x.safetensors", tmp_path / "run")
  found = pretrained.load(tmp_path / "run").encoder.variables
  jax.tree.map(np.testing.assert_array_equal, found, convert.from_torch(state))


# The prefixes of FEAT on one GPU and on several, and of LibFewShot.
@pytest.mark.parametrize(
  "prefix",
  ["encoder.", "encoder.module.", "module.encoder.", "emb_func.", "module."],
)
def test_prefixes_of_other_libraries(prefix):
  narrow = narrow_state(16)
  state = {prefix + name: value for name, value in narrow.items()}
  found = convert.from_torch(state | {"module.fc.bias": np.zeros(3)})
  jax.tree.map(np.testing.assert_array_equal, found, convert.from_torch(narrow))


@pytest.mark.parametrize("name", ["params", "model"])
def test_a_state_dict_among_other_things(name, torch, tmp_path):
  array = np.arange(4, dtype=np.float32)
  save(tmp_path / "x.pth", {"epoch": 3, name: {"a": Tensor(array)}})
  found = state_dicts.read(tmp_path / "x.pth")
  assert list(found) == ["a"]
  np.testing.assert_array_equal(found["a"], array)


def test_heads_of_other_libraries_are_left_out_by_name(tmp_path, capsys):
  zeros = np.zeros(3, np.float32)
  heads = ["encoder.fc.bias", "slf_attn.w_qs.weight", "slf_attn.fc", "module.w"]
  state = narrow_state(16) | dict.fromkeys(heads, zeros)
  path, new = tmp_path / "x.safetensors", tmp_path / "run"
  path.write_bytes(safetensors_of(state))
  result = commands.call(capsys, "convert", path, new)
  commands.assert_refused(result, "3 unknown .module.w, slf.* with --ignore$")
  command = ["convert", path, new, "--ignore", "slf_attn", "--ignore=w"]
  result = commands.call(capsys, *command, "--ignore=slf")
  commands.assert_refused(result, "--ignore=slf: .* are fc, layer1, .*slf_attn")
  assert not new.exists()
  code, out, _ = commands.call(capsys, *command)
  *lines, _ = out.splitlines()
  assert code == 0 and sorted(lines) == [f"left out {x}" for x in sorted(heads)]


def test_two_networks_in_a_file_are_not_mixed():
  state = narrow_state(16)
  twice = state | {f"emb_func.{name}": value for name, value in state.items()}
  with pytest.raises(InputError, match="occurs twice.*--ignore"):
    convert.from_torch(twice)


def test_a_run_becomes_a_file_and_the_file_a_run(tmp_path, capsys):
  run, again = tiny_run(tmp_path / "run"), tmp_path / "again"
  path = tmp_path / "encoder.safetensors"
  for arguments in ((run, path), (path, again)):
    code, out, errors = commands.call(capsys, "convert", *arguments)
    assert code == 0, errors
  ours, theirs = (pretrained.load(workdir).encoder for workdir in (run, again))
  jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
  assert set(state_dicts.read(path)) == {
    name for name in recipe_state_dict() if "num_batches" not in name
  }
  result = commands.call(capsys, "convert", run, tmp_path / "encoder.pth")
  commands.assert_refused(result, r"try .*encoder\.safetensors")


def test_fewer_pools_have_no_place_in_the_authors_code(tmp_path, capsys):
  model = {"width": 1 / 16, "pools": 3}
  run = tiny_run(tmp_path / "run", model=model)
  result = commands.call(capsys, "convert", run, tmp_path / "x.safetensors")
  commands.assert_refused(result, "pools below 4: a cell .* is 8 pixels")
  assert not (tmp_path / "x.safetensors").exists()


def test_another_backbone_has_no_names_in_pytorch(tmp_path, monkeypatch):
  loaded = types.SimpleNamespace(
    encoder=types.SimpleNamespace(variables=toy_backbone.variables())
  )
  monkeypatch.setattr(pretrained, "load", lambda checkpoint: loaded)
  with pytest.raises(InputError, match="not a ResNet-12 .*layer1"):
    convert.to_safetensors("run", tmp_path / "x.safetensors")
  assert not list(tmp_path.iterdir())


def test_a_damaged_safetensors_file_is_told(tmp_path):
  path = tmp_path / "x.safetensors"
  whole = safetensors_of({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
  for end in range(len(whole)):
    path.write_bytes(whole[:end])
    with pytest.raises(InputError, match="damaged"):
      state_dicts.read(path)
  rng = np.random.default_rng(0)
  for _ in range(300):
    content = bytearray(whole)
    content[rng.integers(len(content))] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    with contextlib.suppress(InputError):
      for array in state_dicts.read(path).values():
        assert array.nbytes <= len(content)


def test_the_reader_of_pytorch_is_offered(torch, tmp_path, capsys, monkeypatch):
  save(tmp_path / "x.pth", state_dict(divisor=16))
  arguments = tmp_path / "x.pth", tmp_path / "run", "--reader=torch"
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  result = commands.call(capsys, "convert", *arguments)
  commands.assert_refused(result, "PyTorch is not installed")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
  asked = {}

  def load(path, **options):
    asked.update(options)
    return torch_file.load(path)

  sys.modules["torch"].load = load
  code, _, errors = commands.call(capsys, "convert", *arguments)
  assert code == 0, errors
  assert asked == {"map_location": "cpu", "weights_only": True}


WRONG = {
  "shape": (
    {"layer2.0.conv2.weight": np.zeros((2, 3), np.float32)},
    "1 shapes",
  ),
  "kind": ({"layer1.0.bn1.weight": np.zeros(4, np.int64)}, "int64, not float"),
  "text": ({"layer1.0.bn1.weight": "x"}, "is a str, not a tensor"),
  "name": ({"\x1b[2Jx": 1, 7: 2}, r"0 names missing.*2 unknown"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_the_network_is_told(
  what, tmp_path, monkeypatch, capsys
):
  """Nothing is written, and names cannot control the terminal."""
  change, message = WRONG[what]
  state = narrow_state(16) | change
  monkeypatch.setattr(torch_file, "load", lambda path: state)
  result = commands.call(capsys, "convert", "x.pth", tmp_path / "run")
  commands.assert_refused(result, message)
  assert "\x1b" not in result[2]
  assert not list(tmp_path.iterdir())


class Call:
  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
  "function", [os.system, eval, getattr, print], ids=lambda f: f.__name__
)
def test_a_file_that_calls_something_is_refused(
  old, function, torch, tmp_path, capfd
):
  evil = {"params": Call(function, f"echo > {tmp_path}/proof")}
  save(tmp_path / "evil.pth", evil, old)
  with pytest.raises(InputError, match=rf"refused.*{function.__name__}"):
    convert.convert(tmp_path / "evil.pth", tmp_path / "run")
  assert [p.name for p in tmp_path.iterdir()] == ["evil.pth"]
  assert capfd.readouterr().out == ""


@pytest.mark.parametrize("old", [False, True])
def test_damage_is_told(old, torch, tmp_path):
  """A cut or changed file gives an error or is read; it never crashes."""
  path = tmp_path / "x.pth"
  save(path, {"a": Tensor(np.arange(64, dtype=np.float32))}, old)
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  told = 0
  for _ in range(100):
    content = bytearray(whole)
    if rng.random() < 0.5:
      content = content[: rng.integers(len(content))]
    else:
      content[rng.integers(len(content))] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    try:
      torch_file.load(path)
    except InputError:
      told += 1
  assert told > 50


@pytest.mark.parametrize(
  ("offset", "shape", "strides"),
  [(0, (65,), (1,)), (60, (5,), (1,)), (0, (2,), (64,)), (8, (2,), (-8,))],
)
def test_a_tensor_beyond_its_storage(offset, shape, strides, torch, tmp_path):
  array = np.arange(64, dtype=np.float32)
  save(tmp_path / "x.pth", [Tensor(array, offset, shape, strides)])
  with pytest.raises(InputError, match="beyond"):
    torch_file.load(tmp_path / "x.pth")


def test_mistakes(torch, tmp_path, capsys):
  def told(*arguments):
    result = commands.call(capsys, "convert", *arguments)
    commands.assert_refused(result, "")
    return result[2]

  assert "FILE, DIR" in told()
  assert "No such file" in told(tmp_path / "none.pth", tmp_path / "run")
  (tmp_path / "text.pth").write_text("not a checkpoint")
  assert "text.pth" in told(tmp_path / "text.pth", tmp_path / "run")
  save(tmp_path / "list.pth", [1, 2])
  assert "a list" in told(tmp_path / "list.pth", tmp_path / "run")
  state = state_dict()
  del state["layer1.0.conv1.weight"]
  save(tmp_path / "part.pth", state)
  new = tmp_path / "new" / "folders"
  assert "layer1/conv1/kernel" in told(tmp_path / "part.pth", new / "run")
  assert "not an empty" in told(tmp_path / "part.pth", tmp_path)
  assert not (tmp_path / "run").exists() and not new.parent.exists()


def test_the_command_says_what_to_do_next(torch, tmp_path, capsys):
  save(tmp_path / "x.pth", state_dict(divisor=16))
  arguments = (tmp_path / "x.pth", tmp_path / "run")
  code, out, _ = commands.call(capsys, "convert", *arguments)
  assert code == 0 and f"--workdir={tmp_path / 'run'}" in out
  fields = stored.read_fields(tmp_path / "run" / "config.json")
  assert fields == {"model": {"width": 1 / 16}}
