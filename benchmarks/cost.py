"""What a step of each stage costs: time, FLOPs, memory, part by part.

    python -m benchmarks.cost               # tables, JSON on request
    python -m benchmarks.cost --only emd    # one stage's rows
    python -m benchmarks.cost --smoke       # small, for CI

Pre-training steps, meta-training steps, evaluation episodes and SFC fits as the
stages run them, on images that are drawn at random, varied one at a time in
way, shot, query, nodes, width, precision and devices. Seconds are the least of
the repeats. FLOPs and bytes are XLA's count of the compiled program, beside the
formulas of `estimate.py`; XLA counts a loop's body once, and a host callback,
which is what solves the EMD on a CPU, or a kernel, not at all. The utilisation
is the formula's FLOPs over the time, as a share of what a large matrix product
reached in the same run.

On an accelerator, which can say how much memory it has, also the largest number
of episodes that a meta-training step takes.

Devices are virtual: they share the cores of this machine, so that more of them
show what sharing costs, not what it gains.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import episode, estimate
from deepemd_jax import emd
from deepemd_jax.config import defaults, resolve
from deepemd_jax.data import batches, episodes
from deepemd_jax.data.image_set import CachedImages
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation import fewshot
from deepemd_jax.models import matching, resnet12, sfc
from deepemd_jax.training import loop as loop
from deepemd_jax.training import metatrain, pretrain

STORED = 160  # side of the stored copies, pixels


def settings(options, **changes):
  """A config of the base size with some fields changed."""
  config = defaults.get_config()
  config.image.size = options.size
  config.model.width = options.width
  config.pretrain.batch_size = options.images
  config.episode.query = options.query
  config.update_from_flattened_dict(changes)
  config.metatrain.update(resolve.training_episode(config))
  return config


@functools.cache
def copies(classes: int, per_class: int) -> CachedImages:
  """Noise of the size of stored photographs."""
  count = classes * per_class
  rng = np.random.default_rng(0)
  return CachedImages(
    images=rng.integers(0, 256, (count, STORED, STORED, 3), np.uint8),
    labels=np.repeat(np.arange(classes), per_class).astype(np.int32),
    class_names=tuple(map(str, range(classes))),
    keys=tuple(map(str, range(count))),
    sizes=np.full((count, 2), STORED, np.int32),
  )


def seconds(call, repeats: int) -> float:
  """The least of some calls, after one that compiles."""
  jax.block_until_ready(call())
  spent = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(call())
    spent.append(time.perf_counter() - began)
  return min(spent)


def program(function, *arguments):
  """(a jitted function compiled, what the compiler says of it)."""
  compiled = function.lower(*arguments).compile()
  memory = compiled.memory_analysis()
  counted = compiled.cost_analysis()
  return compiled, {
    "gflop": counted["flops"] / 1e9,
    "gbyte": counted["bytes accessed"] / 1e9,
    "argument_mb": memory.argument_size_in_bytes / 1e6,
    "temporary_mb": memory.temp_size_in_bytes / 1e6,
  }


def input_seconds(make, repeats: int) -> float:
  """CPU seconds of making a batch, all threads together."""
  make(0)
  began = time.process_time()
  for step in range(1, repeats + 1):
    make(step)
  return (time.process_time() - began) / repeats


def slope(function):
  """Its gradient to all arguments, jitted, of the sum of what it gives."""

  def total(arguments):
    return sum(x.sum() for x in jax.tree.leaves(function(*arguments)))

  return jax.jit(lambda *arguments: jax.grad(total)(arguments))


@functools.cache
def matrix_peak(precision: str) -> float:
  """FLOP/s of a large matrix product, at JAX's default precision."""
  side = 1024 if jax.default_backend() == "cpu" else 8192
  x = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(precision))
  product = jax.jit(jnp.matmul)
  return 2 * side**3 / seconds(lambda: product(x, x), 10)


def utilisation(gflop: float, step_s: float, config) -> float:
  """Share of `matrix_peak`."""
  return 1e9 * gflop / step_s / matrix_peak(config.model.precision)


def step_seconds(step, state, batch, repeats: int) -> float:
  """Of a training step, whose state is used up by the next."""
  kept = [state]

  def call():
    kept[0], measured = step(kept[0], batch)
    return measured

  return seconds(call, repeats)


def encoder_seconds(config, variables, count, training, options) -> float:
  """Of the encoder alone, forward, or forward and backward."""
  side = config.image.size
  images = jnp.ones((count, side, side, 3))
  precision = config.model.precision
  if not training:
    encode = functools.partial(resnet12.encode, precision=precision)
    return seconds(lambda: encode(variables, images), options.repeats)

  def maps(params):
    whole = variables | {"params": params}
    return resnet12.apply(whole, images, train=True, precision=precision)[0]

  backward = slope(maps)
  return seconds(lambda: backward(variables["params"]), options.repeats)


