"""Estimates by formulas what a step would cost on accelerators.

    python -m benchmarks.estimate                       # tables of docs/COST.md
    python -m benchmarks.estimate --way 10 --width 0.5
    python -m benchmarks.estimate --smoke               # the same, for CI

Every printed number is an estimate. It follows from a formula in this file, the
published peaks of a machine and the assumptions below. `docs/COST.md` has the
measurements, and the differences between the formulas and the counts of XLA.
"""

import argparse
import dataclasses
import math

CHANNELS = (64, 160, 320, 640)
PARAMETERS = 12_424_320  # in the published ResNet-12, for the all-reduce


@dataclasses.dataclass(frozen=True)
class Machine:
  """The published numbers and assumptions of a machine, from docs/COST.md.

  Attributes:
    chips: number of chips of the whole machine.
    hosts: number of host computers.
    matrix: bfloat16 peak of a chip, FLOP/s.
    vector: float32 FLOP/s of a chip outside its matrix units.
    bandwidth: bandwidth of a chip's memory, bytes/s.
    memory: memory of a chip, bytes.
    link: bandwidth from one chip to the others, bytes/s.
    cores: physical cores of a host.
    launch: seconds between two dependent small operations.
    kernel: whether `InteriorPoint` has a kernel for this machine.
  """

  chips: int
  hosts: int
  matrix: float
  vector: float
  bandwidth: float
  memory: float
  link: float
  cores: int
  launch: float
  kernel: bool = False


MACHINES = {
  "TPU v5e-8": Machine(
    8, 1, 197e12, 4e12, 819e9, 16e9, 200e9, cores=112, launch=2e-6
  ),
  "8 x H100": Machine(
    *(8, 1, 989e12, 67e12, 3.35e12, 80e9, 450e9),
    cores=112,
    launch=4e-6,
    kernel=True,
  ),
  "TPU v5p-64": Machine(
    32, 8, 459e12, 9e12, 2.765e12, 95e9, 600e9, cores=104, launch=2e-6
  ),
}
# Assumed shares of the peaks that are reached.
MATRIX_SHARE = 0.3
OTHER_SHARE = 0.5
EXACT_PASSES = 6  # bfloat16 passes of a float32 product (`Precision.HIGHEST`)
# Number of times that an activation passes through memory. The forward pass
# writes, sums and normalizes it, and the backward pass takes twice as many.
PASSES_FORWARD, PASSES_TRAINING = 4, 12
IP_STEPS = 16  # until a whole batch is done; 14 were counted, 8 to 20 are usual
# Measurements of the kernel with 25 nodes on an H200, which has the same
# multiprocessors as the H100: seconds of a step of one problem; FLOP/s in the
# count of `emd_flops` with enough problems; and steps of the slowest of 375
# problems.
KERNEL_STEP, KERNEL_RATE, SLOWEST = 17e-6, 2.9e12, 24
# CPU seconds of the host, measured by `training_step` and `evaluation_step`:
# to make a training episode of 80 images on any of its cores, and to draw a
# test episode in the one thread that waits for the device.
MADE, DRAWN = 0.0025, 0.00005


