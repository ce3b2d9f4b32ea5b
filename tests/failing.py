"""The command line, but for process 1, which in the middle of meta-training
fails, or hangs though it is alive.

    python tests/failing.py fail|hang FLAGS
"""

import sys
import time

import jax
from absl import app

from deepemd_jax import main, metatrain

kind = sys.argv.pop(1)
draw = metatrain._batch


def batch(*arguments):
  """As the original, up to a certain step."""
  if arguments[-1] == 5 and jax.process_index() == 1:
    if kind == "fail":
      raise ValueError("a mistake of ours")
    time.sleep(3600)
  return draw(*arguments)


metatrain._batch = batch
app.run(main.main, flags_parser=main._parse)
