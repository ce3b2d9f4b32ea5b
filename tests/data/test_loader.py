"""Prefetching: the same results, in order, ahead of time, in threads."""

import threading
import time

import pytest

from deepemd_jax.data import loader


def test_results_come_in_order():
  def make(i):  # the later the faster
    time.sleep(0.002 * (i % 4 == 0))
    return i * i

  assert list(loader.prefetch(make, 5, 40)) == [i * i for i in range(5, 40)]
  assert list(loader.prefetch(make, 3, 3)) == []


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
  both = threading.Barrier(2, timeout=10)  # breaks unless two threads meet
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