def sides(size: int) -> tuple[int, ...]:
  """Returns the sides of the feature maps in the four blocks, in pixels."""
  return tuple(size // 2**i for i in range(4))


def channels(width: float) -> tuple[int, ...]:
  """Returns the result of `resnet12.channels_for`, without JAX."""
  return tuple(max(1, round(c * width)) for c in CHANNELS)


def encoder_flops(size: int, width: float) -> float:
  """Returns the FLOPs of a ResNet-12's convolutions for one image, forward.

  Each convolution has 2 k^2 h w c_in c_out. Training takes three times as many.
  """
  total, before = 0.0, 3
  for side, after in zip(sides(size), channels(width), strict=True):
    per_cell = 9 * before * after + 18 * after * after + before * after
    total += 2 * side * side * per_cell
    before = after
  return total


def activations(size: int, width: float) -> float:
  """Returns the number of outputs of all blocks' convolutions per image."""
  return sum(
    4 * side * side * c
    for side, c in zip(sides(size), channels(width), strict=True)
  )


def head_flops(queries: int, way: int, n: int, c: int) -> float:
  """Returns the FLOPs of similarities and weights, forward.

  The similarities take 2 q way n^2 c and the weights 4 q way n c.
  """
  return 2.0 * queries * way * n * n * c + 4.0 * queries * way * n * c


def emd_flops(n: int, steps: float = IP_STEPS) -> float:
  """Returns the FLOPs of one n x n problem by `InteriorPoint`.

  A step computes the columns' mesh (2 n^3), eliminates n columns with the whole
  mesh each time (2 n^3), solves three times (8 n^2 each) and processes about
  forty arrays of n^2 numbers.
  """
  return steps * (4.0 * n**3 + 24.0 * n**2 + 40.0 * n**2)


def emd_operations(n: int, steps: float = IP_STEPS) -> float:
  """Returns the number of small operations that depend on each other.

  Four columns are eliminated at a time. The result does not depend on the
  number of problems.
  """
  return steps * (6 * math.ceil((n - 1) / 4) + 30)


def nodes(size: int) -> int:
  """Returns the number of map cells of a size x size image."""
  return (size // 16) ** 2


def all_reduce(machine: Machine, parameters: float) -> float:
  """Returns the seconds of an all-reduce in a ring of k chips.

  Each link carries 2 (k - 1) / k of the float32 gradient.
  """
  k = machine.chips
  return 2 * (k - 1) / k * 4 * parameters / (OTHER_SHARE * machine.link)


def _encoder(machine, images, size, width, training) -> float:
  flops = images * encoder_flops(size, width) * (3 if training else 1)
  passes = PASSES_TRAINING if training else PASSES_FORWARD
  moved = images * activations(size, width) * passes * 2
  return max(
    flops / (MATRIX_SHARE * machine.matrix),
    moved / (OTHER_SHARE * machine.bandwidth),
  )


def _emd(machine, problems, n) -> float:
  # If arithmetic does not fill the chip, the chain of operations sets the time.
  if machine.kernel:
    busy = problems * emd_flops(n) / KERNEL_RATE
    return max(busy, SLOWEST * KERNEL_STEP * n / 25)
  busy = problems * emd_flops(n) / (OTHER_SHARE * machine.vector)
  return max(busy, emd_operations(n) * machine.launch)


def _head(machine, queries, way, n, c, training) -> float:
  flops = head_flops(queries, way, n, c) * (3 if training else 1)
  return EXACT_PASSES * flops / (MATRIX_SHARE * machine.matrix)


def pretrain(machine: Machine, size: int, width: float, images: int) -> dict:
  """Returns {part: seconds} of a step with `images` per chip."""
  made = MADE / 80 * images * machine.chips
  return {
    "encoder": _encoder(machine, images, size, width, True),
    "all-reduce": all_reduce(machine, PARAMETERS * width**2),
    "host input": made / (machine.cores * machine.hosts),
  }


def metatrain(
  machine: Machine,
  size: int,
  width: float,
  *,
  way: int,
  shot: int,
  query: int,
  episodes: int = 1,
) -> dict:
  """Returns {part: seconds} of a step with `episodes` per chip."""
  n, c = nodes(size), channels(width)[-1]
  images = way * (shot + query)
  made = MADE / 80 * images * episodes * machine.chips
  return {
    "encoder": _encoder(machine, episodes * images, size, width, True),
    "head": episodes * _head(machine, way * query, way, n, c, True),
    "EMD": _emd(machine, episodes * way * query * way, n),
    "all-reduce": all_reduce(machine, PARAMETERS * width**2),
    "host input": made / (machine.cores * machine.hosts),
  }


def evaluate(
  machine: Machine,
  size: int,
  width: float,
  *,
  way: int,
  query: int,
  episodes: int = 10,
) -> dict:
  """Returns {part: seconds} of `episodes` encoded episodes per chip."""
  n, c = nodes(size), channels(width)[-1]
  return {
    "head": episodes * _head(machine, way * query, way, n, c, False),
    "EMD": _emd(machine, episodes * way * query * way, n),
    "drawing": DRAWN * episodes * machine.chips / machine.hosts,
  }


def fit(
  machine: Machine,
  size: int,
  width: float,
  *,
  way: int,
  shot: int = 5,
  episodes: int = 10,
  epochs: int = 100,
  batch: int = 4,
) -> dict:
  """Returns {part: seconds} of `episodes` simultaneous SFC fits per chip."""
  n, c = nodes(size), channels(width)[-1]
  steps = epochs * math.ceil(way * shot / batch)
  return {
    "head": steps * episodes * _head(machine, batch, way, n, c, True),
    "EMD": steps * _emd(machine, episodes * batch * way, n),
  }


def overlapped(parts: dict) -> tuple[float, str]:
  """Returns the seconds of a step, and its largest part.

  The host and the chips work at the same time.
  """
  device = sum(s for name, s in parts.items() if name != "host input")
  return max(device, parts.get("host input", 0.0)), max(parts, key=parts.get)


def _row(cells) -> str:
  return "| " + " | ".join(cells) + " |"


def tables(options) -> str:
  """Returns a Markdown table for each stage, in milliseconds per step."""
  shape = {"way": options.way, "query": options.query}
  common = options.size, options.width
  stages = {
    f"Pre-training, {options.images} images a chip": (
      lambda m: pretrain(m, *common, options.images),
      options.images,
      "images/s",
    ),
    "Meta-training, one episode a chip": (
      lambda m: metatrain(m, *common, shot=options.shot, **shape),
      1,
      "episodes/s",
    ),
    "Meta-training, 8 episodes a chip": (
      lambda m: metatrain(m, *common, shot=options.shot, episodes=8, **shape),
      8,
      "episodes/s",
    ),
    "Evaluation, encoded images, 10 episodes a chip": (
      lambda m: evaluate(m, *common, **shape),
      10,
      "episodes/s",
    ),
    "SFC fits (5 shots, 100 epochs), 10 episodes a chip": (
      lambda m: fit(m, *common, way=options.way),
      10,
      "episodes/s",
    ),
    "The same, 200 episodes a chip": (
      lambda m: fit(m, *common, way=options.way, episodes=200),
      200,
      "episodes/s",
    ),
  }
  lines = []
  for title, (parts_of, count, unit) in stages.items():
    stage = {name: parts_of(machine) for name, machine in MACHINES.items()}
    names = list(next(iter(stage.values())))
    lines += [f"{title} (estimates, ms a step)", ""]
    head = ["machine", *names, "step", f"{unit}, machine", "largest part"]
    lines += [_row(head), _row(["---"] * len(head))]
    for name, parts in stage.items():
      seconds, largest = overlapped(parts)
      cells = [f"{1e3 * parts[x]:.2g}" for x in names]
      rate = MACHINES[name].chips * count / seconds
      cells += [f"{1e3 * seconds:.2g}", f"{rate:,.3g}", largest]
      lines.append(_row([name, *cells]))
    lines.append("")
  return "\n".join(lines)


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", type=int, default=84)
  parser.add_argument("--width", type=float, default=1.0)
  parser.add_argument("--way", type=int, default=5)
  parser.add_argument("--shot", type=int, default=1)
  parser.add_argument("--query", type=int, default=15)
  parser.add_argument("--images", type=int, default=128)
  parser.add_argument("--smoke", action="store_true")
  print(tables(parser.parse_args()))


if __name__ == "__main__":
  main()
