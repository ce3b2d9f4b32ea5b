"""The stage evaluate, which tests all heads on the same few-shot episodes.

The heads use the best encoder of the last trained stage. For a fair comparison,
pooled heads use the encoder of the stage that is best for the prototype head on
validation episodes.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Iterable

import numpy as np

from deepemd_jax.checkpoints import pretrained
from deepemd_jax.checkpoints.pretrained import BestEncoder
from deepemd_jax.config.changes import changed
from deepemd_jax.config.settings import Settings
from deepemd_jax.data.episodes import AmongRows
from deepemd_jax.data.image_set import ImageSet
from deepemd_jax.data.sources import open_source
from deepemd_jax.distributed import runtime, sharding
from deepemd_jax.evaluation import figures
from deepemd_jax.evaluation.episodes import (
  EpisodeScorer,
  Validator,
  episode_sampler,
)
from deepemd_jax.evaluation.features import ImageSetEncoder
from deepemd_jax.evaluation.protocol import Protocol
from deepemd_jax.evaluation.results import (
  EpisodeResults,
  Estimate,
  FewShotResults,
  Timing,
  encoder_name,
  nodes_fields,
)
from deepemd_jax.models import heads
from deepemd_jax.utils import terminal
from deepemd_jax.utils.progress import Progress

STAGE = "evaluate"
_PLENTY = 4  # images drawn per test image; then 98% are in some episode


def run(settings: Settings, workdir: pathlib.Path) -> None:
  """Tests the best encoders, prints a table, and writes results and figures.

  Raises:
    InputError: there is no trained encoder.
    StopRequested: a signal asked to stop.
  """
  began = time.monotonic()
  encoders, validation = choose_encoders(settings, workdir)
  test = open_source(settings.data, split="test").load("test")
  cache = NodeCache(encoders)
  measure = HeadComparison(settings, encoders, cache)
  evaluate = settings.evaluate
  changes = {change: changed(settings, change) for change in evaluate.more}
  cache.expect(test, [settings], evaluate.episodes)
  cache.expect(test, changes.values(), evaluate.more_episodes)
  main = measure(test, evaluate.episodes, "test")
  more = {}
  for change, other in changes.items():
    own = HeadComparison(other, encoders, cache)
    more[change] = own(test, evaluate.more_episodes, f"test, {change}")
  variants = {}
  for variant in evaluate.variants:
    source = open_source(settings.data, variant=variant, split="test")
    images = source.load("test")
    cache.expect(images, [settings], evaluate.variant_episodes)
    variants[variant] = measure(images, evaluate.variant_episodes, variant)
  results = FewShotResults(
    main=main,
    more=more,
    variants=variants,
    encoders=encoders,
    validation=validation,
    protocol=Protocol.of(settings, workdir),
    seconds=time.monotonic() - began,
  )
  if runtime.is_main():
    print(results.table(), flush=True)  # before saving, as the disk may be full
    results.save(workdir)
    episode = episode_sampler(settings, test, "test")(0)
    variables = encoders["deepemd"].variables
    figures.draw(settings, workdir, test, episode, variables, results)


def choose_encoders(
  settings: Settings, workdir: pathlib.Path
) -> tuple[dict[str, BestEncoder], dict[str, dict[str, float]]]:
  """Chooses the encoders of the heads.

  Returns:
    {"deepemd": the encoder of heads that match nodes, "prototype": the encoder
    of pooled heads}; and their validation accuracies with the same keys.
  """
  encoders = pretrained.best_encoders(workdir, settings.backbone)
  val = open_source(settings.data).load("val")
  count = settings.metatrain.validation_episodes
  validate = Validator(settings, val, count, STAGE)
  validation = {}
  for stage, best in encoders.items():
    terminal.note(f"{STAGE}: validating the encoder of {stage}")
    validation[stage] = validate(sharding.replicate(best.variables))
  fairest = max(validation, key=lambda stage: validation[stage]["prototype"])
  chosen = {"deepemd": list(encoders)[-1], "prototype": fairest}
  return (
    {name: encoders[stage] for name, stage in chosen.items()},
    {name: validation[stage] for name, stage in chosen.items()},
  )


class NodeCache:
  """A cache of the nodes of an image set.

  Each stage's encoder encodes an image once for all heads and tests. Images
  that no test uses are not encoded.
  """

  def __init__(self, encoders: dict[str, BestEncoder]) -> None:
    self._variables = {
      best.stage: sharding.replicate(best.variables)
      for best in encoders.values()
    }
    self._encoders: dict = {}  # (view, pyramid) -> encoder, which compiles once
    self._images: ImageSet | None = None
    self._nodes: dict = {}
    self._rows: dict = {}  # (view, pyramid) -> rows that episodes use

  @property
  def encoded_images(self) -> int:
    """The number of images encoded so far."""
    return sum(x.encoded_images for x in self._encoders.values())

  def expect(
    self, images: ImageSet, tests: Iterable[Settings], count: int
  ) -> None:
    """Announces the tests of an image set; to be called before the first test.

    Args:
      images: the image set. It replaces the previous one.
      tests: the settings of the tests.
      count: number of test episodes of each test.
    """
    self._turn_to(images)
    for settings in tests:
      used = rows_of_episodes(settings, images, count)
      kind = settings.view, settings.pyramid
      self._rows[kind] = np.union1d(self._rows.get(kind, used), used)

  def rows(self, settings: Settings, images: ImageSet) -> np.ndarray:
    """Returns the rows of the nodes, ascending int [k]."""
    self._turn_to(images)
    everything = np.arange(len(images.labels), dtype=np.int32)
    return self._rows.get((settings.view, settings.pyramid), everything)

  def _turn_to(self, images: ImageSet) -> None:
    if images is not self._images:  # one image set at a time fits in memory
      self._images, self._nodes, self._rows = images, {}, {}

  def __call__(self, settings: Settings, stage: str, images: ImageSet):
    """Returns the nodes of the `rows` of `images` by the encoder of `stage`."""
    self._turn_to(images)
    kind = settings.view, settings.pyramid
    if (kind, stage) not in self._nodes:
      if kind not in self._encoders:
        self._encoders[kind] = ImageSetEncoder.of(settings, STAGE)
      encode, rows = self._encoders[kind], self.rows(settings, images)
      terminal.note(f"{STAGE}: encoding images with the encoder of {stage}")
      self._nodes[kind, stage] = encode(self._variables[stage], images, rows)
    return self._nodes[kind, stage]


def rows_of_episodes(
  settings: Settings, images: ImageSet, count: int
) -> np.ndarray:
  """Returns the rows that `count` test episodes use, ascending int32 [k].

  If the episodes use nearly all rows, the function returns all of them.
  """
  shape, total = settings.episode, len(images.labels)
  if count * shape.way * (shape.shot + shape.query) >= _PLENTY * total:
    return np.arange(total, dtype=np.int32)
  return AmongRows.of(episode_sampler(settings, images, "test"), count).rows


class HeadComparison:
  """A comparison of all heads on the same episodes, which compiles once."""

  def __init__(
    self,
    settings: Settings,
    encoders: dict[str, BestEncoder],
    cache: NodeCache,
  ) -> None:
    self._settings = settings
    self._cache = cache
    names = settings.evaluate.heads or heads.usual(settings.episode.shot)
    self._scorers = {
      name: EpisodeScorer(heads.bind(name, settings.heads), settings.seed)
      for name in names
    }
    self._stages = {name: encoders[encoder_name(name)].stage for name in names}

  def __call__(self, images: ImageSet, count: int, name: str) -> EpisodeResults:
    """Compares the heads on `count` episodes; `name` is used in messages."""
    began, before = time.monotonic(), self._cache.encoded_images
    # The order must be the same in all processes; that of a set is not.
    stages = list(dict.fromkeys(self._stages.values()))
    for stage in stages:
      self._cache(self._settings, stage, images)
    encoding = time.monotonic() - began
    accuracies, speed = {}, {}
    terminal.note(f"{STAGE} {name}: testing {', '.join(self._scorers)}")
    with Progress() as progress:
      for head in self._scorers:
        report = functools.partial(_report, progress, name, head, count)
        accuracies[head], speed[head] = self._score(head, images, count, report)
    means = ", ".join(f"{h} {v.mean():.2f}" for h, v in accuracies.items())
    terminal.note(f"{STAGE} {name}: {means}")
    return EpisodeResults(
      accuracy={h: Estimate.of(v) for h, v in accuracies.items()},
      paired={
        f"deepemd - {other}": Estimate.of(accuracies["deepemd"] - values)
        for other, values in accuracies.items()
        if other != "deepemd"
      },
      episodes=count,
      timing=Timing(
        encoding_seconds=round(encoding, 2),
        encoded_images=self._cache.encoded_images - before,
        episodes_per_second={h: round(x, 1) for h, x in speed.items()},
        with_encoding={
          head: round(1 / (1 / x + encoding / len(stages) / count), 1)
          for head, x in speed.items()
        },
      ),
      shape=self._settings.episode,
      nodes=nodes_fields(self._settings),
    )

  def _score(
    self, head: str, images: ImageSet, count: int, report: Callable
  ) -> tuple[np.ndarray, float]:
    """Returns a head's accuracies [count], percent, and episodes per second.

    `report` is called with the number of episodes done.
    """
    score = self._scorers[head]
    nodes = self._cache(self._settings, self._stages[head], images)
    sampler = AmongRows(
      episode_sampler(self._settings, images, "test"),
      self._cache.rows(self._settings, images),
    )
    size = min(self._settings.evaluate.batch_size, count)
    score(nodes, sampler, size, size)  # compiles before the timing
    began = time.monotonic()
    accuracies = score(nodes, sampler, count, size, report)
    return accuracies, count / (time.monotonic() - began)


def _report(
  progress: Progress, name: str, head: str, count: int, done: int
) -> None:
  """Shows how many of `count` episodes of a test a head has done."""
  runtime.raise_if_stopping(STAGE)
  progress(f"episodes, {name}, {head}", done, count)
