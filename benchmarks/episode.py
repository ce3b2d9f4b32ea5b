"""Measures the parts of a few-shot episode in units of bare EMD solving.

    python -m benchmarks.episode               # table, JSON on request
    python -m benchmarks.episode --smoke       # small, for CI

One 5-way 1-shot episode with 15 queries per class has 375 transport problems of
25 x 25 nodes with 640 channels. The unit is a Python loop of `cv2.EMD` (`pip
install opencv-python-headless`; POT's solver if it is missing) over the same
375 problems with given costs and weights. The official code takes at least one
unit. All parts take turns in one run, and the table has medians.
"""

import argparse
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ot.lp.emd_wrap import emd_c

from benchmarks import measuring
from deepemd_jax import emd
from deepemd_jax.emd.problem import Plan
from deepemd_jax.models import backbone, matching, sfc

WAY, QUERIES, SHOT = 5, 75, 5


def bare_loop(cost, a, b) -> tuple[str, Callable]:
  """Returns the name of the unit, and the loop that defines it."""
  try:
    import cv2
  except ImportError:
    wide = [x.astype(np.float64) for x in (cost, a, b)]

    def loop():
      for c, x, y in zip(*wide, strict=True):
        emd_c(x, y, c, 100_000, 1)

    return "POT loop", loop

  def loop():
    for c, x, y in zip(cost, a, b, strict=True):
      cv2.EMD(x[:, None], y[:, None], cv2.DIST_USER, c)

  return "cv2.EMD loop", loop


