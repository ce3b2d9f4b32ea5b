"""Compares two weight gradients of the convolutions in ResNet-12.

    python -m benchmarks.convolution            # table, JSON on request
    python -m benchmarks.convolution --smoke    # small, for CI

It times the weight gradient of each 3x3 layer of a ResNet-12, as XLA's
convolution and as one matrix product per tap. The two take turns, and the table
has medians.
"""

import argparse
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measuring
from deepemd_jax.models import convolution, resnet12

_FORMS = {
  "taps": convolution._kernel_gradient_by_taps,
  "convolution": convolution._kernel_gradient_by_convolution,
}


def layers(width: float, size: int) -> Iterator[tuple[int, int, int]]:
  """Yields side, input channels and output channels of each 3x3 convolution."""
  before = 3
  for channels in resnet12.channels_for(width):
    yield size, before, channels
    yield size, channels, channels
    before, size = channels, size // 2


def measure(
  images: int, side: int, fan_in: int, fan_out: int, repeats: int
) -> dict[str, float]:
  """Returns the seconds of each form on random images of one layer."""
  rng = np.random.default_rng(0)
  shapes = (
    (images, side, side, fan_in),
    (3, 3, fan_in, fan_out),
    (images, side, side, fan_out),
  )
  arguments = [
    jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes
  ]
  return measuring.median_seconds(
    {
      name: functools.partial(jax.jit(form), *arguments)
      for name, form in _FORMS.items()
    },
    repeats,
  )


def _parse() -> argparse.Namespace:
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
  return options


def main() -> None:
  """Prints the table."""
  options = _parse()
  rows = []
  print(f"{'layer':<22}{'taps ms':>10}{'XLA ms':>10}{'XLA/taps':>10}")
  for side, fan_in, fan_out in layers(options.width, options.size):
    seconds = measure(options.images, side, fan_in, fan_out, options.repeats)
    ratio = seconds["convolution"] / seconds["taps"]
    name = f"{side}x{side} {fan_in}->{fan_out}"
    rows.append({"layer": name, **seconds, "ratio": ratio})
    print(
      f"{name:<22}{1e3 * seconds['taps']:>10.2f}"
      f"{1e3 * seconds['convolution']:>10.2f}{ratio:>10.2f}"
    )
  total = sum(r["convolution"] for r in rows) / sum(r["taps"] for r in rows)
  print(f"{'all':<22}{'':>10}{'':>10}{total:>10.2f}")
  device = jax.devices()[0].device_kind
  measuring.write_json(options.json, {"device": device, "rows": rows})


if __name__ == "__main__":
  main()
