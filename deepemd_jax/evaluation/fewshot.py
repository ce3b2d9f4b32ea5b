"""Stage 3, and the validation of the others: thousands of few-shot episodes.

Each image is encoded once; an episode is then only a choice of rows. All heads
see identical episodes, so their differences are paired.
"""

import contextlib
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from deepemd_jax.config import resolve
from deepemd_jax.data import episodes
from deepemd_jax.distributed import runtime, sharding
from deepemd_jax.evaluation import figures
from deepemd_jax.models import matching, nodes, resnet12, sfc
from deepemd_jax.training import loop
from deepemd_jax.utils.progress import Progress

# (query_nodes [q, n, c], support_nodes [way, shot, n, c], key) -> [q, way]
Head = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def heads(config) -> dict[str, Head]:
  """The heads to compare, by name; `config.evaluate.heads`, or the usual three.

  With more than one shot DeepEMD's class nodes come from the structured FC
  layer, but for `deepemd_mean` (the mean of the support nodes) and
  `deepemd_nearest` (the logit of the support image that is most alike).
  """
  names = config.evaluate.heads or (
    ("deepemd", "deepemd_equal_weights", "prototype")
    if config.episode.shot == 1
    else ("deepemd", "deepemd_mean", "prototype")
  )
  return {name: _head(config, name) for name in names}


def _head(config, name: str) -> Head:
  options = {
    "solver": resolve.solver(config),
    "temperature": config.emd.temperature,
  }
  options |= {
    "deepemd_equal_weights": {"weights": "equal"},
    "deepemd_l2": {"metric": "l2"},
    "deepemd_sinkhorn": {
      "solver": resolve.solver(config, "sinkhorn", config.evaluate.epsilon)
    },
    "deepemd_qp": {"solver": resolve.solver(config, "regularized_qp")},
  }.get(name, {})
  plain = {
    "prototype": matching.prototype_logits,
    "chamfer": matching.chamfer_logits,
  }

  def of_mean(query_nodes, support_nodes, key):
    del key
    score = plain.get(name, functools.partial(matching.logits, **options))
    return score(query_nodes, support_nodes.mean(1))

  def of_nearest(query_nodes, support_nodes, key):
    del key
    way, shot = support_nodes.shape[:2]
    each = support_nodes.reshape(way * shot, *support_nodes.shape[2:])
    logits = matching.logits(query_nodes, each, **options)
    return logits.reshape(-1, way, shot).max(-1)

  def of_fitted(query_nodes, support_nodes, key):
    class_nodes = sfc.fit(
      support_nodes,
      order=sfc.random_order(
        key, support_nodes.shape[0] * support_nodes.shape[1], config.sfc.epochs
      ),
      learning_rate=config.sfc.lr,
      batch_size=config.sfc.batch_size,
      gradient=config.sfc.gradient,
      **options,
    )
    return matching.logits(query_nodes, class_nodes, **options)

  if name == "deepemd_nearest":
    return of_nearest
  if config.episode.shot == 1 or name == "deepemd_mean" or name in plain:
    return of_mean
  return of_fitted


