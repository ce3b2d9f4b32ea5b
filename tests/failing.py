"""Runs the command line, and makes one process fail.

The process raises an error in the middle of training (`fail`), stops making
progress (`hang`), or gets a signal: in the middle of its second validation
(`signal`), or right after its first checkpoint (`saved`).

    python tests/failing.py fail|hang|signal|saved PROCESS FLAGS
"""

import itertools
import os
import pathlib
import signal
import sys
import time

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from deepemd_jax import main  # noqa: E402
from deepemd_jax.checkpoints.manager import Checkpoints  # noqa: E402
from deepemd_jax.data import loader  # noqa: E402
from deepemd_jax.evaluation.episodes import EpisodeScorer  # noqa: E402

kind, victim = sys.argv.pop(1), int(sys.argv.pop(1))
calls = itertools.count(1)


def is_victim(number):
  """Whether this process is the victim, and this is its call of that number."""
  return jax.process_index() == victim and next(calls) == number


def fail_or_hang(make, *arguments, **options):
  """Prefetches batches, and fails or hangs at a certain batch."""

  def batch(index):
    if index == 3 and jax.process_index() == victim:
      if kind == "fail":
        raise ValueError("a mistake of ours")
      time.sleep(3600)
    return make(index)

  return prefetch(batch, *arguments, **options)


def save_then_signal(*arguments, **options):
  """Saves, sends the signal, and gives all processes time to receive it."""
  save(*arguments, **options)
  if is_victim(1):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(4)


def signal_then_score(*arguments, **options):
  """Sends the signal in the second validation; each validation scores twice."""
  if is_victim(3):
    os.kill(os.getpid(), signal.SIGTERM)
  return score(*arguments, **options)


prefetch, save = loader.prefetch, Checkpoints.save
score = EpisodeScorer.__call__
if kind == "saved":
  Checkpoints.save = save_then_signal
elif kind == "signal":
  EpisodeScorer.__call__ = signal_then_score
else:
  loader.prefetch = fail_or_hang
main.entry()
