"""Prefetching gives the same results in order, whoever computes them."""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time

import batching
import copies
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT

from deepemd_jax.data import loader, pixel_cache
from deepemd_jax.data.folder_source import Paths
from deepemd_jax.data.image_set import CachedImages, EncodedImages


def test_results_come_in_order():
  def make(i):  # later items take less time
    time.sleep(0.002 * (i % 4 == 0))
    return i * i

  assert list(loader.prefetch(make, 5, 40)) == [i * i for i in range(5, 40)]
  assert list(loader.prefetch(make, 3, 3)) == []


def test_items_keep_their_order_and_few_are_held():
  window = 4 * (os.cpu_count() or 1)
  taken, done = [], []

  def items():
    for i in range(5 * window):
      taken.append(i)
      yield i

  def work(i):  # later items take less time
    time.sleep(0.002 * (i % 4 == 0))
    return i * i

  for i, square in loader.in_order(work, items()):
    assert square == i * i
    done.append(i)
    assert len(taken) - len(done) <= window
  assert done == taken == list(range(5 * window))
  with pytest.raises(ZeroDivisionError):
    list(loader.in_order(lambda i: 1 // i, [1, 0, 1]))


def test_an_exception_comes_out_where_it_belongs():
  def make(i):
    if i == 3:
      raise KeyError("step 3")
    return i

  results = loader.prefetch(make, 0, 10)
  assert [next(results) for _ in range(3)] == [0, 1, 2]
  with pytest.raises(KeyError, match="step 3"):
    next(results)


def test_two_are_made_at_once():
  both = threading.Barrier(2, timeout=10)  # fails unless two threads meet
  results = loader.prefetch(lambda i: both.wait() >= 0, 0, 6)
  assert all(results)


def test_it_works_ahead_but_not_further_than_the_buffer():
  made = []

  def make(i):
    made.append(i)
    return i

  results = loader.prefetch(make, 0, 1000, threads=1, buffer=4)
  next(results)
  deadline = time.monotonic() + 10
  while len(made) < 5 and time.monotonic() < deadline:
    time.sleep(0.01)
  time.sleep(0.1)
  assert 5 <= len(made) <= 8
  results.close()


def test_leaving_early_leaves_no_threads():
  before = threading.active_count()
  results = loader.prefetch(lambda i: i, 0, 1000)
  next(results)
  assert threading.active_count() > before
  results.close()
  deadline = time.monotonic() + 10
  while threading.active_count() > before and time.monotonic() < deadline:
    time.sleep(0.01)
  assert threading.active_count() <= before


@settings(deadline=None, max_examples=30)
@given(
  start=st.integers(0, 20),
  length=st.integers(0, 20),
  hosts=st.sampled_from([1, 2, 3, 4]),
)
def test_hosts_share_the_indices(start, length, hosts):
  """The shares of all hosts together are the stream, after any restart."""
  stop = start + length
  shares = [
    list(loader.prefetch(lambda i: i, start, stop, shard=(host, hosts)))
    for host in range(hosts)
  ]
  for host, share in enumerate(shares):
    assert all(i % hosts == host for i in share)
    assert share == sorted(share)
  assert sorted(sum(shares, [])) == list(range(start, stop))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Copies in a memory map: 6 classes of 8 images."""
  from PIL import Image

  root = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  items = []
  for i in range(48):
    pixels = rng.integers(0, 256, (int(rng.integers(20, 40)), 30, 3), np.uint8)
    path = str(root / f"{i}.png")
    Image.fromarray(pixels).save(path)
    items.append(pixel_cache.ImageFile(path, str(i)))
  found = copies.load(root / "kept", items, side=24)
  return CachedImages(
    images=found.pixels,
    labels=np.repeat(np.arange(6), 8).astype(np.int32),
    class_names=tuple("abcdef"),
    keys=found.keys,
    sizes=found.sizes,
  )


@pytest.fixture(scope="module")
def encoded(images):
  """The same images, which are decoded when they are read."""
  known = {
    field.name: getattr(images, field.name)
    for field in dataclasses.fields(images)
    if field.name != "images"
  }
  root = pathlib.Path(images.images._path).parent.parent
  return EncodedImages(
    files=Paths(tuple(str(root / f"{i}.png") for i in range(48))), **known
  )


def same(first, second):
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize(
  "workers",
  [
    pytest.param(1, marks=pytest.mark.soak),  # as in the next test
    2,
    pytest.param(4, marks=pytest.mark.soak),
  ],
)
def test_the_stream_is_the_same_with_workers(images, workers):
  make = functools.partial(batching.batch, images)
  alone = list(loader.prefetch(make, 0, 9))
  for found, expected in zip(alone, map(make, range(9)), strict=True):
    same(found, expected)
  found = list(loader.prefetch(make, 0, 9, workers=workers))
  for one, other in zip(found, alone, strict=True):
    same(one, other)


def test_workers_decode_images_and_end_when_they_are_left(encoded):
  make = functools.partial(batching.batch, encoded)
  results = loader.prefetch(make, 4, 1000, workers=1)
  for step in range(4, 7):
    same(next(results), make(step))
  assert multiprocessing.active_children()
  results.close()
  assert not multiprocessing.active_children()


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_stream_is_the_same_with_hosts(images, hosts):
  """The run may start again at any step."""
  make = functools.partial(batching.batch, images)
  for start in range(0, 9, 2):
    found = {}
    for host in range(hosts):
      share = loader.prefetch(make, start, 9, shard=(host, hosts))
      mine = [i for i in range(start, 9) if i % hosts == host]
      found |= dict(zip(mine, share, strict=True))
    for step in range(start, 9):
      same(found[step], make(step))


@pytest.mark.soak
@pytest.mark.parametrize(("workers", "hosts"), [(1, 4), (4, 2)])
def test_hosts_with_workers_after_any_restart(images, workers, hosts):
  make = functools.partial(batching.batch, images)
  for start in (0, 5):
    for host in range(hosts):
      mine = [i for i in range(start, 9) if i % hosts == host]
      share = loader.prefetch(
        make, start, 9, workers=workers, shard=(host, hosts)
      )
      for step, found in zip(mine, share, strict=True):
        same(found, make(step))


def test_images_travel_without_their_pixels(images, encoded):
  """Pickled images are small, and give the same batches."""
  for each in (images, encoded):
    content = pickle.dumps(each)
    assert len(content) < images.images.shape[0] * 24 * 24 * 3 / 5
    again = pickle.loads(content)
    same(batching.batch(each, 5), batching.batch(again, 5))


def test_an_exception_in_a_worker_comes_out():
  make = functools.partial(batching.fail, at=2)
  results = loader.prefetch(make, 0, 10, workers=1)
  assert [next(results) for _ in range(2)] == [0, 1]
  with pytest.raises(KeyError, match="step 2"):
    next(results)


# A program that prints the ids of its workers and then stops in some way.
PROGRAM = """
import multiprocessing, sys, time
from deepemd_jax.data import loader
def make(i):
  return i
def main():
  results = loader.prefetch(make, 0, 1000, workers=int(sys.argv[2]))
  try:
    found = [next(results) for _ in range(4)]
    pids = [process.pid for process in multiprocessing.active_children()]
    print(found, *pids, flush=True)
    if sys.argv[1] == "wait":
      time.sleep(60)
    if sys.argv[1] == "fail":
      raise KeyError("here")
  except KeyboardInterrupt:
    print(next(results), flush=True)  # the step that was under way
if __name__ == "__main__":
  main()
"""


def alive(pid):
  with contextlib.suppress(OSError):
    os.kill(pid, 0)
    return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
  return False


@pytest.mark.parametrize(
  ("how", "number", "code", "workers"),
  [
    ("wait", signal.SIGINT, 0, 1),
    ("wait", signal.SIGKILL, -signal.SIGKILL, 1),
    pytest.param("leave", None, 0, 2, marks=pytest.mark.soak),
    pytest.param("wait", signal.SIGINT, 0, 2, marks=pytest.mark.soak),
    pytest.param("fail", None, 1, 2, marks=pytest.mark.soak),
  ],
)
def test_no_process_is_left_behind(tmp_path, how, number, code, workers):
  """The program leaves early, is killed, or its group gets Ctrl-C."""
  (tmp_path / "program.py").write_text(PROGRAM)
  process = subprocess.Popen(
    [sys.executable, str(tmp_path / "program.py"), how, str(workers)],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  first = process.stdout.readline()
  assert first.startswith("[0, 1, 2, 3] "), process.communicate()
  pids = [int(pid) for pid in first.partition("] ")[2].split()]
  assert len(pids) == workers
  if number == signal.SIGINT:
    os.killpg(process.pid, number)
  elif number:
    process.send_signal(number)
  out, errors = process.communicate(timeout=30)
  assert process.returncode == code, errors
  if code == 0:
    assert (out, errors) == ("4\n" * (how == "wait"), "")
  deadline = time.monotonic() + 10
  while any(map(alive, pids)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(alive, pids))
