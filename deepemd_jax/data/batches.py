"""Shuffled minibatches of one epoch after the other."""

import functools

import numpy as np

from deepemd_jax.errors import InputError


class ShuffledBatches:
  """`batches(step) -> int32 [batch_size]` rows: a pure function of the step.

  Each epoch is its own permutation; the rows that do not fill a batch are left
  out of that epoch.

  Attributes:
    steps_per_epoch: batches in an epoch.
  """

  def __init__(self, n: int, batch_size: int, seed: int) -> None:
    """Shuffles `n` rows.

    Raises:
      InputError: there are fewer rows than a batch needs.
    """
    if n < batch_size:
      raise InputError(
        f"a batch takes {batch_size} images, but there are {n}; lower "
        f"config.pretrain.batch_size to {n} or less"
      )
    self.steps_per_epoch = n // batch_size
    self._size, self._n, self._seed = batch_size, n, seed

  def __call__(self, step: int) -> np.ndarray:
    """The rows of step `step`, counted from 0 over all epochs."""
    epoch, index = divmod(step, self.steps_per_epoch)
    start = index * self._size
    rows = _permutation(self._n, self._seed, epoch)[start : start + self._size]
    return rows.astype(np.int32)


@functools.lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
  """Of one epoch; this and the next are asked for again and again."""
  return np.random.default_rng([seed, epoch]).permutation(n)
