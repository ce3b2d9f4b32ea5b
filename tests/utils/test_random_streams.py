"""Every use has its own random numbers, which are the same each time."""

import itertools

import jax
import numpy as np

from deepemd_jax.utils.random_streams import Stream, random_key, stream

NUMBERS = ((), (0,), (0, 0), (1,), (0, 1), (1, 0), (2**40,))


def test_no_two_streams_coincide():
  """Zeros at the end of numbers count, unlike in NumPy's seeds."""
  first = {
    (seed, name, numbers): stream(seed, name, *numbers).integers(2**62)
    for seed, name, numbers in itertools.product((0, 1), Stream, NUMBERS)
  }
  assert len(set(first.values())) == len(first)


def test_a_stream_is_a_pure_function():
  for name in Stream:
    one, other = (stream(3, name, 5).random(4) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_keys_of_jax_differ_as_streams_do():
  names = Stream.BACKBONE, Stream.CLASSIFIER, Stream.SFC_ORDER
  keys = [
    tuple(jax.random.key_data(random_key(seed, name, *numbers)).tolist())
    for seed, name, numbers in itertools.product(
      (0, 1), names, ((), (1,), (2,))
    )
  ]
  assert len(set(keys)) == len(keys)
  traced = jax.jit(lambda number: random_key(1, Stream.SFC_ORDER, number))(2)
  assert tuple(jax.random.key_data(traced).tolist()) == keys[-1]
