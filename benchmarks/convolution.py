"""Is the convolution's own weight gradient worth having? ResNet-12's layers.

    python -m benchmarks.convolution            # table, JSON on request
    python -m benchmarks.convolution --smoke    # one small layer, for CI

Prints, for each 3x3 layer of a ResNet-12, the time of the weight gradient as
XLA's convolution and as one matrix product per tap, interleaved in one run.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from deepemd_jax.models import convolution, resnet12


def measure(functions: dict, arguments, repeats: int) -> dict[str, float]:
  """Median seconds of each function, interleaved."""
  compiled = {name: jax.jit(f) for name, f in functions.items()}
  for f in compiled.values():
    jax.block_until_ready(f(*arguments))
  seconds: dict[str, list] = {name: [] for name in functions}
  for _ in range(repeats):
    for name, f in compiled.items():
      began = time.perf_counter()
      jax.block_until_ready(f(*arguments))
      seconds[name].append(time.perf_counter() - began)
  return {name: float(np.median(spent)) for name, spent in seconds.items()}


def layers(width: float, size: int):
  """(side, channels in, channels out) of the 3x3 convolutions."""
  before = 3
  for channels in resnet12.channels_for(width):
    yield size, before, channels
    yield size, channels, channels
    before, size = channels, size // 2


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--width", type=float, default=0.25)
  parser.add_argument("--size", type=int, default=64)
  parser.add_argument("--images", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--json", help="also write the rows to this file")
  parser.add_argument("--smoke", action="store_true")
  options = parser.parse_args()
  if options.smoke:
    options.width, options.size, options.images = 0.0625, 16, 4
    options.repeats = 2
  functions = {
    "taps": convolution._kernel_gradient_by_taps,
    "convolution": convolution._kernel_gradient_by_convolution,
  }
  rng = np.random.default_rng(0)
  rows = []
  print(f"{'layer':<22}{'taps ms':>10}{'XLA ms':>10}{'XLA/taps':>10}")
  for side, fan_in, fan_out in layers(options.width, options.size):

    def draw(*shape):
      return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    arguments = (
      draw(options.images, side, side, fan_in),
      draw(3, 3, fan_in, fan_out),
      draw(options.images, side, side, fan_out),
    )
    found = measure(functions, arguments, options.repeats)
    ratio = found["convolution"] / found["taps"]
    name = f"{side}x{side} {fan_in}->{fan_out}"
    rows.append({"layer": name, **found, "ratio": ratio})
    print(
      f"{name:<22}{1e3 * found['taps']:>10.2f}"
      f"{1e3 * found['convolution']:>10.2f}{ratio:>10.2f}"
    )
  total = sum(r["convolution"] for r in rows) / sum(r["taps"] for r in rows)
  print(f"{'all':<22}{'':>10}{'':>10}{total:>10.2f}")
  if options.json:
    with open(options.json, "w") as file:
      json.dump({"device": jax.devices()[0].device_kind, "rows": rows}, file)


if __name__ == "__main__":
  main()
