"""Stored copies: the pixels they should be, whole or not at all."""

import contextlib
import io
import itertools
import json
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from PIL import Image

from deepemd_jax.data import pixel_cache
from deepemd_jax.errors import InputError


def picture(seed, height=20, width=30, kind="PNG"):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  return file.getvalue()


def items(count, first=0):
  return [
    pixel_cache.Item(
      picture(i, 10 + i % 7, 20 + i % 5), f"{i}.png", f"c{i % 3}"
    )
    for i in range(first, first + count)
  ]


class MadeAgain(Exception):
  """Copies that should have been taken as they are."""


def load(place, made, *, side=16, made_from="these", made_before=False):
  def make():
    if made_before:
      raise MadeAgain
    return iter(made)

  return pixel_cache.load(
    place, make, count=len(made), side=side, made_from=made_from, name="them"
  )


def check(found, made, side=16):
  """Against the slow and obvious."""
  assert found.keys == tuple(item.key for item in made)
  assert found.labels == tuple(item.label for item in made)
  assert found.sizes.dtype == np.int32
  assert found.pixels.shape == (len(made), side, side, 3)
  for row, item in enumerate(made):
    image = Image.open(io.BytesIO(item.file))
    assert found.sizes[row].tolist() == [image.height, image.width]
    small = image.resize((side, side), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found.pixels[row], np.asarray(small))


def test_copies_are_made_once_and_are_what_they_should_be(tmp_path, capfd):
  made = items(70)
  check(load(tmp_path / "kept", made), made)
  found = load(tmp_path / "kept", made, made_before=True)
  check(found, made)
  assert capfd.readouterr() == ("", "")
  assert sorted(os.listdir(tmp_path)) == [".kept.lock", "kept"]
  rows = np.array([[3, 1], [60, 3]])
  assert found.pixels[rows].shape == (2, 2, 16, 16, 3)
  np.testing.assert_array_equal(found.pixels[rows][1, 1], found.pixels[3])
  part = found.pixels.only(np.array([5, 60, 2]))
  assert part.shape[0] == 3
  np.testing.assert_array_equal(part[np.array([1])][0], found.pixels[60])


def test_pickled_copies_are_a_path(tmp_path):
  found = load(tmp_path / "kept", items(20)).pixels.only(np.arange(5, 15))
  content = pickle.dumps(found)
  assert len(content) < 1000
  again = pickle.loads(content)
  np.testing.assert_array_equal(again[np.arange(10)], found[np.arange(10)])
  shutil.rmtree(tmp_path / "kept")
  load(tmp_path / "kept", items(20, first=1))
  with pytest.raises(InputError, match="made again while it was in use"):
    pickle.loads(content)
  np.testing.assert_array_equal(again[np.arange(10)], found[np.arange(10)])


def test_without_copies_there_is_an_index(tmp_path):
  made = items(5)
  for before in (False, True):
    found = load(tmp_path / "kept", made, side=0, made_before=before)
    assert found.pixels is None and len(found.keys) == 5
    assert found.sizes[3].tolist() == [13, 23]
  assert os.listdir(tmp_path / "kept") == ["index.json"]


def test_images_of_known_sizes_are_not_decoded_for_an_index(tmp_path):
  made = [pixel_cache.Item(b"not looked at", "x", "c", (7, 5))]
  assert load(tmp_path / "index", made, side=0).sizes.tolist() == [[7, 5]]
  with pytest.raises(InputError, match="not an image"):
    load(tmp_path / "copies", made)


def test_copies_of_something_else_are_made_again(tmp_path, capfd):
  load(tmp_path / "kept", items(5))
  made = items(6, first=2)
  check(load(tmp_path / "kept", made, made_from="others"), made)
  errors = capfd.readouterr().err
  assert errors.count("\n") == 1 and "made from other images" in errors
  check(load(tmp_path / "kept", made, side=8, made_from="others"), made, 8)
  assert "another version" in capfd.readouterr().err
  assert sorted(os.listdir(tmp_path)) == [".kept.lock", "kept"]


def cut_pixels(place):
  os.truncate(place / "pixels", (place / "pixels").stat().st_size - 1)


def zero_pixels(place):
  size = (place / "pixels").stat().st_size
  (place / "pixels").write_bytes(b"\0" * size)


def cut_index(place):
  path = place / "index.json"
  os.truncate(path, path.stat().st_size // 2)


def empty_index(place):
  (place / "index.json").write_text("[]")


def fewer_rows(place):
  index = json.loads((place / "index.json").read_text())
  index["checksums"].pop()
  (place / "index.json").write_text(json.dumps(index))


DAMAGE = (
  *(cut_pixels, zero_pixels, cut_index, empty_index, fewer_rows),
  lambda place: (place / "pixels").unlink(),
  lambda place: (place / "index.json").unlink(),
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_torn_copies_are_made_again(damage, tmp_path, capfd):
  made = items(9)
  load(tmp_path / "kept", made)
  damage(tmp_path / "kept")
  check(load(tmp_path / "kept", made), made)
  errors = capfd.readouterr().err
  assert errors.count("\n") == 1 and "making them again" in errors
  check(load(tmp_path / "kept", made, made_before=True), made)


@settings(deadline=None, max_examples=40)
@given(
  kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "BMP"]),
  cut=st.floats(0, 0.9),
  flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3),
)
def test_broken_images_are_found_and_never_crash(kind, cut, flips):
  whole = picture(0, 24, 24, kind)
  with tempfile.TemporaryDirectory() as directory:
    place = pathlib.Path(directory, "kept")
    short = pixel_cache.Item(whole[: int(cut * len(whole))], "short")
    with pytest.raises(InputError, match="1 of 1 images of them cannot be"):
      load(place, [short])
    broken = bytearray(whole)
    for where, bits in flips:
      broken[int(where * (len(whole) - 1))] ^= bits
    # A flipped byte may leave a readable picture; nothing else may come out.
    with contextlib.suppress(InputError), warnings.catch_warnings():
      warnings.simplefilter("ignore")
      load(place, [pixel_cache.Item(bytes(broken), "broken")])


