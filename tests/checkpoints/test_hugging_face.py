"""A folder in Hugging Face's layout becomes an encoder, or is refused."""

import json
import os
import random
import shutil
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_hub
from paths import GOLDEN

from deepemd_jax.checkpoints import hugging_face, pretrained, state_dicts
from deepemd_jax.config import resolve
from deepemd_jax.errors import InputError

DINOV2 = GOLDEN / "vit" / "dinov2"
SIGLIP = GOLDEN / "vit" / "siglip_vision_model"
CONFIG, IMAGES = "config.json", "preprocessor_config.json"
WEIGHTS = "model.safetensors"
QUERY = "encoder.layer.1.attention.attention.query.weight"


def copied(folder, target, state=None, **fields):
  """Copies a folder, with other tensors and other fields of its config.json."""
  shutil.copytree(folder, target)
  change(target / CONFIG, **fields)
  if state is not None:
    state_dicts.write(target / WEIGHTS, state)
  return target


def change(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def tensors(folder=DINOV2):
  return {k: np.array(x) for k, x in read_file(folder).items()}


def read_file(folder):
  return state_dicts.read(folder / WEIGHTS)


def assert_equal(one, other, **tolerance):
  pairs = zip(*(jax.tree.leaves(x) for x in (one, other)), strict=True)
  for a, b in pairs:
    np.testing.assert_allclose(a, b, **tolerance)


def test_the_folder_says_how_images_are_looked_at():
  found = pretrained.load(DINOV2)
  view, backbone = found.settings.view, found.settings.backbone
  assert (view.kind, view.cells, view.size) == ("fcn", 5, 20)
  np.testing.assert_allclose(view.mean, [123.675, 116.28, 103.53])
  np.testing.assert_allclose(view.std, [58.395, 57.12, 57.375])
  assert (backbone.stride, backbone.channels) == (4, 16)
  assert found.encoder.place == "published weights"
  expected = backbone.abstract()
  assert jax.tree.structure(found.encoder.variables) == jax.tree.structure(
    expected
  )
  for a, b in zip(
    *map(jax.tree.leaves, (found.encoder.variables, expected)), strict=True
  ):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize(
  ("fields", "size", "mean", "std"),
  [
    ({"crop_size": 18, "image_mean": [0.5] * 3}, 18, 127.5, 57.12),
    ({"do_center_crop": False}, 24, 116.28, 57.12),
    ({"crop_size": None, "size": 28}, 28, 116.28, 57.12),
    (
      {"size": {"height": 16, "width": 16}, "crop_size": None},
      16,
      116.28,
      57.12,
    ),
    ({"do_normalize": False}, 20, 0, 255),
    ({"do_rescale": False, "image_mean": [3, 4, 5]}, 20, 4, 0.224),
  ],
)
def test_preprocessors_write_it_in_many_ways(fields, size, mean, std, tmp_path):
  folder = copied(DINOV2, tmp_path / "model")
  change(folder / IMAGES, **fields)
  made = hugging_face.create(str(folder))
  assert made.image_size == size
  np.testing.assert_allclose((made.mean[1], made.std[1]), (mean, std))


def test_a_tower_within_a_larger_model_in_several_files(tmp_path):
  """SigLIP 2 has a text tower, too, and large models have several files."""
  whole = hugging_face.read(hugging_face.create(str(SIGLIP)).weights)
  fields = json.loads((SIGLIP / CONFIG).read_text())
  own = {"hidden_act", "layer_norm_eps", "model_type"}  # defaults
  vision = {k: x for k, x in fields.items() if k not in own}
  state = {f"vision_model.{k}": x for k, x in tensors(SIGLIP).items()}
  state["text_model.embeddings.token_embedding.weight"] = np.zeros((2, 3))
  folder = copied(SIGLIP, tmp_path / "model")
  (folder / CONFIG).write_text(
    json.dumps({"model_type": "siglip", "vision_config": vision})
  )
  (folder / WEIGHTS).unlink()
  names = sorted(state)
  files = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
  for k, file in enumerate(files):
    state_dicts.write(folder / file, {x: state[x] for x in names[k::2]})
  listed = {name: files[k % 2] for k, name in enumerate(names)}
  index = folder / f"{WEIGHTS}.index.json"
  index.write_text(json.dumps({"weight_map": listed}))
  weights = hugging_face.create(str(folder)).weights
  assert {x for x, *_ in weights.files} == {CONFIG, IMAGES, *files, index.name}
  assert_equal(hugging_face.read(weights), whole, rtol=0)
  (folder / files[1]).unlink()
  with pytest.raises(InputError, match=f"model' has no {files[1]}, which"):
    hugging_face.create(str(folder))
  for wrong in ({"a": "../a.safetensors"}, {"a": 3}, {"a": []}, {}, []):
    index.write_text(json.dumps({"weight_map": wrong}))
    with pytest.raises(InputError, match="index.json' weight_map should name"):
      hugging_face.create(str(folder))


def test_half_as_many_bits_are_read_as_well(tmp_path):
  """Tensors are rounded, and then folded together as usual."""
  exact = hugging_face.read(hugging_face.create(str(DINOV2)).weights)
  for dtype in (np.float16, ml_dtypes.bfloat16):
    state = {k: x.astype(dtype) for k, x in tensors().items()}
    folder = copied(DINOV2, tmp_path / np.dtype(dtype).name, state)
    found = hugging_face.read(hugging_face.create(str(folder)).weights)
    assert_equal(found, exact, rtol=0.02, atol=0.02)


def test_other_files_in_the_folder_are_read_anew(tmp_path):
  folder = copied(DINOV2, tmp_path / "model")
  before = pretrained.load(folder)
  assert pretrained.load(folder).settings.backbone is before.settings.backbone
  state = tensors()
  state[QUERY] += 1
  state_dicts.write(folder / WEIGHTS, state)
  os.utime(folder / WEIGHTS, (1, 1))
  after = pretrained.load(folder)
  assert after.fingerprint != before.fingerprint


def in_config(**fields):
  return lambda folder: change(folder / CONFIG, **fields)


def in_images(**fields):
  return lambda folder: change(folder / IMAGES, **fields)


def text(name, content):
  return lambda folder: (folder / name).write_text(content)


def without(name):
  return lambda folder: (folder / name).unlink()


def with_tensors(change):
  def damage(folder):
    state = tensors()
    change(state)
    state_dicts.write(folder / WEIGHTS, state)

  return damage


def cut(folder):
  content = (folder / WEIGHTS).read_bytes()
  (folder / WEIGHTS).write_bytes(content[:-1])


def pipe(folder):
  (folder / WEIGHTS).unlink()
  os.mkfifo(folder / WEIGHTS)


def only_pickled(folder):
  (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


# A change to a folder, and the file and the reason that the error names.
DAMAGED = {
  "unknown kind": (in_config(model_type="swin"), CONFIG, "is 'swin'; .*dinov2"),
  "kind is no text": (in_config(model_type=[1]), CONFIG, "model_type is .1."),
  "NaN": (text(CONFIG, '{"model_type": NaN}'), CONFIG, "NaN is not a finite"),
  "no JSON": (text(CONFIG, '{"model_type"'), CONFIG, "is not the config"),
  "no config": (without(CONFIG), "model", "no config.json"),
  "width is text": (in_config(hidden_size="16"), CONFIG, "size is '16', which"),
  "no layers": (in_config(num_hidden_layers=0), CONFIG, "layers is 0, .* 1 to"),
  "too wide": (in_config(hidden_size=10**9), CONFIG, "up|to 16384"),
  "heads": (in_config(num_attention_heads=3), CONFIG, "do not fit together"),
  "patch too large": (in_config(patch_size=64), CONFIG, "do not fit together"),
  "activation": (in_config(hidden_act="elu"), CONFIG, "hidden_act is 'elu'"),
  "epsilon": (in_config(layer_norm_eps=-1), CONFIG, "eps is -1, .* above 0"),
  "switch": (in_config(use_swiglu_ffn=1), CONFIG, "true or false"),
  "four colors": (in_config(num_channels=4), CONFIG, "should be 3"),
  "no preprocessor": (without(IMAGES), IMAGES, "No such file"),
  "not square": (
    in_images(crop_size={"height": 20, "width": 30}),
    IMAGES,
    "one whole number of pixels",
  ),
  "no size": (in_images(size=None, crop_size=None), IMAGES, "is None"),
  "huge": (in_images(crop_size=2**20), IMAGES, "up to 4096"),
  "too small": (
    in_images(crop_size=3),
    IMAGES,
    "3 pixels wide, which gives 0 patches",
  ),
  "too many patches": (
    in_images(crop_size=260),
    IMAGES,
    "4225 .*between 1 and",
  ),
  "two colors": (in_images(image_mean=[0.5] * 2), IMAGES, "mean .* 3 numbers"),
  "no spread": (
    in_images(image_std=[0, 0, 0]),
    IMAGES,
    "image_std is .0, 0, 0",
  ),
  "no scale": (in_images(rescale_factor=0), IMAGES, "rescale_factor is 0"),
  "no weights": (without(WEIGHTS), "model", f"has no {WEIGHTS}$"),
  "a pickle": (only_pickled, "model", "so use safetensors"),
  "cut": (cut, WEIGHTS, "is damaged .*not fully covered"),
  "empty": (text(WEIGHTS, ""), WEIGHTS, "is not a safetensors file"),
  "a page": (text(WEIGHTS, "<html>" * 99), WEIGHTS, "header is larger"),
  "a pipe": (pipe, "model", "has no model.safetensors"),
  "a tensor less": (
    with_tensors(lambda state: state.pop(QUERY)),
    WEIGHTS,
    f"no tensor {QUERY}",
  ),
  "another shape": (
    with_tensors(lambda state: state.update({QUERY: np.zeros((16, 8))})),
    WEIGHTS,
    r"has shape \[16, 8\], .* should have \[16, 16\]",
  ),
  "fewer axes": (
    with_tensors(lambda state: state.update({QUERY: np.zeros(16)})),
    WEIGHTS,
    r"has shape \[16\]",
  ),
  "whole numbers": (
    with_tensors(lambda state: state.update({QUERY: np.ones((16, 16), int)})),
    WEIGHTS,
    "is int64",
  ),
  "another model's": (
    with_tensors(lambda state: state.clear() or state.update(a=np.ones(1))),
    WEIGHTS,
    "no tensors embeddings.patch_embeddings",
  ),
  "larger images": (in_config(image_size=40), WEIGHTS, r"have \[101, 16\]"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_folder_is_one_line_that_names_the_file(kind, tmp_path):
  damage, file, reason = DAMAGED[kind]
  folder = copied(DINOV2, tmp_path / "model")
  damage(folder)
  with pytest.raises(InputError, match=reason) as error:
    pretrained.load(folder)
  message = str(error.value)
  assert "\n" not in message and file in message and len(message) < 500


def test_300_changes_are_one_line_at_worst(tmp_path):
  """Bits and characters of the JSON files and of the header are changed."""
  folder = copied(DINOV2, tmp_path / "model")
  rng = random.Random(0)
  refused = 0
  for number in range(300):
    path = folder / (CONFIG, IMAGES, WEIGHTS)[number % 3]
    whole = path.read_bytes()
    place = rng.randrange(min(len(whole), 3000))
    bit = bytes([whole[place] ^ (1 << rng.randrange(8))])
    new = rng.choice([bit, bytes(rng.choices(b'09[]{}",-e', k=3))])
    path.write_bytes(whole[:place] + new + whole[place + rng.randrange(3) :])
    try:
      hugging_face.read(hugging_face.create(str(folder)).weights)
    except InputError as error:
      message = str(error)
      assert str(folder) in message and "\n" not in message
      refused += 1
    path.write_bytes(whole)
  assert 200 < refused < 300


def test_a_vit_without_a_folder_and_a_folder_without_a_vit(tmp_path):
  with pytest.raises(InputError, match="needs a folder in config.model.weigh"):
    hugging_face.create()
  with pytest.raises(InputError, match="no config.json.*hf:OWNER/NAME"):
    pretrained.load(tmp_path / "owner" / "name")


def test_images_that_are_smaller_than_a_patch(tmp_path):
  config = pretrained.config_of(copied(DINOV2, tmp_path / "m", patch_size=20))
  assert resolve.resolve(config).backbone.map_side(20) == 1
  config.image.size = 16
  with pytest.raises(InputError, match="size is 16, .* at least 20 pixels"):
    resolve.resolve(config)


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """Serves a local hub; yields its requests. The client is loaded again."""
  for name in [x for x in sys.modules if x.startswith("huggingface_hub")]:
    monkeypatch.delitem(sys.modules, name)
  with tiny_hub.serving("owner/tiny", DINOV2) as (address, asked):
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield asked
  hugging_face.from_hub.cache_clear()


def test_a_model_by_its_name_on_a_hub(hub):
  found = pretrained.load("hf:owner/tiny")
  assert found.fingerprint == pretrained.load(DINOV2).fingerprint
  gotten = {x.rpartition("/")[2] for x in hub if "/resolve/" in x}
  assert gotten == {CONFIG, IMAGES, WEIGHTS}  # but not recorded.npz
  kept = pretrained.load(f"hf:owner/tiny@{tiny_hub.COMMIT}")
  assert kept.settings == found.settings
  for name in ("hf:owner/other", "hf:owner/tiny@v2"):
    with pytest.raises(InputError, match=f"cannot get {name} ") as error:
      pretrained.load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["hf:", "hf:tiny", "hf:a/b/c", "hf:../a@b"])
def test_a_name_that_no_hub_has(name):
  with pytest.raises(InputError, match="write hf:OWNER/NAME"):
    pretrained.load(name)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(InputError, match=r"pip install 'deepemd_jax\[hub\]'"):
    pretrained.load("hf:owner/tiny")
