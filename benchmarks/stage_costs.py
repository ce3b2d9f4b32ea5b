"""The base sizes, changes and rows that the benchmarks of the stages share.

`training_step`, `evaluation_step` and `device_sharing` measure the real stages
on random images. Every row changes one setting of a small base size. Seconds
are those of the fastest repetition. FLOPs and bytes are XLA's counts for the
compiled program, and `formula_gflop` comes from the formula in `estimate`.
`utilisation` is the formula's FLOP/s divided by the FLOP/s of a large matrix
product in the same run.
"""

import argparse
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable

import jax
import numpy as np

from benchmarks import estimate, measuring
from deepemd_jax import emd
from deepemd_jax.config import defaults, resolve
from deepemd_jax.config.settings import Settings
from deepemd_jax.data.image_set import CachedImages
from deepemd_jax.models import matching

STORED = 160  # side of the stored copies in pixels


@dataclasses.dataclass(frozen=True)
class Base:
  """The size that all rows start from.

  Attributes:
    size: side of the images in pixels.
    width: width of ResNet-12 as a multiple of the published width.
    images: number of images per step in pre-training.
    query: number of query images per class.
    epochs: number of epochs of the structured FC layer.
    repeats: number of calls, the fastest of which counts.
    pool: number of classes to draw images from, and images per class.
    product: side of the matrices of `measuring.matrix_peak`.
    tiny: whether `measuring.tiny_backbone` replaces ResNet-12.
  """

  size: int = 84
  width: float = 0.125
  images: int = 64
  query: int = 15
  epochs: int = 100
  repeats: int = 5
  pool: tuple[int, int] = (64, 40)
  product: int = 0
  tiny: bool = False


# Pre-training has as many images as an episode, so that both need only one
# compilation of the encoder.
SMOKE = Base(
  size=32,
  width=1 / 64,
  images=10,
  query=1,
  epochs=2,
  repeats=1,
  pool=(5, 4),
  product=64,
  tiny=True,
)
_FLAGS = {
  "size": "side of images, pixels",
  "width": "of the encoder, as a multiple of the published",
  "images": "a step in pre-training",
  "query": "query images a class",
  "epochs": "of the structured FC layer",
  "repeats": "calls, the fastest of which counts",
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A row to measure.

  Attributes:
    stage: the name of the measured stage.
    name: the name of the changed setting.
    measure: measures and returns the columns.
  """

  stage: str
  name: str
  measure: Callable[[], dict]


def make_parser(doc: str) -> argparse.ArgumentParser:
  """Returns the parser of all three; the first line of `doc` describes it."""
  parser = argparse.ArgumentParser(description=doc.splitlines()[0])
  for name, text in _FLAGS.items():
    default = getattr(Base, name)
    parser.add_argument(
      f"--{name}", type=type(default), default=default, help=text
    )
  parser.add_argument("--json", help="also write the rows to this file")
  parser.add_argument(
    "--only", default="", help="rows with this in the name (a pattern)"
  )
  parser.add_argument("--smoke", action="store_true", help="small, for CI")
  return parser


def make_base(options: argparse.Namespace) -> Base:
  """Returns the base size that the flags select."""
  if options.smoke:
    return SMOKE
  return Base(**{name: getattr(options, name) for name in _FLAGS})


def make_settings(base: Base, changes: dict | None = None) -> Settings:
  """Returns the paper's settings at the base size, with some fields changed.

  Args:
    base: the base size.
    changes: the changed fields, such as {"episode.way": 10}.
  """
  config = defaults.get_config()
  config.image.size = base.size
  config.model.width = base.width
  config.pretrain.batch_size = base.images
  config.episode.query = base.query
  config.update_from_flattened_dict(changes or {})
  settings = resolve.resolve(config)
  if base.tiny:
    settings = dataclasses.replace(settings, backbone=measuring.tiny_backbone())
  return settings


@functools.cache
def random_images(classes: int, per_class: int) -> CachedImages:
  """Returns random images with the size of stored copies."""
  count = classes * per_class
  rng = np.random.default_rng(0)
  return CachedImages(
    images=rng.integers(0, 256, (count, STORED, STORED, 3), np.uint8),
    labels=np.repeat(np.arange(classes), per_class).astype(np.int32),
    class_names=tuple(map(str, range(classes))),
    keys=tuple(map(str, range(count))),
    sizes=np.full((count, 2), STORED, np.int32),
  )


def changes(smoke: bool) -> Iterable[tuple[str, dict]]:
  """Yields the name of each row, and the fields that it changes."""
  yield "base", {}
  if smoke:
    return
  for way in (10, 20):
    yield f"way {way}", {"episode.way": way}
  yield "shot 5", {"episode.shot": 5, "metatrain.shot": 5}
  for query in (5, 30):
    yield f"query {query}", {"episode.query": query}
  for size in (48, 112):
    yield f"nodes {estimate.nodes(size)}", {"image.size": size}
  for width in (0.25, 0.5, 1):
    yield f"width {width:g}", {"model.width": width}
  yield "bfloat16", {"model.precision": "bfloat16"}


def utilization(
  gflop: float, seconds: float, settings: Settings, base: Base
) -> float:
  """Returns the share of `measuring.matrix_peak` that `gflop` reached."""
  peak = measuring.matrix_peak(settings.model["precision"], base.product)
  return 1e9 * gflop / seconds / peak


def head_seconds(
  settings: Settings, way: int, n_query: int, *, training: bool, repeats: int
) -> dict:
  """Measures the parts of the head on one episode.

  Args:
    settings: the settings, which give the numbers of nodes and channels.
    way: number of classes.
    n_query: number of query images per class.
    training: whether to add the gradient.
    repeats: number of calls, the fastest of which counts.

  Returns:
    "head_s", the seconds of weights and similarities, and "emd_s", the seconds
    of the EMD layer on them.
  """
  n, c = estimate.nodes(settings.view.size), settings.backbone.channels
  query = measuring.synthetic_nodes(way, n_query, n, c).reshape(-1, n, c)
  classes = measuring.synthetic_nodes(way, 1, n, c)[:, 0]
  problems = jax.jit(matching.match)(query, classes)
  problems = 1 - problems.similarity, *problems[1:]
  compiled = measuring.gradient if training else jax.jit
  match, solve = compiled(matching.match), compiled(emd.distance)
  return {
    "head_s": measuring.least_seconds(lambda: match(query, classes), repeats),
    "emd_s": measuring.least_seconds(lambda: solve(*problems), repeats),
  }


def report(
  cases: Iterable[Case], base: Base, options: argparse.Namespace
) -> None:
  """Measures the rows that `--only` selects, and prints each at once."""
  print(
    f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} "
    f"cores; load {os.getloadavg()[0]:.1f}; base: {base.size} pixels, width "
    f"{base.width:g}, 5-way 1-shot, {base.query} queries a class, "
    f"pre-training of {base.images} images a step",
    flush=True,
  )
  rows = []
  for case in cases:
    if not re.search(options.only, f"{case.stage} {case.name}"):
      continue
    columns = case.measure()
    load = os.getloadavg()[0]
    rows.append(
      {"stage": case.stage, "case": case.name, **columns, "load": load}
    )
    print(_line(case, columns), flush=True)
    measuring.write_json(options.json, rows)  # kept if the run is interrupted


def _line(case: Case, columns: dict) -> str:
  cells = [
    f"{key[:-2]} {1e3 * value:.4g} ms"
    if key.endswith("_s")
    else f"{key} {value:.4g}"
    for key, value in columns.items()
  ]
  return f"{case.stage:<10} {case.name:<10} " + ", ".join(cells)
