"""The command `adapt`: learns from photographs, on top of a frozen encoder."""

import argparse
import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping

from deepemd_jax.errors import InputError
from deepemd_jax.inference import options as shared
from deepemd_jax.utils import terminal

HELP = "learn from labeled photographs, on top of a frozen encoder"
DESCRIPTION = """
Learns from labeled photographs, on top of a frozen encoder:

  python -m deepemd_jax adapt --images DIR --out RUN

Every photograph is encoded once. A linear map of the encoder's nodes is then
learned through the Earth Mover's Distance, on few-shot episodes. It can be used
for new classes of the same kind of photographs: give --checkpoint RUN to
classify, search, demo or export.

Each part of the classes is held out once, to measure how much the map helps. If
it helps, the map is learned again from all classes, and RUN is written.
"""
_FEWEST_CLASSES = 10  # with fewer, a part tells too little about the others
_MOST_A_CLASS = 100  # photographs; their nodes must fit in memory
_SEED = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command."""
  parser.add_argument(
    "--images",
    metavar="DIR",
    required=True,
    help="labeled photographs: one directory per class, at least "
    f"{_FEWEST_CLASSES} of them with two photographs or more",
  )
  parser.add_argument(
    "--out", metavar="RUN", required=True, help="the folder to make"
  )
  shared.add_encoding(parser, "labeled")


def run(options: argparse.Namespace) -> str:
  """Adapts an encoder and returns a text about the gain.

  Raises:
    InputError: an option, an image or the checkpoint does not fit, or the map
      does not help.
  """
  from deepemd_jax.checkpoints import pretrained
  from deepemd_jax.inference import choices
  from deepemd_jax.models import heads
  from deepemd_jax.training import projection
  from deepemd_jax.utils.progress import Progress

  paths, labels = _photographs(options.images)
  with pretrained.new_workdir(options.out) as workdir, Progress() as progress:
    trained = pretrained.load(options.checkpoint)
    settings = trained.settings
    if settings.model.get("projection"):
      raise InputError(
        f"{options.checkpoint!r} is adapted already; give the encoder that it "
        "was made from"
      )
    view = choices.choose_view(settings, options.variant)
    solver = choices.choose_solver(settings, options.solver)
    encoded = _encode(trained, view, paths, labels, options, progress)
    recipe = projection.Recipe()
    head = heads.bind("deepemd", heads.HeadSettings(solver=solver))
    verdict = projection.judge(encoded, recipe, head, _SEED, progress)
    if not verdict.helps:
      raise InputError(
        f"the learned map does not help: {verdict}; {options.out} is not "
        "written; give more classes or photographs, or use classify --center"
      )
    learned = projection.learn(encoded, recipe, head, _SEED, progress)
    _save(workdir, options, trained, recipe, learned, verdict)
  return (
    f"{verdict}\n{options.out} is ready, learned from all "
    f"{len(encoded.classes)} classes; use it with --checkpoint {options.out}"
  )


def _photographs(folder) -> tuple[list[pathlib.Path], list[str]]:
  """Returns the paths of photographs, and the class of each."""
  from deepemd_jax.data import folder as folders
  from deepemd_jax.utils.random_streams import Stream, stream

  found = folders.classes(folder)
  _refuse_few({name: len(images) for name, images in found.items()}, folder)
  paths, labels = [], []
  for name, images in found.items():
    rng = stream(_SEED, Stream.ADAPT_IMAGES, len(images))
    chosen = sorted(rng.permutation(len(images))[:_MOST_A_CLASS])
    paths += [images[i] for i in chosen]
    labels += [name] * len(chosen)
  return paths, labels


def _refuse_few(counts: Mapping[str, int], folder) -> None:
  """Raises an error if too few classes have two photographs."""
  enough = sum(count > 1 for count in counts.values())
  if enough < _FEWEST_CLASSES:
    raise InputError(
      f"{str(folder)!r} has {enough} classes with two photographs or more; "
      f"{_FEWEST_CLASSES} are needed, some to learn from and others to test "
      "on; classify needs no training, and works with fewer classes"
    )


def _encode(trained, view, paths, labels, options, progress):
  """Encodes photographs to nodes. It leaves out those that cannot be read and
  those that are alone in their class."""
  import numpy as np

  from deepemd_jax.inference import feature_cache, image_encoder
  from deepemd_jax.training.projection import Labeled

  cache = None
  if options.cache is not None:
    cache = feature_cache.Cache(options.cache)
  encoder = image_encoder.ImageEncoder(trained, view, cache)
  bad: dict[int, str] = {}
  good: list[int] = []
  parts = []
  batches = encoder.batches(
    paths, bad, lambda done: progress("images encoded", done, len(paths))
  )
  for numbers, encoded in batches:
    good += numbers
    parts.append(encoded.nodes)
  if not options.skip_bad or not good:
    image_encoder.refuse(paths, bad, ", or leave them out with --skip-bad")
  for i in sorted(bad):
    terminal.note(f"left out {str(paths[i])!r}: {bad[i]}")
  counts = collections.Counter(labels[i] for i in good)
  _refuse_few(counts, options.images)
  for name in sorted(x for x in counts if counts[x] == 1):
    terminal.note(f"class {name!r} has one photograph; it is left out")
  names = tuple(sorted(x for x in counts if counts[x] > 1))
  rows = [row for row, i in enumerate(good) if labels[i] in names]
  numbers = [names.index(labels[good[row]]) for row in rows]
  return Labeled(np.concatenate(parts)[rows], np.array(numbers), names)


def _save(workdir, options, trained, recipe, learned, verdict) -> None:
  """Writes a workdir: the config, the encoder with its map, and the verdict."""
  from deepemd_jax.checkpoints import pretrained
  from deepemd_jax.config import stored
  from deepemd_jax.inference import centering
  from deepemd_jax.models import projection

  fields = pretrained.config_of(options.checkpoint).to_dict()
  streams = pretrained.fields_of(options.checkpoint).get("streams", 1)
  fields["streams"] = streams
  fields["model"]["projection"] = len(learned["bias"])
  fields["sfc"]["lr"] = centering.SFC_LEARNING_RATE
  if options.variant:
    fields["nodes"]["kind"] = options.variant
  text = json.dumps(stored.sealed(fields), indent=2, sort_keys=True) + "\n"
  (workdir / "config.json").write_text(text)
  facts = dataclasses.asdict(verdict)
  (workdir / "adapt.json").write_text(json.dumps(facts, indent=2) + "\n")
  best = pretrained.BestEncoder(
    "metatrain",
    recipe.steps,
    verdict.after.mean,
    projection.join(trained.encoder.variables, learned),
  )
  pretrained.save_encoder(workdir, best, {"adapted": facts})
