"""`glyph_clutter`: a few-shot data set that needs no download.

A class is a character, a drawing is that character in one typeface, and an
image is a 64x64 scene. A scene shows the glyph with a random color, place, size
and tilt over a crop of a relief map. Distractor symbols around it are unrelated
to the class. There are 94 classes, split 47/16/31: Latin letters, digits, Greek
and Cyrillic letters, none of which looks like a letter of another script. These
are composed scenes, not photographs.

All material comes from files in the matplotlib wheel: the fonts DejaVu
(Bitstream Vera license), STIX (SIL Open Font License) and the BaKoMa Computer
Modern fonts (free to use and distribute), and two relief maps of its sample
data (`jacksboro_fault_dem.npz`, `topobathy.npz`; public US elevation data).
matplotlib itself is not imported.

Besides `default` there are variants for testing robustness to clutter, named
d{0..3}_{plain,relief,busy}. The number is the exact number of distractors. The
background is one color (plain), the relief of `default`, or a relief with twice
its contrast (busy). A scene has the same glyph, color and place in all
variants, because the glyph, the background and each distractor have random
streams of their own.

Version 1.0.0 was fixed by looking at pictures, before any test accuracy was
measured.
"""

import functools
import hashlib
import importlib.util
import io
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont

from deepemd_jax.data import registry
from deepemd_jax.data.published import splits

