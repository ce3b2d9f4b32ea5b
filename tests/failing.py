"""The command line, but for process 1, which in the middle of meta-training
fails, or hangs though it is alive, or in the middle of its second validation
gets a signal.

    python tests/failing.py fail|hang|signal FLAGS
"""

import itertools
import os
import signal
import sys
import time

import jax
from absl import app

from deepemd_jax import evaluate, main, metatrain

kind = sys.argv.pop(1)
draw, score = metatrain._batch, evaluate.accuracies
calls = itertools.count(1)


def batch(*arguments):
  """As the original, up to a certain step."""
  here = arguments[-1] == 5 and jax.process_index() == 1
  if here and kind != "signal":
    if kind == "fail":
      raise ValueError("a mistake of ours")
    time.sleep(3600)
  return draw(*arguments)


def accuracies(*arguments):
  """As the original, once with a signal; twice a validation."""
  if jax.process_index() == 1 and next(calls) == 3 and kind == "signal":
    os.kill(os.getpid(), signal.SIGTERM)
  return score(*arguments)


metatrain._batch, evaluate.accuracies = batch, accuracies
app.run(main.main, flags_parser=main._parse)
