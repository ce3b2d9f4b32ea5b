"""The command line, but for process 1, which in the middle of training fails,
or hangs though it is alive, or in the middle of its second validation gets a
signal.

    python tests/failing.py fail|hang|signal FLAGS
"""

import itertools
import os
import signal
import sys
import time

import jax
from absl import app

from deepemd_jax import evaluate, main
from deepemd_jax.data import loader

kind = sys.argv.pop(1)
prefetch, score = loader.prefetch, evaluate.accuracies
calls = itertools.count(1)


def failing_prefetch(make, *arguments, **options):
  """As the original, up to a certain batch."""

  def batch(index):
    if index == 5 and jax.process_index() == 1 and kind != "signal":
      if kind == "fail":
        raise ValueError("a mistake of ours")
      time.sleep(3600)
    return make(index)

  return prefetch(batch, *arguments, **options)


def accuracies(*arguments):
  """As the original, once with a signal; twice a validation."""
  if jax.process_index() == 1 and next(calls) == 3 and kind == "signal":
    os.kill(os.getpid(), signal.SIGTERM)
  return score(*arguments)


loader.prefetch, evaluate.accuracies = failing_prefetch, accuracies
app.run(main.main, flags_parser=main._parse)
