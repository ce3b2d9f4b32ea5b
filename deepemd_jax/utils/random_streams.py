"""Random streams with names: every draw of a run says what it is for.

A stream is a pure function of the run's seed, its name, and numbers such as a
step or an episode, so it can be drawn again after a restart and by any process.
No two streams coincide: what seeds one has its name, and how many numbers
follow. (NumPy pads a list of seeds with zeros, so that [seed, 2, 0] would be
[seed, 2].)
"""

import enum

import numpy as np

# config.json keeps it: a run goes on only with the draws that it began with.
# Version 1 has lists of seeds without names.
VERSION = 2


class Stream(enum.IntEnum):
  """What is drawn. A number is never used for something else."""

  BACKBONE = 1  # fresh parameters
  CLASSIFIER = 2  # fresh parameters of pre-training's linear layer
  CLASS_SPLIT = 3  # of a user's folder into training, validation and test
  SHUFFLE = 4  # the images of an epoch; number: the epoch
  PRETRAIN_CROPS = 5  # number: the step
  EPISODE = 6  # its images; numbers: of the split's name, and the episode's
  METATRAIN_CROPS = 7  # number: the step
  TEST_CROPS = 8  # number: the image's row, and the episode's if it redraws
  IMAGE_CROPS = 9  # of a user's image; number: of its pixels
  SFC_ORDER = 10  # of the support images; number: the episode's
  QUERIES = 11  # the images that ask in retrieval
  PICTURES = 12  # the queries that are drawn in a figure
  ADAPT_IMAGES = 13  # those of a class that are learned from; number: it has
  ADAPT_CHANNELS = 14  # that an episode goes without


def stream(seed: int, name: Stream, *numbers: int) -> np.random.Generator:
  """The random numbers of one use.

  Args:
    seed: of the run.
    name: of the use.
    *numbers: which one of its draws, each >= 0.
  """
  key = (int(name), len(numbers), *(int(number) for number in numbers))
  return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def random_key(seed: int, name: Stream, *numbers):
  """A key of JAX for one use, a function of the same; numbers may be traced."""
  import jax  # NumPy alone draws most of the streams

  # Of the seed JAX takes 32 bits, or 64 where float64 is enabled.
  result = jax.random.fold_in(jax.random.key(seed % 2**32), int(name))
  for number in numbers:
    result = jax.random.fold_in(result, number)
  return result