SIDE = 64
SCENES = 3  # scenes per drawing in `default`
VARIANTS = registry.DATA_SETS["glyph_clutter"].variants
_DISTRACTORS = "$%&@?!#+=*≠≤≥±÷√∞§¶£¥€®{}[]<>"
_TYPEFACES = (
  *("DejaVuSans", "DejaVuSerif", "STIXGeneral"),
  *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
_MASTER = 64  # side of the glyph masks that are scaled into scenes


@functools.cache
def _files() -> pathlib.Path:
  """Returns matplotlib's data folder, without importing matplotlib."""
  spec = importlib.util.find_spec("matplotlib")
  origin = spec.origin if spec else None
  assert origin is not None  # matplotlib is a required package
  return pathlib.Path(origin).parent / "mpl-data"


@functools.cache
def typefaces() -> tuple[str, ...]:
  """Returns the sorted paths of the font files.

  Each font gives one drawing of every class whose character it has.
  """
  folder = _files() / "fonts" / "ttf"
  return tuple(
    str(folder / name)
    for name in sorted(os.listdir(folder))
    if name.startswith(_TYPEFACES) and "Display" not in name
  )


@functools.cache
def _font(path: str) -> ImageFont.FreeTypeFont:
  return ImageFont.truetype(path, 96)


@functools.lru_cache(4096)
def glyph(path: str, character: str) -> Image.Image | None:
  """Returns a character's shape, a 64x64 mask, or None if the font lacks it."""
  computer_modern = os.path.basename(path).startswith("cm")
  if computer_modern and not (character.isascii() and character.isalnum()):
    return None  # these fonts follow Unicode only in letters and digits
  font = _font(path)
  shape = font.getmask(character)
  missing = font.getmask("\uffff")
  # pyrefly: ignore[bad-argument-type]: Pillow does not declare the buffer
  if not shape.getbbox() or bytes(shape) == bytes(missing):
    return None
  left, top, right, bottom = font.getbbox(character)
  side = int(max(right - left, bottom - top))
  mask = Image.new("L", (side, side))
  corner = ((side - right + left) // 2 - left, (side - bottom + top) // 2 - top)
  ImageDraw.Draw(mask).text(corner, character, fill=255, font=font)
  return mask.resize((_MASTER, _MASTER), Image.Resampling.LANCZOS)


@functools.cache
def _reliefs() -> tuple[np.ndarray, ...]:
  """Returns two maps [H, W, 3] in 0..255: height rank, shading and slope."""
  maps = []
  for name, key in (
    ("jacksboro_fault_dem.npz", "elevation"),
    ("topobathy.npz", "topo"),
  ):
    height = np.load(_files() / "sample_data" / name)[key].astype(np.float32)
    down, across = np.gradient(height)
    spread = np.sqrt(down.var() + across.var())
    shade = 1 / np.sqrt(1 + (down**2 + across**2) / spread**2)
    rank = np.argsort(np.argsort(height.ravel())) / height.size
    slope = across / (4 * across.std()) + 0.5
    layers = [rank.reshape(height.shape), shade, slope]
    maps.append(np.stack(layers, -1).astype(np.float32) * 255)
  return tuple(maps)


def _stream(key: str, part: str) -> np.random.Generator:
  """Returns the random generator of one part of one scene."""
  digest = hashlib.sha256(f"{key}/{part}".encode()).digest()
  return np.random.default_rng(np.frombuffer(digest, np.uint32))


def _background(key: str, kind: str) -> tuple[Image.Image, float]:
  """Returns a relief crop in random colors and its mean gray level.

  The symbols must differ from this gray level. `kind` changes the contrast and
  not the level.
  """
  rng = _stream(key, "background")
  relief = _reliefs()[rng.integers(2)]
  limit = min(relief.shape[:2])
  side = int(rng.integers(SIDE, limit + 1))
  top, left = (int(rng.integers(n - side + 1)) for n in relief.shape[:2])
  colors = rng.dirichlet(np.ones(3), 3)
  contrast, level = rng.uniform(0.3, 0.65), rng.uniform(80, 175)
  crop = relief[top : top + side, left : left + side] @ colors.T
  crop = Image.fromarray(np.clip(crop, 0, 255).astype(np.uint8))
  pixels = np.asarray(
    crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32
  )
  middle = pixels.mean()
  color = np.float32(level) + (pixels.mean((0, 1)) - middle)
  plain = np.clip(color, 0, 255).astype(np.uint8)
  if kind == "plain":
    image = np.broadcast_to(plain, (SIDE, SIDE, 3))
  else:
    contrast *= {"relief": 1.0, "busy": 2.0}[kind]
    image = np.clip((pixels - middle) * contrast + level, 0, 255)
  return Image.fromarray(image.astype(np.uint8)), sum(plain.tolist()) / 3


def _paste(scene, mask, rng, *, size: int, place, tilt: float, level: float):
  """Pastes a glyph into the scene in a color that differs from `level`.

  The color is the first of 20 random ones whose gray level differs by more than
  80, or the last of them.
  """
  angle = float(rng.uniform(-tilt, tilt))
  rotated = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
  rotated = rotated.resize((size, size), Image.Resampling.LANCZOS)
  colors = rng.integers(0, 256, (20, 3)).tolist()
  apart = (c for c in colors if abs(sum(c) / 3 - level) > 80)
  color = next(apart, colors[-1])
  solid = Image.new("RGB", (size, size), tuple(color))
  scene.paste(solid, tuple(place), rotated)


def scene(key: str, character: str, path: str, variant: str = "default"):
  """Returns one image, which depends only on the arguments.

  Args:
    key: seeds every random draw.
    character: the character of the class.
    path: path of the font file.
    variant: "default" or one of `VARIANTS`.

  Returns:
    An RGB image of 64x64 pixels.
  """
  kind, count = "relief", int(_stream(key, "count").integers(1, 4))
  if variant != "default":
    kind, count = variant[3:], int(variant[1])
  image, level = _background(key, kind)
  for number in range(count):
    rng = _stream(key, f"distractor{number}")
    mask = None
    while mask is None:
      symbol = _DISTRACTORS[rng.integers(len(_DISTRACTORS))]
      mask = glyph(typefaces()[rng.integers(len(typefaces()))], symbol)
    size = int(SIDE * rng.uniform(0.2, 0.42))
    low, high = -size // 4, SIDE - size + size // 4 + 1
    place = rng.integers(low, high, 2).tolist()
    _paste(image, mask, rng, size=size, place=place, tilt=25, level=level)
  rng = _stream(key, "glyph")
  size = int(SIDE * rng.uniform(0.42, 0.65))
  place = rng.integers(0, SIDE - size + 1, 2).tolist()
  mask = glyph(path, character)
  _paste(image, mask, rng, size=size, place=place, tilt=15, level=level)
  return image


def keys(
  characters: dict[str, str], variant: str
) -> Iterator[tuple[str, str, str, str]]:
  """Yields (key, class name, character, font path) of each image.

  Args:
    characters: {class name: character}.
    variant: "default" or one of `VARIANTS`.
  """
  scenes = SCENES if variant == "default" else 1
  for name, character in characters.items():
    for path in typefaces():
      if glyph(path, character) is None:
        continue
      for number in range(scenes):
        yield (
          f"{name}_{pathlib.Path(path).stem}_{number}",
          name,
          character,
          path,
        )


class GlyphClutter(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder; with file_format="array_record" it needs no TensorFlow."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=name) for name in ("default", *VARIANTS)
  ]
  name = "glyph_clutter"

  def _info(self) -> tfds.core.DatasetInfo:
    lists = splits.load("glyph_clutter")["splits"]
    names = [name for split in lists.values() for name in split]
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(
          shape=(SIDE, SIDE, 3), encoding_format="png"
        ),
        "label": tfds.features.ClassLabel(names=names),
        "key": tfds.features.Text(),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self, features=features, description=__doc__
    )

  def _split_generators(self, download_manager):
    del download_manager
    lists = splits.load("glyph_clutter")["splits"]
    wanted = lists if self.builder_config.name == "default" else ["test"]
    return {split: self._generate_examples(lists[split]) for split in wanted}

  def _generate_examples(self, classes):
    variant = self.builder_config.name
    characters = {n: row["character"] for n, row in classes.items()}
    for key, name, character, path in keys(characters, variant):
      png = io.BytesIO()
      scene(key, character, path, variant).save(png, "PNG")
      yield key, {"image": png.getvalue(), "label": name, "key": key}
