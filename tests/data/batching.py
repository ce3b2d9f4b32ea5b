"""Batches for tests of the loader; light, for worker processes import it."""

import numpy as np


def batch(images, step):
  """A function of the step: rows, their labels and pixels."""
  rng = np.random.default_rng(step)
  rows = rng.integers(0, len(images.keys), 6)
  return {
    "rows": rows,
    "labels": images.labels[rows],
    "images": images.whole(rows, 24),
  }


def fail(step, at):
  """The step, unless it is `at`."""
  if step == at:
    raise KeyError(f"step {step}")
  return step
