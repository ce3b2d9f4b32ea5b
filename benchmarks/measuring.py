"""Clocks and inputs that the benchmarks share.

The clocks wait for the end of each call on a device. They do not count the
first call, which compiles.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from deepemd_jax.models import backbone
from deepemd_jax.models.backbone import Backbone
from deepemd_jax.utils import files

_GROUP = 5  # number of classes per random generator


def synthetic_nodes(
  way: int, images: int, n: int, channels: int, seed: int = 0
) -> jax.Array:
  """Returns random nodes of images, after a leaky ReLU.

  Some nodes of the images of a class have a common part.

  Args:
    way: number of classes.
    images: number of images per class.
    n: number of nodes of an image.
    channels: number of channels of a node.
    seed: seed of the first five classes; each further five take the next.

  Returns:
    float32 [way, images, n, channels].
  """
  parts = []
  for group in range(-(-way // _GROUP)):
    rng = np.random.default_rng(seed + group)
    shared = rng.standard_normal((_GROUP, 1, 1, channels))
    own = rng.standard_normal((_GROUP, images, n, channels))
    mixed = 0.6 * shared * (rng.random((_GROUP, images, n, 1)) < 0.4) + own
    parts.append(np.where(mixed > 0, mixed, 0.1 * mixed))
  return jnp.asarray(np.concatenate(parts)[:way], jnp.float32)


@functools.cache
def tiny_backbone() -> Backbone:
  """Returns a backbone for `--smoke`, as a ResNet-12 takes seconds to compile.

  The backbone averages patches and maps their colors to eight channels.
  """
  stride, channels = 16, 8

  def init(key):
    kernel = jax.random.normal(key, (3, channels))
    return {"params": kernel, "batch_stats": jnp.zeros(channels)}

  def apply(variables, images, *, train):
    *batch, height, width, colors = images.shape
    h, w = height // stride, width // stride
    patches = images.reshape(*batch, h, stride, w, stride, colors)
    maps = patches.mean((-4, -2)) @ variables["params"]
    mean = maps.mean((-4, -3, -2))
    return maps, mean if train else variables["batch_stats"]

  usual = backbone.create("resnet12")
  return dataclasses.replace(
    usual, init=init, apply=apply, stride=stride, channels=channels
  )


def least_seconds(call: Callable, repeats: int) -> float:
  """Returns the seconds of the fastest of `repeats` calls."""
  jax.block_until_ready(call())
  return min(_seconds(call) for _ in range(repeats))


def median_seconds(work: dict[str, Callable], turns: int) -> dict[str, float]:
  """Returns the median seconds of each call in `work`.

  The calls take turns, so that other work on the machine affects all of them.
  """
  for call in work.values():
    jax.block_until_ready(call())
  seconds: dict[str, list[float]] = {name: [] for name in work}
  for _ in range(turns):
    for name, call in work.items():
      seconds[name].append(_seconds(call))
  return {name: float(np.median(each)) for name, each in seconds.items()}


def _seconds(call: Callable) -> float:
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def step_seconds(step: Callable, state, batch, repeats: int) -> float:
  """Returns the seconds of a training step, which consumes its state."""
  kept = [state]

  def call():
    kept[0], metrics = step(kept[0], batch)
    return metrics

  return least_seconds(call, repeats)


def cpu_seconds(make: Callable[[int], object], repeats: int) -> float:
  """Returns the CPU seconds to make a batch, of all threads together."""
  make(0)
  start = time.process_time()
  for step in range(1, repeats + 1):
    make(step)
  return (time.process_time() - start) / repeats


def compile_and_count(function, *arguments) -> tuple[Callable, dict]:
  """Compiles a jitted function and counts the cost of one call.

  XLA counts the body of a loop only once. It does not count the work of a host
  callback or a kernel.

  Returns:
    The compiled function, and its "gflop", "gbyte" (read and written),
    "argument_mb" and "temporary_mb" (memory beside the arguments).
  """
  compiled = function.lower(*arguments).compile()
  memory = compiled.memory_analysis()
  counts = compiled.cost_analysis()
  return compiled, {
    "gflop": counts["flops"] / 1e9,
    "gbyte": counts["bytes accessed"] / 1e9,
    "argument_mb": memory.argument_size_in_bytes / 1e6,
    "temporary_mb": memory.temp_size_in_bytes / 1e6,
  }


def gradient(function: Callable) -> Callable:
  """Returns the jitted gradient of the sum of all values to all arguments."""

  def total(arguments):
    return sum(x.sum() for x in jax.tree.leaves(function(*arguments)))

  return jax.jit(lambda *arguments: jax.grad(total)(arguments))


@functools.cache
def matrix_peak(precision: str, side: int = 0) -> float:
  """Returns the FLOP/s that a matrix product reaches at JAX's own precision.

  Args:
    precision: the type of the matrices, such as "float32".
    side: side of the square matrices; 0 chooses one for this platform.
  """
  side = side or (1024 if jax.default_backend() == "cpu" else 8192)
  x = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(precision))
  product = jax.jit(jnp.matmul)
  return 2 * side**3 / least_seconds(lambda: product(x, x), 10)


def write_json(path: str | None, rows) -> None:
  """Writes rows to a JSON file; does nothing without a path."""
  if path:
    files.write(path, json.dumps(rows, indent=2))
