"""Random streams with names, which state the purpose of every draw of a run.

A stream is a pure function of the run's seed, its name, and numbers such as a
step or an episode. So it can be drawn again after a restart and by any process.
No two streams coincide, because the key of a stream contains its name and the
count of its numbers. (NumPy pads a list of seeds with zeros, so that
[seed, 2, 0] would equal [seed, 2].)
"""

import enum

import numpy as np

# The version of the draws. config.json stores it, because a run continues only
# with the draws that it began with. Version 1 has lists of seeds without names.
VERSION = 2


class Stream(enum.IntEnum):
  """The purpose of a draw. A number is never used for another purpose."""

  BACKBONE = 1  # fresh parameters
  CLASSIFIER = 2  # fresh parameters of pre-training's linear layer
  CLASS_SPLIT = 3  # a user's folder into training, validation and test
  SHUFFLE = 4  # the images of an epoch; number: the epoch
  PRETRAIN_CROPS = 5  # number: the step
  EPISODE = 6  # the images of an episode; numbers: the split and the episode
  METATRAIN_CROPS = 7  # number: the step
  TEST_CROPS = 8  # numbers: the image's row, and the episode if it redraws
  IMAGE_CROPS = 9  # crops of a user's image; number: made of its pixels
  SFC_ORDER = 10  # the order of the support images; number: the episode
  QUERIES = 11  # the query images of retrieval
  PICTURES = 12  # the queries that are drawn in a figure
  ADAPT_IMAGES = 13  # the images of a class to learn from; number: their count
  ADAPT_CHANNELS = 14  # the channels that an episode leaves out


def stream(seed: int, name: Stream, *numbers: int) -> np.random.Generator:
  """Returns the random generator for one purpose.

  Args:
    seed: seed of the run.
    name: the purpose.
    *numbers: numbers of the draw, such as a step, each >= 0.
  """
  key = (int(name), len(numbers), *(int(number) for number in numbers))
  return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def random_key(seed: int, name: Stream, *numbers):
  """Returns a JAX key for one purpose.

  It depends on the arguments as `stream` does, but numbers may be traced.
  """
  import jax  # most of the streams need only NumPy

  # JAX takes 32 bits of a seed, or 64 if float64 is enabled.
  result = jax.random.fold_in(jax.random.key(seed % 2**32), int(name))
  for number in numbers:
    result = jax.random.fold_in(result, number)
  return result
