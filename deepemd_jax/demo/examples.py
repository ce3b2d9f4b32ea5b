"""Examples for the page: views of photographs, and scenes of `glyph_clutter`.

The photographs and their sources are beside this file. Each image and the query
is a part of one photograph. The scenes are new scenes of the test classes, on
which the quickstart's encoder was not trained.
"""

import base64
import functools
import io
import json
import pathlib
import random
import threading
from typing import NamedTuple

from PIL import Image, ImageOps

from deepemd_jax.data import glyph_clutter
from deepemd_jax.data.published import splits

WAY = 5
SEEDS = 20  # examples of each kind; all of them take 16 MB as text
_PHOTOGRAPHS = pathlib.Path(__file__).with_name("photographs")
_SIDE = 224  # side of a view in pixels


class Kind(NamedTuple):
  """A kind of examples.

  Attributes:
    title: its title on the page.
    shot: number of images per class.
    variant: the variant of `glyph_clutter`; "" means photographs.
  """

  title: str
  shot: int
  variant: str


KINDS = {
  "photographs": Kind("photographs", 1, ""),
  "one": Kind("characters", 1, "default"),
  "five": Kind("characters, 5 images per class", 5, "default"),
  "busy": Kind("characters, busy backgrounds", 5, "d3_busy"),
}

_turn = threading.Lock()


def text(kind: str, seed: int) -> bytes:
  """Returns the result of `make` as JSON; each example is made only once."""
  with _turn:
    return _text(kind, seed)


@functools.lru_cache(len(KINDS) * SEEDS)
def _text(kind: str, seed: int) -> bytes:
  return json.dumps(make(kind, seed)).encode()


def make(kind: str, seed: int) -> dict:
  """Makes an example. Equal arguments give equal examples.

  Args:
    kind: one of `KINDS`.
    seed: the seed; another seed gives another example.

  Returns:
    "classes", each with "name" and "images"; "query", an image; and "truth",
    the number of the query's class, from 0. Images are JPEG or PNG in base64.
  """
  _, shot, variant = KINDS[kind]
  rng = random.Random(f"{kind} {seed}")
  draw = functools.partial(_scenes, variant) if variant else _views
  all_names = _characters() if variant else _photographs()
  names = rng.sample(sorted(all_names), WAY)
  truth = rng.randrange(WAY)
  classes, query = [], ""
  for k, name in enumerate(names):
    files = draw(name, shot + 1, rng, f"{kind} {seed}")
    classes.append({"name": name.replace("_", " "), "images": files[:shot]})
    if k == truth:
      query = files[shot]
  return {"classes": classes, "query": query, "truth": truth}


def _characters() -> dict[str, dict]:
  return splits.load("glyph_clutter")["splits"]["test"]


def _scenes(variant, name, count, rng, label) -> list[str]:
  """Returns new scenes of a test class, each with another typeface."""
  character = _characters()[name]["character"]
  faces = [
    path
    for path in glyph_clutter.typefaces()
    if glyph_clutter.glyph(path, character)
  ]
  return [
    _encoded(
      glyph_clutter.scene(f"{label} {name} {i}", character, path, variant),
      "PNG",
    )
    for i, path in enumerate(rng.sample(faces, count))
  ]


def _photographs() -> list[str]:
  return [path.stem for path in _PHOTOGRAPHS.glob("*.jpg")]


def _views(name, count, rng, label) -> list[str]:
  """Returns random parts of a photograph, some of them mirrored."""
  del label
  with Image.open(_PHOTOGRAPHS / f"{name}.jpg") as image:
    return [_encoded(_view(image, rng), "JPEG") for _ in range(count)]


def _view(image: Image.Image, rng: random.Random) -> Image.Image:
  side = round(min(image.size) * rng.uniform(0.55, 0.85))
  left, top = (rng.randint(0, whole - side) for whole in image.size)
  box = (left, top, left + side, top + side)
  view = image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box)
  return ImageOps.mirror(view) if rng.random() < 0.5 else view


def _encoded(image: Image.Image, kind: str) -> str:
  file = io.BytesIO()
  image.save(file, kind, quality=90)
  return base64.b64encode(file.getvalue()).decode()
