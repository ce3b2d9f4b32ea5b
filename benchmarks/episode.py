"""What one few-shot episode costs, part by part, in units of bare EMD solving.

    python -m benchmarks.episode               # table, JSON on request
    python -m benchmarks.episode --smoke       # small, for CI

One 5-way 1-shot episode with 15 queries a class has 375 transport problems of
25 x 25 nodes with 640 channels. The unit is a Python loop of `cv2.EMD` (`pip
install opencv-python-headless`; POT's solver if it is missing) over the same
375 problems, costs and weights given: what the official code must spend at
least. Everything is timed in turns in one run; the median counts.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ot.lp.emd_wrap import emd_c

from deepemd_jax import emd
from deepemd_jax.models import matching, resnet12, sfc

WAY, QUERIES, SHOT = 5, 75, 5


def features(images: int, n: int, channels: int, seed: int = 0):
  """Nodes [way, images, n, c] after a leaky ReLU; a class shares a part."""
  rng = np.random.default_rng(seed)
  shared = rng.standard_normal((WAY, 1, 1, channels))
  own = rng.standard_normal((WAY, images, n, channels))
  mixed = 0.6 * shared * (rng.random((WAY, images, n, 1)) < 0.4) + own
  return jnp.asarray(np.where(mixed > 0, mixed, 0.1 * mixed), jnp.float32)


def bare_loop(cost, a, b):
  """(name, function): the unit."""
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


def fit(support, key, epochs):
  """Class nodes of one episode."""
  order = sfc.random_order(key, WAY * SHOT, epochs)
  return sfc.fit(support, order=order)


def measure(work: dict, turns: int) -> dict[str, float]:
  """Median seconds of each, in turns, after one call that compiles."""
  for run in work.values():
    jax.block_until_ready(run())
  spent: dict[str, list] = {name: [] for name in work}
  for _ in range(turns):
    for name, run in work.items():
      began = time.perf_counter()
      jax.block_until_ready(run())
      spent[name].append(time.perf_counter() - began)
  return {name: float(np.median(seconds)) for name, seconds in spent.items()}


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--nodes", type=int, default=25)
  parser.add_argument("--channels", type=int, default=640)
  parser.add_argument("--epochs", type=int, default=100, help="of the SFC")
  parser.add_argument(
    "--episodes", type=int, default=8, help="SFC, side by side"
  )
  parser.add_argument("--width", type=float, default=1.0, help="of the encoder")
  parser.add_argument("--turns", type=int, default=7)
  parser.add_argument("--json", help="also write the rows to this file")
  parser.add_argument("--smoke", action="store_true")
  options = parser.parse_args()
  if options.smoke:
    options.nodes, options.channels, options.width = 4, 16, 1 / 32
    options.epochs, options.episodes, options.turns = 2, 2, 1

  shape = options.nodes, options.channels
  query = features(QUERIES // WAY, *shape).reshape(QUERIES, *shape)
  classes = features(1, *shape, seed=1)[:, 0]
  labels = jnp.repeat(jnp.arange(WAY), QUERIES // WAY)
  support = features(SHOT, *shape, seed=2)
  several = jnp.stack(
    [features(SHOT, *shape, seed=3 + i) for i in range(options.episodes)]
  )
  keys = jax.random.split(jax.random.key(0), options.episodes)
  problem = jax.jit(matching.match)(query, classes)
  cost, a, b = (
    np.asarray(x).reshape(-1, *x.shape[2:])
    for x in (1 - problem.similarity, *problem[1:])
  )

  def loss(query, classes, gradient):
    scores = matching.logits(query, classes, gradient=gradient)
    return optax.softmax_cross_entropy_with_integer_labels(
      scores, labels
    ).mean()

  def backward(gradient):
    return jax.jit(jax.grad(lambda q, c: loss(q, c, gradient), (0, 1)))

  match, solve = jax.jit(matching.match), jax.jit(emd.distance)
  forward = jax.jit(matching.logits)
  exact, flow = backward("exact"), backward("flow")
  one = jax.jit(lambda s, k: fit(s, k, options.epochs))
  many = jax.jit(jax.vmap(lambda s, k: fit(s, k, options.epochs)))
  variables = resnet12.init(jax.random.key(0), width=options.width)
  images = jnp.zeros((QUERIES + WAY, 84, 84, 3))
  unit, loop = bare_loop(cost, a, b)
  found = measure(
    {
      unit: loop,
      "weights and costs": lambda: match(query, classes),
      "EMD": lambda: solve(cost, a, b),
      "head forward": lambda: forward(query, classes),
      "head forward + backward": lambda: exact(query, classes),
      "the same, flow constant": lambda: flow(query, classes),
    },
    options.turns,
  )
  slow = measure(
    {
      unit: loop,
      "SFC fit": lambda: one(support, keys[0]),
      f"SFC fits, {options.episodes} at once": lambda: many(several, keys),
      f"encoder, {len(images)} images": lambda: resnet12.encode(
        variables, images
      ),
    },
    max(options.turns // 2, 1),
  )
  slow[f"SFC, each of {options.episodes}"] = (
    slow.pop(f"SFC fits, {options.episodes} at once") / options.episodes
  )
  rows = [
    {"part": name, "ms": 1e3 * seconds, "units": seconds / group[unit]}
    for group in (found, slow)
    for name, seconds in group.items()
  ]
  print(
    f"{len(cost)} problems of {options.nodes} x {options.nodes} nodes, "
    f"{options.channels} channels; SFC {SHOT}-shot, {options.epochs} epochs; "
    f"encoder {options.width:g} wide; {jax.devices()[0].device_kind}\n"
  )
  print(f"{'part':<28}{'ms':>10}{'units':>10}")
  for row in rows:
    print(f"{row['part']:<28}{row['ms']:>10.1f}{row['units']:>10.2f}")
  if options.json:
    with open(options.json, "w") as file:
      json.dump(rows, file, indent=2)


if __name__ == "__main__":
  main()
