"""The command `search`, which finds the images most similar to one image."""

import argparse
import functools
import os

from deepemd_jax.errors import InputError
from deepemd_jax.inference import options as shared
from deepemd_jax.utils import terminal
from deepemd_jax.utils.progress import Progress

HELP = "find the images of a folder that are most like one image"
DESCRIPTION = """
Finds the images of a folder that are most like one image:

  python -m deepemd_jax search --gallery DIR --query IMAGE --top 10

Pooled descriptors choose --top images. These images are then ranked by the
Earth Mover's Distance between their regions and those of the query.
"""
CLEANS_UP = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command."""
  parser.add_argument(
    "--gallery",
    metavar="DIR",
    required=True,
    help="folder with the images, which may be in subfolders",
  )
  parser.add_argument(
    "--query",
    metavar="IMAGE",
    required=True,
    help="the photograph to search for",
  )
  parser.add_argument(
    "--top",
    metavar="K",
    type=int,
    default=10,
    help="number of images to find (default %(default)s)",
  )
  parser.add_argument(
    "--center",
    metavar="DIR",
    help="photographs of the place where the images come from, for example the "
    "gallery itself: what they have in common is removed",
  )
  shared.add_encoding(parser, "gallery")


def run(options: argparse.Namespace) -> str:
  """Runs the search and returns a table with the best image first.

  Raises:
    InputError: an option, an image or the checkpoint is unsuitable.
  """
  if options.top < 1:
    raise InputError(f"--top is {options.top}; use 1 or more")

  from deepemd_jax.data import folder

  paths = _without(options.query, folder.below(options.gallery))
  center_paths = options.center and folder.below(options.center)

  from deepemd_jax.inference import image_encoder

  make_encoder, solver = encoder_and_solver(options)
  encoder = make_encoder()
  if center_paths:
    center = center_of(encoder, center_paths, options.skip_bad)
    encoder = make_encoder(center)
  query = encoder.all([options.query]).nodes
  best, bad = _nearest(encoder, query, paths, options.top)
  if not options.skip_bad or not best:
    image_encoder.refuse(paths, bad, ", or leave them out with --skip-bad")
  for i in sorted(bad):
    terminal.note(f"left out {str(paths[i])!r}: {bad[i]}")
  return _table(paths, best, query, solver)


def _without(query: str, paths: list) -> list:
  """Returns the images of the gallery without the query itself.

  Raises:
    InputError: there is no query, or no other image.
  """
  if not os.path.exists(query):
    raise InputError(f"there is no image {query!r}")
  real = os.path.realpath(query)
  others = [path for path in paths if os.path.realpath(path) != real]
  if not others:
    raise InputError("the gallery has no other image than the query")
  return others


def encoder_and_solver(options: argparse.Namespace):
  """Returns a function that makes the `ImageEncoder`, and the EMD solver.

  The function takes a `Center`, or no argument for an encoder without one.

  Args:
    options: the options of `shared.add_encoding`.

  Raises:
    InputError: an option or the checkpoint is unsuitable.
  """
  from deepemd_jax.checkpoints import pretrained
  from deepemd_jax.inference import choices, feature_cache, image_encoder

  trained = pretrained.load(options.checkpoint)
  solver = choices.choose_solver(trained.settings, options.solver)
  view = choices.choose_view(trained.settings, options.variant)
  cache = None
  if options.cache is not None:
    cache = feature_cache.Cache(options.cache)
  make = functools.partial(image_encoder.ImageEncoder, trained, view, cache)
  return make, solver


def center_of(encoder, paths, skip_bad: bool):
  """Computes the `Center` of photographs and shows its progress.

  Args:
    encoder: an `ImageEncoder` without a center.
    paths: the paths of the photographs.
    skip_bad: whether to omit unreadable photographs.

  Raises:
    InputError: a photograph cannot be read; with `skip_bad`, none can.
  """
  from deepemd_jax.inference import centering

  with Progress() as progress:
    return centering.Center.of(
      encoder,
      paths,
      lambda done: progress("images for centering", done, len(paths)),
      skip_bad=skip_bad,
    )


def _nearest(encoder, query, paths, top: int):
  """Finds the `top` images whose pooled nodes are most similar to the query's.

  Returns:
    {number of an image: (cosine, nodes [n, c])}, the most similar first; and
    the bad images, {number: reason}.
  """
  bad: dict[int, str] = {}
  best: dict[int, tuple] = {}
  with Progress() as progress:
    batches = encoder.batches(
      paths, bad, lambda done: progress("images encoded", done, len(paths))
    )
    for numbers, encoded in batches:
      cosines = similarities(query, encoded.nodes)
      rows = zip(cosines, encoded.nodes, strict=True)
      best |= dict(zip(numbers, rows, strict=True))
      # Only the best `top` are kept, so that a large gallery fits in memory.
      order = sorted(best, key=lambda i: (-best[i][0], i))[:top]
      best = {i: best[i] for i in order}
  return best, bad


def _table(paths, best, query, solver) -> str:
  import numpy as np

  nodes = np.stack([nodes for _, nodes in best.values()])
  matched = reranked(query, nodes, solver)
  # Both columns are similarities of at most 1.
  lines = [f"{'rank':>4}  {'matched':>7}  {'pooled':>6}  image"]
  rows = sorted(zip(best, matched, strict=True), key=lambda row: -row[1])
  for rank, (i, value) in enumerate(rows, 1):
    name = terminal.printable(str(paths[i]))
    lines.append(f"{rank:>4}  {value:>7.3f}  {best[i][0]:>6.3f}  {name}")
  return "\n".join(lines)


def similarities(query, nodes):
  """Returns cosines [N] of pooled nodes: query [1, n, c], others [N, n, c]."""
  from deepemd_jax.models import matching

  return _row(matching.prototype_logits, query, nodes, 1.0)


def reranked(query, nodes, solver):
  """Returns EMD similarities [K]: query [1, n, c], others [K, n, c].

  They are computed in one call and are at most 1, for the same image.
  """
  from deepemd_jax.models import matching

  return _row(matching.logits, query, nodes, solver, 1.0)


def _row(score, query, nodes, *settings):
  """Returns the scores of one query, from a compiled function."""
  import jax
  import numpy as np

  compiled = jax.jit(score, static_argnums=range(2, 2 + len(settings)))
  return np.asarray(compiled(query, nodes, *settings))[0]
