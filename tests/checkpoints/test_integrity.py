"""A damaged checkpoint never gives wrong values, and the error names it."""

import gc
import json
import os
import pathlib
import shutil
import tempfile

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import pytest
import tensorstore
from small_checkpoints import assert_equal, largest_file, model, save, train

from deepemd_jax.checkpoints.manager import Checkpoints
from deepemd_jax.errors import InputError


def test_what_does_not_fit_is_listed(four):
  other = model(width=5)
  other["params"]["c"] = other["params"].pop("b")
  other["stats"] = {f"s{i}": jnp.zeros(1) for i in range(7)}
  with Checkpoints(four) as saved, pytest.raises(InputError) as error:
    saved.restore(4, model=other)
  message = str(error.value)
  assert "8 missing: params/c, stats/s0, " in message
  assert "stats/s3 and 3 more" in message
  assert "2 extra: params/b, stats" in message
  assert "params/a is float32[3, 8192], not float32[5, 8192]" in message
  assert "\n" not in message


def test_another_type_does_not_fit(four):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model())
  with Checkpoints(four) as saved, pytest.raises(InputError, match="bfloat16"):
    saved.restore(4, model=half)


def flip(content: bytes, place: int) -> bytes:
  at = place % len(content)
  return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def cut(content: bytes, place: int) -> bytes:
  return content[: place % len(content)]


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(st.data())
def test_whatever_is_damaged_nothing_wrong_comes_back(untouched, data):
  with tempfile.TemporaryDirectory() as parent:
    copy = pathlib.Path(shutil.copytree(untouched, f"{parent}/c"))
    files = sorted(p for p in (copy / "4").rglob("*") if p.is_file())
    # Most files are small, and orbax reads only some of them. The others are
    # arrays.
    path = data.draw(st.sampled_from(files))
    change = data.draw(st.sampled_from([flip, cut]))
    place = data.draw(st.integers(0, 10**6))
    path.write_bytes(change(path.read_bytes(), place))
    try:
      with Checkpoints(copy, read_only=True) as saved:
        assert (saved.latest(), saved.best()) == (4, 2)
        assert (saved.score(2), saved.score(4)) == (9.0, 7.0)
        found = saved.restore(4, model=model(), train=train(0))
    except InputError as error:
      assert f"{copy / '4'} " in str(error)
      assert "\n" not in str(error)
    else:
      assert_equal(found.model, model(4))
      assert_equal(found.train, train(4))
      assert found.meta == {"step": 4}


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda f: f.write_bytes(flip(f.read_bytes(), 40_000)), "model/params/a"),
    (lambda f: f.write_bytes(cut(f.read_bytes(), 40_000)), "cannot be read"),
    (lambda f: f.unlink(), "cannot be read"),
  ],
  ids=["flipped", "cut", "gone"],
)
def test_damaged_arrays_are_named_and_the_step_before_is_whole(
  four, damage, message, capfd
):
  damage(largest_file(four / "4" / "model"))
  with Checkpoints(four) as saved:
    with pytest.raises(InputError, match=message) as error:
      saved.restore(4, model=model())
    assert f"checkpoint {four / '4'} is damaged" in str(error.value)
    assert "delete it" in str(error.value)
    assert_equal(saved.restore(3, model=model()).model, model(3))
    # Another part of the same step is undamaged.
    assert_equal(saved.restore(4, train=train(0)).train, train(4))
  gc.collect()
  assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
  "file, old, new",
  [
    ("meta/metadata", b'{"step": 4}', b'{"step": 5}'),
    ("metrics/metrics", b'"score": 7', b'"score": 9'),
    ("metrics/metrics", b'"score": 7', b'"score": '),
  ],
)
def test_a_changed_meta_or_score_is_found(four, file, old, new):
  path = four / "4" / file
  content = path.read_bytes()
  assert content.count(old) == 1
  path.write_bytes(content.replace(old, new))
  with pytest.raises(
    InputError, match="4 is damaged: (meta|its score) differs"
  ):
    with Checkpoints(four, read_only=True) as saved:
      saved.restore(4)


