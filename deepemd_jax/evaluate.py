"""Stage 3, and the validation of the others: thousands of few-shot episodes.

Each image is encoded once; an episode is then only a choice of rows. All heads
see identical episodes, so their differences are paired.
"""

import json
import os
import pathlib
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from deepemd_jax import build, figures, training
from deepemd_jax.data import episodes
from deepemd_jax.models import matching, nodes, resnet

Head = Callable[[jax.Array, jax.Array], jax.Array]


def heads(config) -> dict[str, Head]:
  """Name -> (query_nodes [q, n, c], class_nodes [way, n, c]) -> logits."""
  options = {
    "solver": build.solver(config),
    "temperature": config.emd.temperature,
  }

  def deepemd(query_nodes, class_nodes):
    return matching.logits(query_nodes, class_nodes, **options)

  def equal_weights(query_nodes, class_nodes):
    return matching.logits(query_nodes, class_nodes, weights="equal", **options)

  return {
    "deepemd": deepemd,
    "deepemd_equal_weights": equal_weights,
    "prototype": matching.prototype_logits,
  }


def encoder(config) -> Callable:
  """(encoder variables, image set) -> nodes [N, n, c] of its images, in order.

  Make it once: it compiles on first use.
  """
  view = build.evaluation_view(config)
  size = config.evaluate.encode_batch_size

  @jax.jit
  def encode(variables, pixels):
    return nodes.from_map(resnet.encode(variables, view(pixels)))

  def encode_all(variables, images):
    parts = []
    for start in range(0, len(images.labels), size):
      pixels = images.images[start : start + size]
      # The last batch is filled up, so that one shape compiles once.
      fill = [(0, size - len(pixels))] + [(0, 0)] * 3
      encoded = encode(variables, np.pad(pixels, fill))
      parts.append(encoded[: len(pixels)])
    return jnp.concatenate(parts)

  return encode_all


def scorer(head: Head) -> Callable:
  """A jitted (nodes [N, n, c], support [e, way, shot], query [e, way, n_query])
  -> accuracy of each episode, [e], percent."""

  def episode(encoded, support, query):
    way, n_query = query.shape
    class_nodes = encoded[support].mean(1)
    logits = head(encoded[query.reshape(-1)], class_nodes)
    right = logits.argmax(-1) == jnp.repeat(jnp.arange(way), n_query)
    return 100 * right.mean()

  return jax.jit(jax.vmap(episode, (None, 0, 0)))


def sampler(config, images, split: str) -> episodes.EpisodeSampler:
  """The episodes of a split: those every head and every run is judged on."""
  return episodes.EpisodeSampler(
    images.labels,
    class_names=images.class_names,
    seed=config.seed,
    split=split,
    way=config.episode.way,
    shot=config.episode.shot,
    query=config.episode.query,
  )


def accuracies(
  score: Callable, encoded, draw, count: int, batch_size: int
) -> np.ndarray:
  """Accuracy of episodes 0..count-1, [count], percent.

  An episode's accuracy does not depend on the batch that it is in.
  """
  results = []
  for start in range(0, count, batch_size):
    # The last batch repeats early episodes, so that one shape compiles once.
    indices = [i % count for i in range(start, start + batch_size)]
    drawn = episodes.batch(draw, indices)
    results.append(np.asarray(score(encoded, drawn.support, drawn.query)))
  return np.concatenate(results)[:count]


def interval(values: np.ndarray) -> float:
  """Half width of the 95% interval: 1.96 std / sqrt(n), as the official code
  (std over n, not n - 1)."""
  return float(1.96 * np.std(values) / np.sqrt(len(values)))


def validator(config, images, count: int) -> Callable[[dict], dict]:
  """Encoder variables -> {"accuracy", "prototype"}: mean percent on the first
  `count` validation episodes of DeepEMD and of the pooled prototype."""
  encode = encoder(config)
  draw = sampler(config, images, "val")
  chosen = heads(config)
  scores = {
    "accuracy": scorer(chosen["deepemd"]),
    "prototype": scorer(chosen["prototype"]),
  }

  def validate(variables):
    encoded = encode(variables, images)
    batch = config.evaluate.batch_size
    return {
      name: float(np.mean(accuracies(score, encoded, draw, count, batch)))
      for name, score in scores.items()
    }

  return validate


def run(config, workdir: pathlib.Path) -> None:
  """Tests the best encoders; writes results.json, figures and a table."""
  began = time.monotonic()
  source = build.source(config)
  encoders = _encoders(config, workdir, source.load("val"))
  test = source.load("test")
  measure = _Measure(config, encoders)
  results = measure(test, config.evaluate.episodes, "test")
  results["variants"] = {}
  for variant in config.evaluate.variants:
    images = build.source(config, variant).load("test")
    measured = measure(images, config.evaluate.variant_episodes, variant)
    measured.pop("timing")
    results["variants"][variant] = measured
  results["encoders"] = {
    head: {key: value for key, value in found.items() if key != "variables"}
    for head, found in encoders.items()
  }
  results |= _protocol(config)
  results["timing"]["seconds"] = round(time.monotonic() - began, 1)
  _write(workdir / "results.json", results)
  print(table(results), flush=True)
  figures.draw(
    config,
    workdir,
    test,
    sampler(config, test, "test")(0),
    encoders["deepemd"]["variables"],
    results,
  )


