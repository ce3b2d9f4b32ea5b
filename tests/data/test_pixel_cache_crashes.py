"""After a kill or on a full disk, stored copies are complete or not there."""

import contextlib
import itertools
import os
import signal

import crashes
import forked
import numpy as np
import pytest
from copies import MadeAgain, check, items, load


def killed_at(tmp_path, moments):
  """Kills a process; copies are complete, or the next process makes them."""
  made, before, ended = items(60), items(60, first=5), []
  for moment, there in itertools.product(moments, (False, True)):
    place = tmp_path / f"{moment}{there}" / "kept"
    if there:  # copies of other images
      load(place, before, made_from="others")
    code, _, errors = forked.run(
      crashes.make_copies_until_killed, place, made, moment
    )
    assert code in (0, -signal.SIGKILL), errors
    ended.append(code)
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
    code, _, errors = forked.run(
      crashes.make_copies_on_a_full_disk, place, made, limit
    )
    assert code == 1, errors
    assert errors.startswith(f"error: cannot write copies of them to {place}")
    assert errors.count("\n") == 1 and "config.data.directory" in errors
    assert os.listdir(place.parent) == [".kept.lock"]
    check(load(place, made), made)


def test_a_full_disk_leaves_nothing(tmp_path):
  full_at(tmp_path, [1000, 60 * 16 * 16 * 3 - 1])


@pytest.mark.soak
def test_a_disk_that_is_full_at_any_byte_leaves_nothing(tmp_path):
  full_at(tmp_path, range(0, 60 * 16 * 16 * 3, 4001))
