"""Examples to try: new scenes of the test classes of `glyph_clutter`.

The quickstart's encoder was not trained on these classes.
"""

import base64
import functools
import io
import json
import random
import threading

from deepemd_jax.data import glyph_clutter
from deepemd_jax.data.published import splits

WAY = 5
SEEDS = 20  # examples of a kind; all of them take 13 MB as text
# name -> title on the page, images a class, variant of the data set
KINDS = {
  "one": ("1 image a class", 1, "default"),
  "five": ("5 images a class", 5, "default"),
  "busy": ("5 images, busy backgrounds", 5, "d3_busy"),
}

_turn = threading.Lock()


def text(kind: str, seed: int) -> bytes:
  """Returns what `make` does, as JSON. Each example is made once."""
  with _turn:
    return _text(kind, seed)


@functools.lru_cache(len(KINDS) * SEEDS)
def _text(kind: str, seed: int) -> bytes:
  return json.dumps(make(kind, seed)).encode()


def make(kind: str, seed: int) -> dict:
  """Makes an example. Equal arguments give equal examples.

  Args:
    kind: one of `KINDS`.
    seed: another seed gives another example.

  Returns:
    "classes": "name" and "images" of each, PNG in base64; "query": the same;
    "truth": number of the query's class, from 0.
  """
  _, shot, variant = KINDS[kind]
  rng = random.Random(f"{kind} {seed}")
  test = splits.load("glyph_clutter")["splits"]["test"]
  names = rng.sample(sorted(test), WAY)
  truth = rng.randrange(WAY)
  classes, query = [], ""
  for k, name in enumerate(names):
    character = test[name]["character"]
    faces = [
      path
      for path in glyph_clutter.typefaces()
      if glyph_clutter.glyph(path, character)
    ]
    scenes = [
      glyph_clutter.scene(f"{kind} {seed} {name} {i}", character, path, variant)
      for i, path in enumerate(rng.sample(faces, shot + 1))
    ]
    files = [_png(scene) for scene in scenes]
    classes.append({"name": name.replace("_", " "), "images": files[:shot]})
    if k == truth:
      query = files[shot]
  return {"classes": classes, "query": query, "truth": truth}


def _png(image) -> str:
  file = io.BytesIO()
  image.save(file, "PNG")
  return base64.b64encode(file.getvalue()).decode()