def test_a_forged_piece_gets_no_memory(four):
  """TensorStore would allocate the terabytes that a few bytes claim."""
  base = {"driver": "file", "path": f"{four / '4' / 'model'}/"}
  arrays = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
  key = "params.a/.zarray"
  forged = json.loads(arrays.read(key).result().value)
  forged["chunks"] = [2**20, 2**20]
  arrays.write(key, json.dumps(forged).encode()).result()
  with Checkpoints(four, read_only=True) as saved:
    with pytest.raises(
      InputError, match="params/a has pieces of shape .1048576, "
    ):
      saved.restore(4, model=model())


@pytest.mark.parametrize("notes", ["[]", '{"init_timestamp_nsecs": "x"}'])
def test_foreign_notes_are_one_line(four, notes):
  (four / "4" / "_CHECKPOINT_METADATA").write_text(notes)
  with pytest.raises(InputError, match="cannot open the checkpoints") as error:
    Checkpoints(four, read_only=True)
  assert "\n" not in str(error.value)


def damage_arrays(step):
  path = largest_file(step / "train")
  path.write_bytes(flip(path.read_bytes(), 40_000))


def damage_score(step):
  path = step / "metrics" / "metrics"
  path.write_bytes(path.read_bytes().replace(b"score", b"scare"))


@pytest.mark.parametrize("damage", [damage_arrays, damage_score])
def test_training_goes_on_from_the_step_before(four, damage, capfd):
  damage(four / "4")
  with Checkpoints(four) as saved:
    found = saved.restore_latest(model=model(), train=train(0))
    assert_equal(found.train, train(3))
    assert saved.latest() == 3
    save(saved, 4, 7.0)  # saves the step again
  said = capfd.readouterr().err
  assert f"{four / '4'} is damaged" in said
  assert f"the damaged one is kept as {four / 'damaged.4'}" in said
  assert said.count("\n") == 2
  with Checkpoints(four) as saved:
    assert_equal(
      saved.restore_latest(model=model(), train=train(0)).train, train(4)
    )
  assert (four / "damaged.4" / "model").is_dir()


def test_nothing_whole_is_not_a_beginning(four):
  for step in (2, 3, 4):
    damage_arrays(four / str(step))
  with Checkpoints(four) as saved:
    with pytest.raises(InputError, match=r"all .* damaged \(\[4, 3, 2\]\)"):
      saved.restore_latest(model=model(), train=train(0))
  assert sorted(int(p.name) for p in four.iterdir()) == [2, 3, 4]


@pytest.mark.parametrize("name", ["score", "arrays", "link"])
def test_a_pipe_is_not_waited_for(four, name):
  """A link to a folder is refused, too, because a pipe might be there."""
  place = four / "4" / {"score": "metrics/metrics"}.get(name, "model")
  if name == "arrays":
    place = largest_file(place)
  if name == "link":
    place.rename(four.parent / "elsewhere")
    place.symlink_to(four.parent / "elsewhere")
  else:
    place.unlink()
    os.mkfifo(place)
  for read_only in (True, False):
    with pytest.raises(
      InputError, match=f"{place} is a link or a special file"
    ):
      Checkpoints(four, read_only=read_only)


@pytest.mark.parametrize(
  "content", ["[" * 50_000, '{"score": "x", "step": 4}', "[]", '{"score": NaN}']
)
def test_a_score_that_is_none_is_damage(four, content):
  (four / "4" / "metrics" / "metrics").write_text(content)
  (four / "1\u00b2" / "metrics").mkdir(parents=True)  # not one of our steps
  (four / "1\u00b2" / "metrics" / "metrics").write_text("{}")
  with pytest.raises(InputError, match="its score differs from what was saved"):
    Checkpoints(four, read_only=True)
