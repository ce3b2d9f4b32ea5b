"""Stored copies have the right pixels, and are complete or not there."""

import contextlib
import json
import os
import pathlib
import pickle
import shutil
import tempfile
import threading
import warnings

import numpy as np
import pytest
from copies import check, items, load, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from deepemd_jax.data import pixel_cache
from deepemd_jax.errors import InputError

NAMES = {"name": "them", "data_set": "folder"}


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


def test_copies_are_never_enlarged(tmp_path, monkeypatch):
  """A few images may be smaller than the copies, but not most of them.

  Copies that an older version has enlarged are refused, too.
  """
  sizes = [(9, 30)] * 3 + [(8, 20), (21, 5), (4, 4)]
  made = [
    pixel_cache.ImageFile(picture(i, *size), str(i))
    for i, size in enumerate(sizes)
  ]
  check(load(tmp_path / "kept", made, side=25), made, 25)
  message = "of 26 pixels would enlarge them: .* is 25; use folder:25"
  with pytest.raises(InputError, match=message):
    load(tmp_path / "larger", made, side=26)
  assert sorted(os.listdir(tmp_path)) == [".kept.lock", ".larger.lock", "kept"]
  with monkeypatch.context() as patch:
    patch.setattr(pixel_cache, "_refuse_enlargements", lambda *unused: None)
    load(tmp_path / "larger", made, side=26)
  with pytest.raises(InputError, match=message):
    load(tmp_path / "larger", made, side=26)
  with pytest.raises(InputError, match=r"is 4; use folder:original"):
    load(tmp_path / "small", made[-1:])


def test_pickled_copies_are_a_path(tmp_path):
  found = load(tmp_path / "kept", items(20)).pixels.only(np.arange(5, 15))
  content = pickle.dumps(found)
  assert len(content) < 1000
  again = pickle.loads(content)
  np.testing.assert_array_equal(again[np.arange(10)], found[np.arange(10)])
  shutil.rmtree(tmp_path / "kept")
  load(tmp_path / "kept", items(20, first=1))
  with pytest.raises(InputError, match="rewritten while it was in use"):
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
  made = [pixel_cache.ImageFile(b"not looked at", "x", "c", (7, 5))]
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
  assert errors.count("\n") == 1 and "they are made again" in errors
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
    short = pixel_cache.ImageFile(whole[: int(cut * len(whole))], "short")
    with pytest.raises(InputError, match="1 of 1 images of them cannot be"):
      load(place, [short])
    broken = bytearray(whole)
    for where, bits in flips:
      broken[int(where * (len(whole) - 1))] ^= bits
    # With a changed byte a picture may still be readable. No error other than
    # InputError may come.
    with contextlib.suppress(InputError), warnings.catch_warnings():
      warnings.simplefilter("ignore")
      load(place, [pixel_cache.ImageFile(bytes(broken), "broken")])


def test_all_bad_images_are_counted_and_ten_are_named(tmp_path):
  made = items(3)
  made += [
    pixel_cache.ImageFile(b"text" * (i % 2), f"bad{i:02d}") for i in range(13)
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
        tmp_path / "kept", broken, count=40, side=16, made_from="", **NAMES
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
      **NAMES,
    )


def test_one_thread_at_a_time_makes_them(tmp_path):
  """The other threads wait, and use the copies that it has made."""
  made, begun = items(40), []

  def make():
    begun.append(1)
    yield from made

  def run():
    results.append(
      pixel_cache.load(
        tmp_path / "kept", make, count=40, side=16, made_from="", **NAMES
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