def _backward(gradient: str) -> Callable:
  """Returns the gradient of the cross-entropy to query and class nodes."""
  labels = jnp.repeat(jnp.arange(WAY), QUERIES // WAY)

  def loss(query, classes):
    scores = matching.logits(query, classes, gradient=gradient)
    return optax.softmax_cross_entropy_with_integer_labels(
      scores, labels
    ).mean()

  return jax.jit(jax.grad(loss, (0, 1)))


def head_parts(query, classes, cost, a, b) -> dict[str, Callable]:
  """Returns {name: call} of the parts of the head.

  Args:
    query: [q, n, c], the query nodes.
    classes: [way, n, c], the class nodes.
    cost: [problems, n, n], the costs of the same episode.
    a: [problems, n], weights of the query nodes.
    b: [problems, n], weights of the class nodes.
  """
  match, solve = jax.jit(matching.match), jax.jit(emd.distance)
  forward = jax.jit(matching.logits)
  exact, flow = _backward("exact"), _backward("flow")
  return {
    "weights and costs": lambda: match(query, classes),
    "EMD": lambda: solve(cost, a, b),
    "head forward": lambda: forward(query, classes),
    "head forward + backward": lambda: exact(query, classes),
    "the same, flow constant": lambda: flow(query, classes),
  }


@dataclasses.dataclass(frozen=True)
class NoSolver:
  """A solver that ignores costs.

  An SFC fit with this solver takes the time of everything except the EMD.
  """

  def __call__(self, cost, a, b) -> Plan:
    flow = a[..., :, None] * b[..., None, :] / a.sum(-1)[..., None, None]
    zero = jnp.zeros(cost.shape[:-2], cost.dtype)
    steps, no = zero.astype(jnp.int32), zero > 0
    return Plan(flow, 0 * a, 0 * b, zero, zero, steps, no)


def sfc_products(support, epochs: int):
  """Computes only the matrix products of an SFC fit, four images per step.

  They are the products of every image [way, shot, n, c] with all class nodes,
  forward and backward.
  """
  way, shot, n, c = support.shape
  images = support.reshape(way * shot, n, c)
  steps = jnp.arange(epochs * len(images) // 4) * 4 % len(images)

  def step(classes, start):
    some = jax.lax.dynamic_slice_in_dim(images, start, 4)
    similarity = jnp.einsum("qnc,wmc->qwnm", some, classes)
    return 1e-3 * jnp.einsum("qwnm,qnc->wmc", similarity, some), None

  return jax.lax.scan(step, support[:, 0], steps)[0]


def slow_parts(n: int, channels: int, options) -> dict[str, Callable]:
  """Returns {name: call} of the structured FC layer (SFC) and the encoder."""

  def fit(support, key, solver=None):
    order = sfc.random_order(key, WAY * SHOT, options.epochs)
    return sfc.fit(support, order=order, solver=solver)

  support = [
    measuring.synthetic_nodes(WAY, SHOT, n, channels, seed=2 + i)
    for i in range(1 + options.episodes)
  ]
  several = jnp.stack(support[1:])
  keys = jax.random.split(jax.random.key(0), options.episodes)
  one, many = jax.jit(fit, static_argnums=2), jax.jit(jax.vmap(fit))
  products = jax.jit(sfc_products, static_argnums=1)
  encoder = backbone.create("resnet12", width=options.width)
  if options.smoke:
    encoder = measuring.tiny_backbone()
  variables = encoder.init(jax.random.key(0))
  images = jnp.zeros((QUERIES + WAY, options.size, options.size, 3))
  return {
    "SFC fit": lambda: one(support[0], keys[0]),
    "SFC fit without the EMD": lambda: one(support[0], keys[0], NoSolver()),
    "its products alone": lambda: products(support[0], options.epochs),
    f"encoder, {len(images)} images": lambda: encoder.encode(variables, images),
    f"SFC, each of {options.episodes}": lambda: many(several, keys),
  }


def peak_gflops(size: int) -> float:
  """Returns the GFLOP/s of products of square float32 matrices."""
  x = jnp.ones((size, size), jnp.float32)
  product = jax.jit(jnp.matmul)
  seconds = measuring.median_seconds({"product": lambda: product(x, x)}, 5)
  return 2e-9 * size**3 / seconds["product"]


def measure(options: argparse.Namespace) -> list[dict]:
  """Returns a row for each part, in milliseconds and in units."""
  n, channels = options.nodes, options.channels
  query = measuring.synthetic_nodes(WAY, QUERIES // WAY, n, channels)
  query = query.reshape(QUERIES, n, channels)
  classes = measuring.synthetic_nodes(WAY, 1, n, channels, seed=1)[:, 0]
  problem = jax.jit(matching.match)(query, classes)
  cost, a, b = (
    np.asarray(x).reshape(-1, *x.shape[2:])
    for x in (1 - problem.similarity, *problem[1:])
  )
  unit, loop = bare_loop(cost, a, b)
  head = measuring.median_seconds(
    {unit: loop, **head_parts(query, classes, cost, a, b)}, options.turns
  )
  slow = measuring.median_seconds(
    {unit: loop, **slow_parts(n, channels, options)},
    max(options.turns // 2, 1),
  )
  slow[f"SFC, each of {options.episodes}"] /= options.episodes
  return [
    {"part": name, "ms": 1e3 * seconds, "units": seconds / group[unit]}
    for group in (head, slow)
    for name, seconds in group.items()
  ]


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--nodes", type=int, default=25)
  parser.add_argument("--channels", type=int, default=640)
  parser.add_argument("--epochs", type=int, default=100, help="of the SFC")
  parser.add_argument(
    "--episodes", type=int, default=8, help="SFC, side by side"
  )
  parser.add_argument("--width", type=float, default=1.0, help="of the encoder")
  parser.add_argument("--size", type=int, default=84, help="of its images")
  parser.add_argument("--turns", type=int, default=7)
  parser.add_argument("--json", help="also write the rows to this file")
  parser.add_argument("--smoke", action="store_true")
  options = parser.parse_args()
  if options.smoke:
    options.nodes, options.channels = 4, 16
    options.epochs, options.episodes, options.turns = 2, 2, 1
    options.size = 16
  return options


def main() -> None:
  """Prints the table."""
  options = _parse()
  rows = measure(options)
  print(
    f"{WAY * QUERIES} problems of {options.nodes} x {options.nodes} nodes, "
    f"{options.channels} channels; SFC {SHOT}-shot, {options.epochs} epochs; "
    f"encoder {options.width:g} wide; {jax.devices()[0].device_kind}\n"
  )
  print(f"{'part':<28}{'ms':>10}{'units':>10}")
  for row in rows:
    print(f"{row['part']:<28}{row['ms']:>10.1f}{row['units']:>10.2f}")
  (ms,) = (row["ms"] for row in rows if row["part"] == "its products alone")
  images = options.epochs * WAY * SHOT
  gflop = 4e-9 * images * WAY * options.nodes**2 * options.channels
  print(
    f"\nthe products: {gflop:.1f} GFLOP, {1e3 * gflop / ms:.0f} GFLOP/s; large "
    f"ones reach {peak_gflops(256 if options.smoke else 2048):.0f}"
  )
  measuring.write_json(options.json, rows)


if __name__ == "__main__":
  main()