def test_all_bad_images_are_counted_and_ten_are_named(tmp_path):
  made = items(3)
  made += [
    pixel_cache.Item(b"text" * (i % 2), f"bad{i:02d}") for i in range(13)
  ]
  with pytest.raises(InputError) as refused:
    load(tmp_path / "kept", made)
  message = str(refused.value)
  assert message.startswith("13 of 16 images of them cannot be read: bad00 (")
  assert "an empty file" in message and "not an image" in message
  assert "and 3 more" in message and "\n" not in message
  named = [f"bad{i:02d}" in message for i in range(13)]
  assert named == [True] * 10 + [False] * 3
  assert os.listdir(tmp_path) == [".kept.lock"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_whatever_happens_on_the_way_leaves_nothing(kind, tmp_path):
  def broken():
    yield from items(30)
    raise kind

  for _ in range(2):
    with pytest.raises(kind):
      pixel_cache.load(
        tmp_path / "kept", broken, count=40, side=16, made_from="", name="them"
      )
    assert os.listdir(tmp_path) == [".kept.lock"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(InputError, match="config.data.directory"):
    load(tmp_path / "file" / "kept", items(2))


def test_too_little_room_is_told_before_the_work(tmp_path):
  with pytest.raises(InputError, match=r"GB needed, .* GB free; make room"):
    pixel_cache.load(
      tmp_path / "kept",
      lambda: pytest.fail("has begun"),
      count=10**12,
      side=160,
      made_from="",
      name="them",
    )


def test_one_thread_at_a_time_makes_them(tmp_path):
  """The others wait, and take what it has made."""
  made, begun = items(40), []

  def make():
    begun.append(1)
    yield from made

  def run():
    results.append(
      pixel_cache.load(
        tmp_path / "kept", make, count=40, side=16, made_from="", name="them"
      )
    )

  results = []
  threads = [threading.Thread(target=run) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(begun) == 1 and len(results) == 4
  for found in results:
    check(found, made)


# Makes copies of 60 images; is told what should go wrong.
PROGRAM = """
import os, pathlib, pickle, resource, signal, sys
from deepemd_jax.data import stored
from deepemd_jax.errors import InputError
place, how, at = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
made = [stored.Item(*item) for item in pickle.load(sys.stdin.buffer)]
if how == "full":
  resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
if how == "kill":
  calls = [0]
  def counted(room, name):
    function = getattr(room, name)
    def until(*arguments, **more):
      calls[0] += 1
      if calls[0] == at:
        os.kill(os.getpid(), signal.SIGKILL)
      return function(*arguments, **more)
    setattr(room, name, until)
  counted(os, "fsync")
  counted(os, "rename")
  counted(stored, "_look")
try:
  stored.load(place, lambda: made, count=len(made), side=16, made_from="these",
              name="them")
except InputError as error:
  sys.exit(f"error: {error}")
"""


def run(place, how, at, made):
  return subprocess.run(
    [sys.executable, "-c", PROGRAM, str(place), how, str(at)],
    input=pickle.dumps([tuple(item) for item in made]),
    capture_output=True,
    cwd=ROOT,
  )


def killed_at(tmp_path, moments):
  """Whatever is there afterwards is whole, and the next one makes the rest."""
  made, before, ended = items(60), items(60, first=5), []
  for moment, there in itertools.product(moments, (False, True)):
    place = tmp_path / f"{moment}{there}" / "kept"
    if there:  # of something else
      load(place, before, made_from="others")
    done = run(place, "kill", moment, made)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    ended.append(done.returncode)
    with contextlib.suppress(MadeAgain):
      check(load(place, made, made_before=True), made)
    check(load(place, made), made)
    assert sorted(os.listdir(place.parent)) == [".kept.lock", "kept"]
  return ended


def test_killed_at_any_moment(tmp_path):
  moments = [int(np.random.default_rng().integers(1, 61)), 64, 65]
  assert set(killed_at(tmp_path, moments)) == {-signal.SIGKILL}


@pytest.mark.soak
def test_killed_at_every_moment(tmp_path):
  assert killed_at(tmp_path, range(1, 69))[-1] == 0


def full_at(tmp_path, limits):
  made = items(60)
  for limit in limits:
    place = tmp_path / str(limit) / "kept"
    done = run(place, "full", limit, made)
    errors = done.stderr.decode()
    assert done.returncode == 1, errors
    assert errors.startswith(f"error: cannot write copies of them to {place}")
    assert errors.count("\n") == 1 and "config.data.directory" in errors
    assert os.listdir(place.parent) == [".kept.lock"]
    done = run(place, "", 0, made)
    assert (done.returncode, done.stderr) == (0, b"")
    check(load(place, made, made_before=True), made)


def test_a_full_disk_leaves_nothing(tmp_path):
  full_at(tmp_path, [1000, 60 * 16 * 16 * 3 - 1])


@pytest.mark.soak
def test_a_disk_that_is_full_at_any_byte_leaves_nothing(tmp_path):
  full_at(tmp_path, range(0, 60 * 16 * 16 * 3, 4001))