def _encoders(config, workdir, val) -> dict[str, dict]:
  """Head -> its encoder. DeepEMD's is the last trained stage's best; the
  prototype gets whichever stage's best suits the prototype on validation
  episodes: a fair opponent."""
  abstract = jax.eval_shape(
    lambda: resnet.init(jax.random.key(0), width=config.model.width)
  )
  stages = [s for s in ("pretrain", "metatrain") if (workdir / s).exists()]
  if not stages:
    raise training.nothing_trained(workdir)
  found = {}
  validate = validator(config, val, config.metatrain.validation_episodes)
  for stage in stages:
    variables, step, _ = training.best_variables(workdir / stage, abstract)
    found[stage] = {
      "stage": stage,
      "step": step,
      "validation": validate(variables),
      "variables": variables,
    }
  fairest = max(stages, key=lambda s: found[s]["validation"]["prototype"])
  last = found[stages[-1]]
  return {
    "deepemd": last,
    "deepemd_equal_weights": last,
    "prototype": found[fairest],
  }


class _Measure:
  """All heads on the same episodes of an image set; compiles once."""

  def __init__(self, config, encoders: dict[str, dict]) -> None:
    self._config = config
    self._encoders = encoders
    self._encode = encoder(config)
    self._scores = {name: scorer(head) for name, head in heads(config).items()}

  def __call__(self, images, count: int, name: str) -> dict:
    draw = sampler(self._config, images, "test")
    began = time.monotonic()
    encoded = {}
    for found in self._encoders.values():
      if found["stage"] not in encoded:
        nodes_of = self._encode(found["variables"], images)
        encoded[found["stage"]] = jax.block_until_ready(nodes_of)
    encoding = time.monotonic() - began
    scores, speed = {}, {}
    size = self._config.evaluate.batch_size
    for head, score in self._scores.items():
      nodes_of = encoded[self._encoders[head]["stage"]]
      accuracies(score, nodes_of, draw, size, size)  # compiles
      began = time.monotonic()
      scores[head] = accuracies(score, nodes_of, draw, count, size)
      speed[head] = round(count / (time.monotonic() - began), 1)
    means = ", ".join(f"{head} {v.mean():.2f}" for head, v in scores.items())
    training.note(f"evaluate {name}: {means}")
    others = [head for head in scores if head != "deepemd"]
    return {
      "heads": {
        head: {"accuracy": float(np.mean(values)), "ci95": interval(values)}
        for head, values in scores.items()
      },
      "paired": {
        f"deepemd - {other}": {
          "mean": float(np.mean(scores["deepemd"] - scores[other])),
          "ci95": interval(scores["deepemd"] - scores[other]),
        }
        for other in others
      },
      "episodes": count,
      "timing": {
        "encoding_seconds": round(encoding, 2),
        "encoded_images": len(images.labels) * len(encoded),
        "episodes_per_second": speed,
      },
    }


def _protocol(config) -> dict:
  """What a reader needs to repeat or compare the numbers."""
  import flax
  import jaxlib

  from deepemd_jax import __version__

  return {
    "data": config.data.name,
    "image": {"size": config.image.size, "crop": config.image.crop},
    "episode": config.episode.to_dict(),
    "seed": config.seed,
    "versions": {
      "deepemd_jax": __version__,
      "python": platform.python_version(),
      "jax": jax.__version__,
      "jaxlib": jaxlib.__version__,
      "flax": flax.__version__,
      "numpy": np.__version__,
    },
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
  }


def _write(path: pathlib.Path, results: dict) -> None:
  """Whole or not at all."""
  scratch = path.with_suffix(".tmp")
  scratch.write_text(json.dumps(results, indent=2) + "\n")
  os.replace(scratch, path)


def table(results: dict) -> str:
  """The results as text, for the terminal."""
  shape = results["episode"]
  lines = [
    f"{results['data']}: {shape['way']}-way {shape['shot']}-shot, "
    f"{shape['query']} queries a class, {results['episodes']} test episodes, "
    f"seed {results['seed']}",
    "",
    f"{'head':<28}{'accuracy %':>16}{'encoder':>18}{'episodes/s':>12}",
  ]
  speed = results["timing"]["episodes_per_second"]
  for head, row in results["heads"].items():
    found = results["encoders"][head]
    accuracy = f"{row['accuracy']:.2f} +- {row['ci95']:.2f}"
    where = f"{found['stage']} {found['step']}"
    lines.append(
      f"{figures.results_title(head):<28}{accuracy:>16}{where:>18}{speed[head]:>12}"
    )
  lines += ["", "paired differences on the same episodes"]
  for pair, row in results["paired"].items():
    lines.append(f"{pair:<40}{row['mean']:+.2f} +- {row['ci95']:.2f}")
  if results["variants"]:
    lines += ["", "clutter" + " " * 9 + "".join(f"{h:>26}" for h in speed)]
    for variant, measured in results["variants"].items():
      cells = [
        f"{row['accuracy']:.1f} +- {row['ci95']:.1f}"
        for row in measured["heads"].values()
      ]
      lines.append(f"{variant:<16}" + "".join(f"{c:>26}" for c in cells))
  return "\n".join(lines)
