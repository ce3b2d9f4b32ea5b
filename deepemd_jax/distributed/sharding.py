"""One mesh of all devices of all processes, and how arrays are laid out on it.

Batches of episodes or images are split along their leading axis; everything
else is on every device. A batch that the devices cannot share evenly is padded
with repeats, and their results are dropped. So results do not depend on the
number of devices or processes, and no stage has to know it.
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
  # So ordered, each process has one piece of a batch. Ids need not be so.
  row = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  # Explicit axes, the default, fail on a vmapped loop.
  auto = (jax.sharding.AxisType.Auto,)
  return jax.sharding.Mesh(np.array(row), (AXIS,), axis_types=auto)


def replicated() -> NamedSharding:
  """The sharding of an array that every device has a copy of."""
  return NamedSharding(mesh(), P())


def batch_sharding() -> NamedSharding:
  """The sharding of an array that is split along its leading axis."""
  return NamedSharding(mesh(), P(AXIS))


def pad_to_devices(count: int) -> int:
  """The smallest multiple of the number of devices that is at least `count`."""
  return -(-count // jax.device_count()) * jax.device_count()


def describe_devices() -> str:
  """For people, such as "8 x TPU v5e, 2 processes"."""
  text = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
  if jax.process_count() > 1:
    text += f", {jax.process_count()} processes"
  return text


def local_indices(count: int) -> np.ndarray:
  """Which elements of a batch this process makes.

  Args:
    count: elements of the batch.

  Returns:
    int [n], of 0..count-1, with the same n in each process. All processes'
    together are 0..count-1, and then repeats of the last one.
  """
  size = pad_to_devices(count) // jax.process_count()
  start = jax.process_index() * size
  return np.minimum(np.arange(start, start + size), count - 1)


def check_even(count: int, field: str) -> None:
  """Refuses a number of images a step that would need padding, because batch
  norm would see the repeats.

  Args:
    count: images a step.
    field: of the config that says so.

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
  """Joins what each process has made of a batch.

  Args:
    tree: arrays [n, ...], this process's elements, as `local_indices` says.

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
  """Undoes `shard_batch`: [b, ...] -> [b / processes, ...], this process's rows
  of a sharded array."""
  shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([np.asarray(shard.data) for shard in shards])


def replicate(tree):
  """Puts arrays, which are the same in every process, on every device."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      replicated(), np.asarray(x), np.shape(x)
    ),
    tree,
  )


def shard_map_batch(function: Callable, whole: int = 0) -> Callable:
  """Lets every device run `function` on its part of a batch.

  No device waits for another inside `function`: each ends its loops, and makes
  its host callbacks, by itself.

  Args:
    function: takes arrays [n, ...] and trees of them, for any n, and returns
      such arrays.
    whole: how many of the first arguments every device gets whole.

  Returns:
    The same function of a whole batch. Call it under `jax.jit`.
  """

  def on_all(*arguments):
    specs = [P()] * whole + [P(AXIS)] * (len(arguments) - whole)
    return jax.shard_map(
      function,
      mesh=mesh(),
      in_specs=tuple(specs),
      out_specs=P(AXIS),
      check_vma=False,  # loops of other people's solvers do not pass it
    )(*arguments)

  return on_all
