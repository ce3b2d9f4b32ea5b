"""Batches for tests of the loader.

The module imports little, because worker processes import it.
"""

import numpy as np


def batch(images, step):
  """Returns the rows, labels and pixels of a step."""
  rng = np.random.default_rng(step)
  rows = rng.integers(0, len(images.keys), 6)
  return {
    "rows": rows,
    "labels": images.labels[rows],
    "images": images.whole(rows, 24),
  }


def fail(step, at):
  """Returns the step, or raises if it is `at`."""
  if step == at:
    raise KeyError(f"step {step}")
  return step