def encoder(config) -> Callable:
  """(encoder variables, image set, function to call at every batch or nothing)
  -> nodes [N, n, c] of its images, in order.

  A JAX array on every device, or, above `config.evaluate.memory`, a NumPy one
  in a file that vanishes with it. Where `config.nodes.redraw` gives an image
  other crops in every episode, a function instead: (rows [e, ...], episode
  numbers [e]) -> nodes [e, ..., n, c], NumPy. Make it once: it compiles on
  first use. All devices share the work.
  """
  whole = config.nodes.kind == "fcn"
  side = resolve.evaluation_side(config)
  view = resolve.evaluation_view(config)
  cut = resolve.crop(config, config.image.size)
  batch = config.evaluate.encode_batch_size
  limit = config.evaluate.memory * 2**30
  precision = config.model.precision

  def whole_images(variables, pixels):
    maps = resnet12.encode(variables, view(pixels), precision)
    return nodes.pyramid(maps, tuple(config.nodes.pyramid))

  def crops_of_images(variables, pixels, boxes, flip):
    crops = cut({"images": pixels, "boxes": boxes, "flip": flip})
    crops = crops.reshape(-1, *crops.shape[2:])
    maps = resnet12.encode(variables, crops, precision)
    return nodes.from_crops(maps.reshape(*flip.shape, *maps.shape[1:]))

  encode = sharding.shard_map_batch(
    whole_images if whole else crops_of_images, whole=1
  )
  to_all = jax.jit(encode, out_shardings=sharding.replicated())
  to_each = jax.jit(encode, out_shardings=sharding.batch_sharding())

  def encode_all(variables, images, heed=lambda: None):
    draw = None if whole else resolve.evaluation_crops(config, images)
    count = len(images.labels)
    size = batch if whole else max(1, batch // draw(np.arange(1))[1].shape[1])
    size = sharding.pad_to_devices(size)
    kept = None
    shown = Progress()
    for start in range(0, count, size):
      heed()
      shown("images encoded", start, count)
      # The last batch repeats an image, so that one shape compiles once.
      rows = np.minimum(start + sharding.local_indices(size), count - 1)
      if whole:
        seen = (images.whole(rows, side),)
      else:
        boxes, flip = draw(rows)
        seen = (*images.cut(rows, boxes, config.image.size), flip)
      encoded = np.asarray(to_all(variables, *sharding.shard_batch(seen)))
      if kept is None:
        kept = room((count, *encoded.shape[1:]), limit)
      kept[start : start + size] = encoded[: count - start]
    shown.close()
    return kept if isinstance(kept, np.memmap) else sharding.replicate(kept)

  def encode_anew(variables, images, heed=lambda: None):
    draw = resolve.evaluation_crops(config, images)

    def of_episodes(rows, numbers):
      each = rows.reshape(len(rows), -1)
      drawn = [draw(r, int(i)) for r, i in zip(each, numbers, strict=True)]
      boxes, flip = (np.concatenate(x) for x in zip(*drawn, strict=True))
      # All of these are this process's own: every one has as many.
      count = len(boxes)
      size = len(sharding.local_indices(max(1, batch // flip.shape[1])))
      parts = []
      for start in range(0, count, size):
        heed()
        at = np.minimum(np.arange(start, start + size), count - 1)
        cut_out = images.cut(each.ravel()[at], boxes[at], config.image.size)
        encoded = to_each(
          variables, *sharding.shard_batch((*cut_out, flip[at]))
        )
        parts.append(sharding.local_rows(encoded))
      nodes_of = np.concatenate(parts)[:count]
      return nodes_of.reshape(*rows.shape, *nodes_of.shape[1:])

    return of_episodes

  return encode_anew if config.nodes.redraw and not whole else encode_all


def room(shape: tuple[int, ...], limit: float) -> np.ndarray:
  """Uninitialized float32: in memory, or in a nameless file if too large."""
  if 4 * np.prod(shape) <= limit:
    return np.empty(shape, np.float32)
  return np.memmap(tempfile.TemporaryFile(), np.float32, "w+", shape=shape)


def scorer(config, head: Head) -> Callable:
  """A `(nodes, episodes, numbers [e]) -> accuracy` of each, [e], percent.

  Nodes are what `encoder` gives, episodes and numbers this process's share; the
  accuracies are everybody's. What is random follows the episodes' numbers.
  """

  whole = sharding.replicated()

  def episode(query_nodes, support_nodes, number):
    way, n_query = query_nodes.shape[:2]
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    flat = query_nodes.reshape(way * n_query, *query_nodes.shape[2:])
    logits = head(flat, support_nodes, key)
    right = logits.argmax(-1) == jnp.repeat(jnp.arange(way), n_query)
    return 100 * right.mean()

  def of_device(encoded, query, support, numbers):
    return jax.vmap(episode)(encoded[query], encoded[support], numbers)

  on_host = jax.jit(
    sharding.shard_map_batch(jax.vmap(episode)), out_shardings=whole
  )
  on_device = jax.jit(
    sharding.shard_map_batch(of_device, whole=1), out_shardings=whole
  )

  def of_rows(encoded, drawn, numbers):
    rows = drawn.query, drawn.support
    if isinstance(encoded, jax.Array):
      return on_device(encoded, *sharding.shard_batch((*rows, numbers)))
    if callable(encoded):
      seen = [encoded(each, numbers) for each in rows]
    else:
      seen = [encoded[each] for each in rows]
    return on_host(*sharding.shard_batch((*seen, numbers)))

  return of_rows


def sampler(config, images, split: str) -> episodes.EpisodeSampler:
  """The episodes of a split: those every head and every run is judged on. They
  are `config.episode`'s for the split test, else those of training."""
  if split == "test":
    shape = config.episode.to_dict()
  else:
    shape = resolve.training_episode(config)
  return episodes.EpisodeSampler(
    images.labels,
    class_names=images.class_names,
    seed=config.seed,
    split=split,
    **shape,
  )


def accuracies(
  score: Callable,
  encoded,
  draw,
  count: int,
  batch_size: int,
  progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
  """Accuracy of episodes 0..count-1, [count], percent.

  An episode's accuracy does not depend on the batch that it is in. `progress`
  is called with the number of episodes done. All devices share the work.
  """
  results = []
  batch_size = sharding.pad_to_devices(batch_size)
  for start in range(0, count, batch_size):
    progress(start)
    # The last batch repeats early episodes, so that one shape compiles once.
    indices = ((start + sharding.local_indices(batch_size)) % count).astype(
      np.int32
    )
    drawn = episodes.batch(draw, map(int, indices))
    results.append(np.asarray(score(encoded, drawn, indices)))
  return np.concatenate(results)[:count]


def interval(values: np.ndarray) -> float:
  """Half width of the 95% interval: 1.96 std / sqrt(n), as the official code
  (std over n, not n - 1)."""
  return float(1.96 * np.std(values) / np.sqrt(len(values)))


def validator(config, images, count: int) -> Callable:
  """(encoder variables, function to call at every batch or nothing) ->
  {"accuracy", "prototype"}: mean percent on the first `count` validation
  episodes of DeepEMD and of the pooled prototype."""
  encode = encoder(config)
  draw = sampler(config, images, "val")
  scores = {
    # The structured FC layer would take longer than the training.
    "accuracy": scorer(config, _head(config, "deepemd_mean")),
    "prototype": scorer(config, _head(config, "prototype")),
  }

  def validate(variables, heed=lambda: None):
    encoded = encode(variables, images, heed)
    batch = config.evaluate.batch_size

    def mean(score):
      found = accuracies(
        score, encoded, draw, count, batch, lambda done: heed()
      )
      return float(np.mean(found))

    return {name: mean(score) for name, score in scores.items()}

  return validate


def run(config, workdir: pathlib.Path) -> None:
  """Tests the best encoders; writes results.json, figures and a table."""
  began = time.monotonic()
  encoders = _encoders(config, workdir, resolve.source(config).load("val"))
  test = resolve.source(config, split="test").load("test")
  encode = _Encode(encoders)
  measure = _Measure(config, encoders, encode)
  results = measure(test, config.evaluate.episodes, "test")
  results["more"] = {}
  for change in config.evaluate.more:
    other = resolve.changed(config, change)
    again = _Measure(other, encoders, encode)
    found = again(test, config.evaluate.more_episodes, f"test, {change}")
    results["more"][change] = found | {
      "episode": other.episode.to_dict(),
      "nodes": results.nodes_fields(other),
    }
  results["variants"] = {}
  for variant in config.evaluate.variants:
    images = resolve.source(config, variant, "test").load("test")
    measured = measure(images, config.evaluate.variant_episodes, variant)
    measured.pop("timing")
    results["variants"][variant] = measured
  results["encoders"] = {
    stage: {key: value for key, value in found.items() if key != "variables"}
    for stage, found in encoders.items()
  }
  results |= results.protocol(config, workdir)
  if not runtime.is_main():
    return
  results["timing"]["seconds"] = round(time.monotonic() - began, 1)
  results.save(config, workdir, results)
  print(results.table(results), flush=True)
  figures.draw(
    config,
    workdir,
    test,
    sampler(config, test, "test")(0),
    jax.tree.map(np.asarray, encoders["deepemd"]["variables"]),
    results,
  )


def best_encoders(config, workdir: pathlib.Path) -> dict[str, dict]:
  """The best encoder of each trained stage, by its name, in their order:
  "stage", "step" and "variables".

  Raises:
    InputError: there is none.
  """
  abstract = jax.eval_shape(
    lambda: resnet12.init(jax.random.key(0), width=config.model.width)
  )
  stages = [s for s in ("pretrain", "metatrain") if (workdir / s).exists()]
  if not stages:
    raise loop.nothing_trained(workdir)
  found = {}
  for stage in stages:
    variables, step, _ = loop.best_variables(workdir / stage, abstract)
    found[stage] = {"stage": stage, "step": step, "variables": variables}
  return found


def _encoders(config, workdir, val) -> dict[str, dict]:
  """ "deepemd" -> the encoder of all heads but "prototype": the last trained
  stage's best. The prototype gets whichever stage's best suits it on validation
  episodes: a fair opponent."""
  found = list(best_encoders(config, workdir).values())
  validate = validator(config, val, config.metatrain.validation_episodes)
  for encoder_of in found:
    encoder_of["validation"] = validate(encoder_of["variables"], _heed)
  fairest = max(found, key=lambda f: f["validation"]["prototype"])
  return {"deepemd": found[-1], "prototype": fairest}


def _heed() -> None:
  runtime.raise_if_stopping("evaluate")


class _Encode:
  """The nodes of an image set, encoded once a stage, however many heads and
  kinds of episodes look at them (but see `encoder`). `count` counts images."""

  def __init__(self, encoders: dict[str, dict]) -> None:
    self._variables = {f["stage"]: f["variables"] for f in encoders.values()}
    self._functions: dict = {}
    self._images = None
    self._kept: dict = {}
    self.count = 0

  def __call__(self, config, stage: str, images):
    if images is not self._images:  # one image set at a time fits in memory
      self._images, self._kept = images, {}
    kind = config.nodes.to_json()
    if (kind, stage) not in self._kept:
      if kind not in self._functions:
        self._functions[kind] = encoder(config)
      encoded = self._functions[kind](self._variables[stage], images, _heed)
      if callable(encoded):
        encoded = self._counted(encoded)
      else:
        self.count += len(images.labels)
      self._kept[kind, stage] = jax.block_until_ready(encoded)
    return self._kept[kind, stage]

  def _counted(self, encode):
    def counted(rows, numbers):
      self.count += rows.size
      return encode(rows, numbers)

    return counted


class _Measure:
  """All heads on the same episodes of an image set; compiles once."""

  def __init__(self, config, encoders: dict[str, dict], encode) -> None:
    self._config = config
    self._encode = encode
    self._scores = {n: scorer(config, h) for n, h in heads(config).items()}
    self._stages = {
      name: encoders.get(name, encoders["deepemd"])["stage"]
      for name in self._scores
    }

  def __call__(self, images, count: int, name: str) -> dict:
    draw = sampler(self._config, images, "test")
    began, before = time.monotonic(), self._encode.count
    # In the same order in all processes, which a set has not.
    for stage in dict.fromkeys(self._stages.values()):
      self._encode(self._config, stage, images)
    encoding = time.monotonic() - began
    scores, speed = {}, {}
    size = min(self._config.evaluate.batch_size, count)
    for head, score in self._scores.items():
      nodes_of = self._encode(self._config, self._stages[head], images)
      accuracies(score, nodes_of, draw, size, size)  # compiles
      began = time.monotonic()
      with contextlib.closing(Progress()) as shown:

        def progress(done, shown=shown, head=head):
          _heed()
          shown(f"episodes, {name}, {head}", done, count)

        scores[head] = accuracies(score, nodes_of, draw, count, size, progress)
      speed[head] = count / (time.monotonic() - began)
    means = ", ".join(f"{head} {v.mean():.2f}" for head, v in scores.items())
    loop.note(f"evaluate {name}: {means}")
    others = [head for head in scores if head != "deepemd"]
    stages = len(set(self._stages.values()))
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
        "encoded_images": self._encode.count - before,
        "episodes_per_second": {h: round(x, 1) for h, x in speed.items()},
        "episodes_per_second_with_encoding": {
          head: round(1 / (1 / x + encoding / stages / count), 1)
          for head, x in speed.items()
        },
      },
    }
