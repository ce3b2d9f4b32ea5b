"""The command line, but one process fails in the middle of training, or hangs
though it is alive, or gets a signal in the middle of its second validation, or
right after its first checkpoint.

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
  """Whether this is the victim's call of that number, from 1."""
  return jax.process_index() == victim and next(calls) == number


def fail_or_hang(make, *arguments, **options):
  """Prefetches batches, up to a certain one."""

  def batch(index):
    if index == 3 and jax.process_index() == victim:
      if kind == "fail":
        raise ValueError("a mistake of ours")
      time.sleep(3600)
    return make(index)

  return prefetch(batch, *arguments, **options)


def save_then_signal(*arguments, **options):
  """Saves, and gives all processes time to hear of the signal."""
  save(*arguments, **options)
  if is_victim(1):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(4)


def signal_then_score(*arguments, **options):
  """A validation scores twice, once for each head."""
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