def views_seconds(config, size: int, drawn: list, options) -> float:
  """Of cutting crops to size on the device."""
  cut = jax.jit(lambda drawn: list(map(resolve.crop(config, size), drawn)))
  return seconds(lambda: cut(drawn), options.repeats)


def of_pretraining(config, options) -> dict:
  """A step of `pretrain`."""
  images = copies(*options.pool)
  count = config.pretrain.batch_size
  order = batches.ShuffledBatches(len(images.labels), count, 0)
  make = pretrain._batches(config, images, order)
  variables = pretrain.init(config)
  extra = {"classifier": pretrain._init_classifier(config, variables, 64)}
  optimizer = resolve.optimizer(config.pretrain, 100)
  state = sharding.replicate(loop.new_state(variables, optimizer, extra))
  step = loop.make_step(pretrain._loss_function(config), optimizer)
  batch = sharding.shard_batch(make(0))
  step, found = program(step, state, batch)
  training = (
    3 * count * estimate.encoder_flops(config.image.size, config.model.width)
  )
  found |= {
    "formula_gflop": training / 1e9,
    "views_s": views_seconds(
      config, config.image.size, [batch["views"]], options
    ),
    "encoder_s": encoder_seconds(config, variables, count, True, options),
    "input_cpu_s": input_seconds(make, options.repeats),
  }
  step_s = step_seconds(step, state, batch, options.repeats)
  share = utilisation(found["formula_gflop"], step_s, config)
  return {"step_s": step_s, "utilisation": share} | found


def metatraining(config, options):
  """A step of `metatrain`: (step, state, batch, the compiler's numbers)."""
  make = metatrain._batches(config, copies(*options.pool))
  variables = pretrain.init(config)
  optimizer = resolve.optimizer(config.metatrain, 100)
  state = sharding.replicate(loop.new_state(variables, optimizer))
  step = loop.make_step(metatrain._loss_function(config), optimizer)
  batch = sharding.shard_batch(make(0))
  step, found = program(step, state, batch)
  return step, state, batch, found


def metatraining_gflop(config) -> float:
  """By formula, of a step."""
  shape = resolve.training_episode(config)
  size, width = config.image.size, config.model.width
  way, n_query = shape["way"], shape["query"]
  images = way * (shape["shot"] + n_query)
  n, c = estimate.nodes(size), estimate.channels(width)[-1]
  episode = images * estimate.encoder_flops(size, width)
  episode += estimate.head_flops(way * n_query, way, n, c)
  return 3 * config.metatrain.batch_size * episode / 1e9


def of_metatraining(config, options) -> dict:
  """A step of `metatrain`, and its parts, each forward and backward."""
  shape = resolve.training_episode(config)
  way, n_query = shape["way"], shape["query"]
  count = way * (shape["shot"] + n_query)
  step, state, batch, found = metatraining(config, options)
  step_s = step_seconds(step, state, batch, options.repeats)
  make = metatrain._batches(config, copies(*options.pool))
  variables = pretrain.init(config)
  n = estimate.nodes(config.image.size)
  c = estimate.channels(config.model.width)[-1]
  gflop = metatraining_gflop(config)
  found |= {
    "formula_gflop": gflop,
    "views_s": views_seconds(
      config, config.image.size, list(batch.values()), options
    ),
    "encoder_s": encoder_seconds(config, variables, count, True, options),
    **head_seconds(way, n_query, n, c, True, options),
    "input_cpu_s": input_seconds(make, options.repeats),
  }
  return {
    "step_s": step_s,
    "utilisation": utilisation(gflop, step_s, config),
  } | found


def of_the_largest(config, options) -> dict:
  """A meta-training step of as many episodes as fit the device's memory.

  To within a tenth: each try is a compilation.
  """
  room = jax.devices()[0].memory_stats()["bytes_limit"] / 1e6
  config.metatrain.batch_size = 1
  one = metatraining(config, options)[-1]
  episodes = int(0.95 * room / (one["argument_mb"] + one["temporary_mb"]))
  while True:
    config.metatrain.batch_size = episodes = max(1, episodes)
    print(f"  {episodes} episodes?", flush=True)
    try:
      *training, found = metatraining(config, options)
      step_s = step_seconds(*training, options.repeats)
      break
    except jax.errors.JaxRuntimeError:  # out of memory
      if episodes == 1:
        raise
    training = None  # gives its memory back
    episodes = int(0.9 * episodes)
  gflop = metatraining_gflop(config)
  return {
    "step_s": step_s,
    "episodes": episodes,
    "utilisation": utilisation(gflop, step_s, config),
    "device_mb": room,
    **found,
    "formula_gflop": gflop,
  }


