"""All devices of all processes in one row, and what lies where on it.

Episodes, or images, are split along their leading axis; everything else is on
every device. A count that the devices cannot share evenly is filled up with
repeats, whose results are dropped: what comes out does not depend on the number
of devices or processes, and no stage has to know it.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from deepemd_jax.distributed import runtime
from deepemd_jax.errors import InputError

AXIS = "data"


@functools.cache
def mesh() -> jax.sharding.Mesh:
  """The mesh: one axis, "data", process by process."""
  # In this order the part of a process is one piece; ids need not be.
  row = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  # Explicit axes, the default, fail on a vmapped loop.
  auto = (jax.sharding.AxisType.Auto,)
  return jax.sharding.Mesh(np.array(row), (AXIS,), axis_types=auto)


def replicated() -> NamedSharding:
  """The sharding of what every device has whole."""
  return NamedSharding(mesh(), P())


def batch_sharding() -> NamedSharding:
  """The sharding of what is split along its leading axis."""
  return NamedSharding(mesh(), P(AXIS))


def pad_to_devices(count: int) -> int:
  """`count`, filled up so that all devices get the same number."""
  return -(-count // jax.device_count()) * jax.device_count()


def describe_devices() -> str:
  """Such as "8 x TPU v5e, 2 processes"."""
  text = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
  if jax.process_count() > 1:
    text += f", {jax.process_count()} processes"
  return text


def local_indices(count: int) -> np.ndarray:
  """Which of 0..count-1 this process makes: int [n], the same n in each.

  All processes' together are 0..count-1, then repeats of the last one.
  """
  size = pad_to_devices(count) // jax.process_count()
  start = jax.process_index() * size
  return np.minimum(np.arange(start, start + size), count - 1)


def check_even(count: int, field: str) -> None:
  """Refuses a number of images a step that would have to be filled up, which
  would change what batch norm sees.

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
  """This process's share of a batch as part of the whole batch.

  Args:
    tree: arrays [n, ...], n as `local_indices` says.

  Returns:
    Arrays [count, ...], count rounded up, split over all devices.
  """
  # All processes call this right before they compute together.
  runtime.mark_progress()
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      batch_sharding(), np.asarray(x)
    ),
    tree,
  )


def local_rows(array: jax.Array) -> np.ndarray:
  """This process's rows of a sharded array: the opposite of `shard_batch`."""
  shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([np.asarray(shard.data) for shard in shards])


def replicate(tree):
  """Arrays that every process has, the same in each, on every device."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      replicated(), np.asarray(x), np.shape(x)
    ),
    tree,
  )


def shard_map_batch(function: Callable, whole: int = 0) -> Callable:
  """Lets every device run `function` on its part of a batch.

  No device waits for another inside it: loops end, and host callbacks are made,
  for each by itself.

  Args:
    function: of arrays [n, ...] and trees of them, any n; returns the like.
    whole: so many arguments in front are not split.

  Returns:
    The function of the whole batch; to be called under `jax.jit`.
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
