"""A mesh of all devices of all processes, and the layout of arrays on it.

Batches of episodes or images are split along their leading axis; all other
arrays are on every device. A batch that the devices cannot share evenly is
padded with repeats, whose results are dropped. So results do not depend on the
number of devices or processes, and no stage needs to know it.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from deepemd_jax.errors import InputError

AXIS = "data"


@functools.cache
def mesh() -> jax.sharding.Mesh:
  """Returns the mesh of all devices of all processes.

  It has one axis, "data". The devices of a process are next to each other, so
  that each process holds one contiguous part of a batch.
  """
  # In this order, each process has one piece of a batch. The order of the IDs
  # alone may be another.
  row = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  # Explicit axes, the default, fail on a vmapped loop.
  auto = (jax.sharding.AxisType.Auto,)
  return jax.sharding.Mesh(np.array(row), (AXIS,), axis_types=auto)


def replicated() -> NamedSharding:
  """Returns the sharding of an array of which every device has a copy."""
  return NamedSharding(mesh(), P())


def batch_sharding() -> NamedSharding:
  """Returns the sharding of an array that is split along its leading axis."""
  return NamedSharding(mesh(), P(AXIS))


def pad_to_devices(count: int) -> int:
  """Returns the smallest multiple of the number of devices that is >= count."""
  return -(-count // jax.device_count()) * jax.device_count()


def describe_devices() -> str:
  """Describes the devices, such as "8 x TPU v5e, 2 processes"."""
  text = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
  if jax.process_count() > 1:
    text += f", {jax.process_count()} processes"
  return text


def local_indices(count: int) -> np.ndarray:
  """Returns the indices of the elements of a batch that this process makes.

  Args:
    count: number of elements of the batch.

  Returns:
    int [n], within 0..count-1, with the same n in each process. Together, all
    processes have 0..count-1, and then repeats of the last element.
  """
  size = pad_to_devices(count) // jax.process_count()
  start = jax.process_index() * size
  return np.minimum(np.arange(start, start + size), count - 1)


def check_even(count: int, field: str) -> None:
  """Raises an error if a batch of images would need padding, because batch norm
  would see the repeats.

  Args:
    count: images per step.
    field: the field of the config with this number.

  Raises:
    InputError: the devices cannot share `count` evenly.
  """
  n = jax.device_count()
  if count % n:
    below = f"{count // n * n} or " * (count > n)
    raise InputError(
      f"config.{field} is {count}, which {n} devices cannot share evenly; use "
      f"{below}{pad_to_devices(count)}"
    )


def shard_batch(tree):
  """Joins the parts of a batch that the processes have made.

  Args:
    tree: arrays [n, ...], this process's elements; see `local_indices`.

  Returns:
    Arrays [`pad_to_devices`(count), ...], split over all devices.
  """
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      batch_sharding(), np.asarray(x)
    ),
    tree,
  )


def local_rows(array: jax.Array) -> np.ndarray:
  """Returns this process's rows of a sharded array, as the inverse of
  `shard_batch`: [b, ...] -> [b / processes, ...]."""
  shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([np.asarray(shard.data) for shard in shards])


def replicate(tree):
  """Puts arrays that are the same in every process on every device."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      replicated(), np.asarray(x), np.shape(x)
    ),
    tree,
  )


def shard_map_batch(function: Callable, whole: int = 0) -> Callable:
  """Makes every device run `function` on its part of a batch.

  No device waits for another inside `function`: each ends its loops and makes
  its host callbacks independently.

  Args:
    function: a function of arrays [n, ...] and trees of them, for any n, that
      returns such arrays.
    whole: the number of leading arguments that every device gets whole.

  Returns:
    The function of a whole batch. Call it under `jax.jit`.
  """

  def on_all(*arguments):
    specs = [P()] * whole + [P(AXIS)] * (len(arguments) - whole)
    return jax.shard_map(
      function,
      mesh=mesh(),
      in_specs=tuple(specs),
      out_specs=P(AXIS),
      check_vma=False,  # loops of third-party solvers do not pass it
    )(*arguments)

  return on_all