def head_seconds(way, n_query, n, c, training, options) -> dict:
  """Of weights and similarities, and of the EMD layer on them."""
  query = episode_nodes(way, n_query, n, c).reshape(-1, n, c)
  classes = episode_nodes(way, 1, n, c)[:, 0]
  problems = jax.jit(matching.match)(query, classes)
  problems = 1 - problems.similarity, *problems[1:]
  match, solve = matching.match, emd.distance
  match, solve = (
    (slope(match), slope(solve))
    if training
    else (jax.jit(match), jax.jit(solve))
  )
  return {
    "head_s": seconds(lambda: match(query, classes), options.repeats),
    "emd_s": seconds(lambda: solve(*problems), options.repeats),
  }


def episode_nodes(way, images, n, c):
  """[way, images, n, c], those of a class alike; see `benchmarks.episode`."""
  found = [episode.features(images, n, c, seed=i) for i in range(-(-way // 5))]
  return jnp.concatenate(found)[:way]


def of_evaluation(config, options) -> dict:
  """An episode of `evaluate`, of encoded images."""
  way, n_query = config.episode.way, config.episode.query
  shot, size = config.episode.shot, config.image.size
  n, c = estimate.nodes(size), estimate.channels(config.model.width)[-1]
  support = episode_nodes(way, shot, n, c)[None]
  query = episode_nodes(way, n_query, n, c)[None]
  head = fewshot._head(config, "deepemd_mean")
  key = jax.random.key(0)

  def score(query, support):
    flat = query.reshape(1, way * n_query, n, c)
    return jax.vmap(lambda q, s: head(q, s, key))(flat, support)

  score, found = program(jax.jit(score), query, support)
  draw = fewshot.sampler(config, copies(*options.pool), "test")
  return {
    "step_s": seconds(lambda: score(query, support), options.repeats),
    **found,
    "formula_gflop": estimate.head_flops(way * n_query, way, n, c) / 1e9,
    **head_seconds(way, n_query, n, c, False, options),
    "input_cpu_s": input_seconds(
      lambda i: episodes.batch(draw, [i]), 10 * options.repeats
    ),
  }


def of_fitting(config, options) -> dict:
  """The SFC of one episode."""
  way, shot = config.episode.way, config.episode.shot
  n = estimate.nodes(config.image.size)
  c = estimate.channels(config.model.width)[-1]
  support = episode_nodes(way, shot, n, c)
  order = sfc.random_order(jax.random.key(0), way * shot, options.epochs)
  fit, found = program(jax.jit(lambda s: sfc.fit(s, order=order)), support)
  steps = options.epochs * -(-way * shot // 4)
  head = 3 * estimate.head_flops(4, way, n, c)
  return {
    "step_s": seconds(lambda: fit(support), options.repeats),
    **found,
    "formula_gflop": steps * head / 1e9,
  }


def of_emd(n: int, options) -> dict:
  """375 problems by both solvers; XLA's and our count of the arithmetic."""
  query = episode_nodes(5, 15, n, 64).reshape(75, n, 64)
  problem = jax.jit(matching.match)(query, episode_nodes(5, 1, n, 64)[:, 0])
  arguments = 1 - problem.similarity, *problem[1:]
  found = {}
  for name, solver in (
    ("network_simplex_s", emd.NetworkSimplex()),
    ("interior_point_s", emd.InteriorPoint()),
  ):
    solve = jax.jit(functools.partial(emd.solve, solver=solver))
    call = functools.partial(solve, *arguments)
    found[name] = seconds(call, options.repeats)
  steps = np.asarray(call().steps)
  found |= {"steps_mean": float(steps.mean()), "steps_most": int(steps.max())}
  found["formula_gflop"] = (
    steps.size * estimate.emd_flops(n, steps.mean()) / 1e9
  )
  return found


def of_devices(options) -> dict:
  """Sixteen evaluation episodes, and a pre-training step, over all devices.

  By `InteriorPoint`: host callbacks of several devices of one process can wait
  for each other for ever.
  """
  config = settings(options, **{"emd.solver": "interior_point"})
  images = copies(*options.pool)
  n, c = estimate.nodes(options.size), estimate.channels(options.width)[-1]
  rng = np.random.default_rng(0)
  nodes = rng.standard_normal((len(images.labels), n, c), np.float32)
  encoded = sharding.replicate(nodes)
  drawn = fewshot.sampler(config, images, "test")
  score = fewshot.scorer(config, fewshot._head(config, "deepemd"))
  order = batches.ShuffledBatches(
    len(images.labels), config.pretrain.batch_size, 0
  )
  make = pretrain._batches(config, images, order)
  variables = pretrain.init(config)
  extra = {"classifier": pretrain._init_classifier(config, variables, 64)}
  optimizer = resolve.optimizer(config.pretrain, 100)
  state = sharding.replicate(loop.new_state(variables, optimizer, extra))
  step = loop.make_step(pretrain._loss_function(config), optimizer)
  return {
    "evaluate_16_s": seconds(
      lambda: fewshot.accuracies(score, encoded, drawn, 16, 16),
      options.repeats,
    ),
    "pretrain_s": step_seconds(
      step, state, sharding.shard_batch(make(0)), options.repeats
    ),
  }


def on_devices(count: int) -> dict:
  """`of_devices` in a process that sees `count` of them."""
  flags = os.environ.get("XLA_FLAGS", "")
  flags += f" --xla_force_host_platform_device_count={count}"
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.cost", *sys.argv[1:], "--on-devices"],
    env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def sweep(options):
  """(stage, what is varied, its value, what measures it)."""
  width, precision = "model.width", "model.precision"
  if options.smoke:
    changes = [("base", {})]
    shots, sizes, devices = [2], [32], [2]
  else:
    changes = [
      ("base", {}),
      *((f"way {x}", {"episode.way": x}) for x in (10, 20)),
      *((f"shot {x}", {"metatrain.shot": x}) for x in (5,)),
      *((f"query {x}", {"episode.query": x}) for x in (5, 30)),
      *((f"nodes {(x // 16) ** 2}", {"image.size": x}) for x in (48, 112)),
      *((f"width {x:g}", {width: x}) for x in (0.25, 0.5, 1)),
      ("bfloat16", {precision: "bfloat16"}),
    ]
    shots, sizes, devices = [5, 10], [48, 84, 112], [1, 2, 4, 8]
  # A CPU does not say how much memory it has.
  largest = []
  tells = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
  for name, change in changes:
    config = settings(options, **change)
    if tells and set(change) <= {precision}:
      largest.append((name, settings(options, **change)))
    if not {"episode.way", "episode.query", "metatrain.shot"} & set(change):
      yield "pretrain", name, functools.partial(of_pretraining, config, options)
    yield "metatrain", name, functools.partial(of_metatraining, config, options)
    if precision not in change:
      yield "evaluate", name, functools.partial(of_evaluation, config, options)
  for shot in shots:
    config = settings(options, **{"episode.shot": shot})
    name = f"shot {shot}"
    yield "sfc fit", name, functools.partial(of_fitting, config, options)
  for size in sizes:
    n = estimate.nodes(size)
    yield "emd, 375", f"nodes {n}", functools.partial(of_emd, n, options)
  for count in devices if jax.default_backend() == "cpu" else ():
    yield "devices", str(count), functools.partial(on_devices, count)
  for name, config in largest:
    yield "largest", name, functools.partial(of_the_largest, config, options)


def line(stage: str, name: str, found: dict) -> str:
  """One row for people."""
  cells = []
  for key, value in found.items():
    if key.endswith("_s"):
      cells.append(f"{key[:-2]} {1e3 * value:.4g} ms")
    else:
      cells.append(f"{key} {value:.4g}")
  return f"{stage:<10} {name:<10} " + ", ".join(cells)


def main() -> None:
  """Prints a row as soon as it is measured."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", type=int, default=84, help="of images")
  parser.add_argument("--width", type=float, default=0.125)
  parser.add_argument("--images", type=int, default=64, help="in pre-training")
  parser.add_argument("--query", type=int, default=15)
  parser.add_argument("--epochs", type=int, default=100, help="of the SFC")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--json", help="also write the rows to this file")
  parser.add_argument(
    "--only", default="", help="rows with this in the name (a pattern)"
  )
  parser.add_argument("--smoke", action="store_true")
  parser.add_argument(
    "--on-devices", action="store_true", help=argparse.SUPPRESS
  )
  options = parser.parse_args()
  options.pool = 64, 40
  if options.smoke:
    options.size, options.width, options.query = 32, 1 / 64, 2
    options.images, options.epochs, options.repeats = 64, 2, 1
    options.pool = 16, 8
  if options.on_devices:
    print(json.dumps(of_devices(options)))
    return
  print(
    f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} "
    f"cores; load {os.getloadavg()[0]:.1f}; base: {options.size} pixels, width "
    f"{options.width:g}, 5-way 1-shot, {options.query} queries a class, "
    f"pre-training of {options.images} images a step",
    flush=True,
  )
  rows = []
  for stage, name, measure in sweep(options):
    if not re.search(options.only, f"{stage} {name}"):
      continue
    found = measure()
    load = os.getloadavg()[0]
    rows.append({"stage": stage, "case": name, **found, "load": load})
    print(line(stage, name, found), flush=True)
    if options.json:  # what there is by now
      with open(options.json, "w") as file:
        json.dump(rows, file, indent=2)


if __name__ == "__main__":
  main()
