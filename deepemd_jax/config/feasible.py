"""Checks that the data of a run exist and can fill its episodes."""

from collections.abc import Iterable

from deepemd_jax.config.changes import changed
from deepemd_jax.config.settings import Settings
from deepemd_jax.config.stages import STAGES
from deepemd_jax.data import episodes
from deepemd_jax.data.sources import DataSpec, open_source
from deepemd_jax.errors import InputError


def check_data(config) -> None:
  """Raises an error if data sets must be fetched first. It loads no JAX, so
  that it answers at once.

  Args:
    config: a ConfigDict whose values have been validated.

  Raises:
    MissingData: data are missing; the message says what to fetch, and how.
  """
  data = config.data
  spec = DataSpec(data.name, data.test_name, data.directory, data.folder)
  for split in _splits(config.stages):
    open_source(spec, split=split).check()


def check_feasible(settings: Settings) -> None:
  """Raises an error if data are missing, or if the classes cannot fill the
  episodes. It reads no images.

  Raises:
    MissingData: a data set must be fetched first.
    InputError: there are too few classes or images, or a stage would train a
      frozen backbone.
  """
  stages = [STAGES[name] for name in settings.stages]
  if any(stage.trains for stage in stages):
    _refuse_frozen(settings)
  of_episodes = {split for stage in stages for split in stage.episodes}
  of_galleries = {split for stage in stages for split in stage.galleries}
  needed = [(settings, "default", split) for split in _splits(settings.stages)]
  if "evaluate" in settings.stages:
    evaluate = settings.evaluate
    needed += [(settings, variant, "test") for variant in evaluate.variants]
    needed += [(changed(settings, x), "default", "test") for x in evaluate.more]
  opened = [
    (open_source(own.data, variant=variant, split=split), own, split)
    for own, variant, split in needed
  ]
  for source, _, split in opened:
    source.counts(split)  # raises an error if there is no such split
  for source, _, _ in opened:
    source.check()
  for source, own, split in opened:
    # These are counts of the present data, which may be more than published.
    counts = source.counts(split)
    if split in of_galleries:
      _check_retrievable(counts, split)
    if split in of_episodes:
      shape = own.episode if split == "test" else own.training_episode
      try:
        episodes.check_feasible(counts, shape, split=split)
      except InputError as error:
        raise InputError(f"{error}{_otherwise(own, split)}") from error


def _otherwise(settings: Settings, split: str) -> str:
  """Returns advice for few classes or images in a user's own folder."""
  data = settings.data
  name = data.test_name if split == "test" and data.test_name else data.name
  if name.partition(":")[0] != "folder":
    return ""
  return (
    "; or do not train: python -m deepemd_jax classify and FewShotClassifier "
    "need only a few images of each of two or more classes"
  )


def _refuse_frozen(settings: Settings) -> None:
  """Raises an error if the stages may not train the backbone."""
  remedy = "leave pretrain and metatrain out of config.stages"
  if settings.backbone.weights:
    raise InputError(
      f"config.model.backbone is {settings.model['backbone']!r}, which is "
      f"frozen; {remedy}"
    )
  if settings.model.get("projection"):
    raise InputError(
      f"config.model.projection is {settings.model['projection']}, but "
      f"only the command adapt trains a projection; {remedy}"
    )


def _splits(stages: Iterable[str]) -> list[str]:
  """Returns the splits that some stages need, in order."""
  needed = set().union(*(STAGES[stage].splits for stage in stages))
  return [split for split in ("train", "val", "test") if split in needed]


def _check_retrievable(counts: dict[str, int], split: str) -> None:
  """Raises an error if a gallery has no image to find, or only one class."""
  several = sum(count > 1 for count in counts.values())
  if len(counts) < 2 or not several:
    raise InputError(
      "retrieval needs two or more classes, one of them with two or more "
      f"images; split {split!r} has {len(counts)} classes, {several} of them "
      "with two or more images"
    )
