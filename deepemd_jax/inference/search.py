"""Finds the images of a folder that are most like one image.

python -m deepemd_jax.inference.search --gallery DIR --query IMAGE --top 10

Pooled descriptors choose --top images; these are then put in order by the Earth
Mover's Distance between their regions and the query's.
"""

import os
import sys

from deepemd_jax.data import folder
from deepemd_jax.errors import InputError
from deepemd_jax.utils import terminal


def _parse(arguments: list[str]):
  parser = terminal.Parser("search", __doc__)
  parser.add_argument(
    "--gallery", metavar="DIR", required=True, help="images anywhere below it"
  )
  parser.add_argument("--query", metavar="IMAGE", required=True)
  parser.add_argument(
    "--top",
    metavar="K",
    type=int,
    default=10,
    help="images to find (default %(default)s)",
  )
  parser.add_images("gallery")
  options = parser.parse_args(arguments)
  if options.top < 1:
    raise InputError(f"--top is {options.top}; use 1 or more")
  return options


def _work(options) -> tuple[dict[str, bytes], str]:
  paths = folder.below(options.gallery)
  if not os.path.exists(options.query):
    raise InputError(f"there is no image {options.query!r}")

  import numpy as np

  from deepemd_jax.checkpoints import pretrained
  from deepemd_jax.inference import encodings, feature_cache
  from deepemd_jax.utils.progress import Progress

  found = pretrained.load(options.checkpoint)
  solver = pretrained.solver(found.config, options.solver)
  kept = None if options.cache is None else feature_cache.Cache(options.cache)
  look = pretrained.look(found.config, options.variant)
  encoder = encodings.Encoder(found, look, kept)
  query = encoder.all([options.query]).nodes
  bad: dict[int, str] = {}
  best: dict[int, tuple[float, np.ndarray]] = {}
  progress = Progress()
  try:
    batches = encoder.batches(
      paths, bad, lambda done: progress("images encoded", done, len(paths))
    )
    for numbers, encoded in batches:
      alike = similarities(query, encoded.nodes)
      best |= dict(
        zip(numbers, zip(alike, encoded.nodes, strict=True), strict=True)
      )
      # No more are kept than asked for, however large the gallery.
      order = sorted(best, key=lambda i: (-best[i][0], i))[: options.top]
      best = {i: best[i] for i in order}
  finally:
    progress.close()
  if not options.skip_bad or not best:
    encodings.refuse(paths, bad, ", or leave them out with --skip-bad")
  for i in sorted(bad):
    print(f"left out {str(paths[i])!r}: {bad[i]}", file=sys.stderr)
  nodes = np.stack([kept for _, kept in best.values()])
  matched = reranked(query, nodes, solver)
  lines = [f"{'rank':>4}  {'EMD':>6}  {'global':>6}  image"]
  rows = zip(best, matched, strict=True)
  for rank, (i, value) in enumerate(sorted(rows, key=lambda r: -r[1]), 1):
    name = str(paths[i])
    # A name must not steer the terminal.
    name = name if name.isprintable() else repr(name)
    lines.append(f"{rank:>4}  {value:>6.3f}  {best[i][0]:>6.3f}  {name}")
  return {}, "\n".join(lines)


def similarities(query, nodes):
  """Cosine of pooled nodes: query [1, n, c], others [N, n, c] -> [N]."""
  from deepemd_jax.models import matching

  return _row(matching.prototype_logits, query, nodes, 1.0)


def reranked(query, nodes, solver):
  """EMD similarity, up to 1 (the same image): query [1, n, c], others [K, n, c]
  -> [K], in one call."""
  from deepemd_jax.models import matching

  return _row(matching.logits, query, nodes, solver, 1.0)


def _row(score, query, nodes, *settings):
  """The scores of one query, compiled."""
  import jax
  import numpy as np

  compiled = jax.jit(score, static_argnums=range(2, 2 + len(settings)))
  return np.asarray(compiled(query, nodes, *settings))[0]


def main(arguments: list[str]) -> int:
  """The command line; the exit code."""
  return terminal.run(_parse, _work, arguments)


if __name__ == "__main__":
  terminal.leave(main(sys.argv[1:]))
