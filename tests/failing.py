"""The command line, but for one process, which in the middle of training fails,
or hangs though it is alive, or gets a signal in the middle of its second
validation, or right after its first checkpoint.

    python tests/failing.py fail|hang|signal|saved PROCESS FLAGS
"""

import itertools
import os
import signal
import sys
import time

import jax

from deepemd_jax import main
from deepemd_jax.checkpoints import manager
from deepemd_jax.data import loader
from deepemd_jax.evaluation import fewshot

kind, victim = sys.argv.pop(1), int(sys.argv.pop(1))
prefetch, score = loader.prefetch, fewshot.accuracies
keep = manager.Checkpoints.save
calls = itertools.count(1)


def failing_prefetch(make, *arguments, **options):
  """As the original, up to a certain batch."""

  def batch(index):
    if index == 5 and jax.process_index() == victim:
      if kind == "fail":
        raise ValueError("a mistake of ours")
      if kind == "hang":
        time.sleep(3600)
    return make(index)

  return prefetch(batch, *arguments, **options)


def accuracies(*arguments):
  """As the original, once with a signal; twice a validation."""
  if jax.process_index() == victim and kind == "signal" and next(calls) == 3:
    os.kill(os.getpid(), signal.SIGTERM)
  return score(*arguments)


def save(*arguments, **options):
  """As the original, once with a signal, and time for all to hear of it."""
  keep(*arguments, **options)
  if jax.process_index() == victim and kind == "saved" and next(calls) == 1:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(4)


loader.prefetch, fewshot.accuracies = failing_prefetch, accuracies
manager.Checkpoints.save = save
main.entry()
