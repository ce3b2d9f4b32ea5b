"""Checks that processes with one core can solve transport problems.

    python one_core.py COUNT

The first process imports JAX and POT, and does not use them. Each other process
is a fork of it, and starts its own threads. The program prints how many of them
did not end within a minute.
"""

import os
import signal
import sys
import time

import jax
import numpy as np
import ot  # noqa: F401

from deepemd_jax import emd

LIMIT = 60  # seconds; a process usually takes two


def solve(native):
  """Solves a batch of DeepEMD's size three times, on one core."""
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  solver = emd.NetworkSimplex(native=native)
  cost = np.random.default_rng(0).random((8, 75, 5, 25, 25), np.float32)
  mass = np.full((8, 75, 5, 25), 1 / 25, np.float32)
  logits = jax.jit(jax.vmap(lambda c, x: emd.distance(c, x, x, solver)))
  for _ in range(3):
    logits(cost, mass).block_until_ready()


def ends(native):
  """Returns whether a process with one core ends successfully."""
  child = os.fork()
  if not child:
    try:
      solve(native)
      os._exit(0)
    finally:
      os._exit(1)
  for _ in range(10 * LIMIT):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
      return status == 0
    time.sleep(0.1)
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  return False


if __name__ == "__main__":
  numbers = range(int(sys.argv[1]))
  print(sum(not ends(False if number % 2 else None) for number in numbers))
