"""The data set `glyph_clutter`: its lists, its scenes and its variants."""

import collections
import unicodedata

import numpy as np
import pytest
from PIL import Image

from deepemd_jax.data import glyph_clutter
from deepemd_jax.data.published import splits

LISTS = splits.load("glyph_clutter")["splits"]
CHARACTERS = {
  name: row["character"]
  for classes in LISTS.values()
  for name, row in classes.items()
}
# One scene of each class, with alternating typefaces.
SCENES = [
  list(glyph_clutter.keys({name: character}, "d0_plain"))[number % 5]
  for number, (name, character) in enumerate(CHARACTERS.items())
]


def pixels(row, variant):
  key, _, character, path = row
  return np.asarray(glyph_clutter.scene(key, character, path, variant), int)


def test_the_splits_share_no_class():
  sizes = {split: len(classes) for split, classes in LISTS.items()}
  assert sizes == {"train": 47, "val": 16, "test": 31}
  assert len(CHARACTERS) == len(set(CHARACTERS.values())) == 94


def test_classes_are_named_after_their_characters():
  for name, character in CHARACTERS.items():
    full = unicodedata.name(character).lower().replace(" letter", "")
    assert name == full.replace(" ", "_")


@pytest.mark.parametrize("variant", ["default", "d0_plain"])
def test_the_lists_count_what_the_builder_makes(variant):
  scenes = {"default": 1, "d0_plain": glyph_clutter.SCENES}[variant]
  rows = list(glyph_clutter.keys(CHARACTERS, variant))
  counts = collections.Counter(name for _, name, _, _ in rows)
  for classes in LISTS.values():
    for name, row in classes.items():
      assert row["images"] == scenes * counts[name]
  assert len({key for key, *_ in rows}) == len(rows)


def glyph_pixels(row):
  """Returns where the glyph is solid, and its color.

  A solid pixel is the same on black and on white.
  """
  real = glyph_clutter._background

  def on(color):
    def background(key, kind):
      return Image.new("RGB", (64, 64), color), real(key, kind)[1]

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(glyph_clutter, "_background", background)
      return pixels(row, "d0_plain")

  where = (on("black") == on("white")).all(-1)
  colors = np.unique(pixels(row, "d0_plain")[where], axis=0)
  assert len(colors) == 1
  return where, colors[0]


def test_all_variants_show_the_same_glyph_in_the_same_place():
  for row in SCENES[::6]:
    where, color = glyph_pixels(row)
    assert where.sum() > 20
    for variant in glyph_clutter.VARIANTS:
      assert (pixels(row, variant)[where] == color).all(), (row, variant)


def test_default_is_the_relief_with_one_to_three_distractors():
  counts, rows = collections.Counter(), SCENES[::3]
  for row in rows:
    image = pixels(row, "default")
    same = [k for k in range(4) if (pixels(row, f"d{k}_relief") == image).all()]
    counts.update(same[:1])
  assert set(counts) == {1, 2, 3} and counts.total() == len(rows)


def test_each_distractor_adds_to_what_is_there():
  """One more distractor changes the same pixels over every background."""
  apart = either = 0
  for row in SCENES[::4]:
    changed = {}
    for kind in ("plain", "busy"):
      few, more = (pixels(row, f"d{k}_{kind}") for k in (2, 3))
      changed[kind] = (few != more).any(-1)
    apart += (changed["plain"] != changed["busy"]).sum()
    either += (changed["plain"] | changed["busy"]).sum()
  assert either > 0 and apart <= 0.05 * either  # edges may agree by chance
  differ = [
    (pixels(r, "d0_plain") != pixels(r, "d1_plain")).any() for r in SCENES
  ]
  assert np.mean(differ) > 0.9  # in the others, the glyph hides it


def test_busy_has_twice_the_contrast():
  ratios = []
  for row in SCENES:
    where, _ = glyph_pixels(row)
    relief, busy = (
      pixels(row, f"d0_{k}")[~where].std() for k in ("relief", "busy")
    )
    ratios.append(busy / relief)
  assert 1.2 < np.median(ratios) < 2.1
  assert min(ratios) > 1


def test_glyphs_are_not_mirrored():
  """The glyph in a scene matches the drawing better than its mirror image."""
  wins = []
  for row in SCENES:
    _, _, character, path = row
    if character not in "bdqRFGJKL2345679EезэЭДГГБбßγζλςξ":
      continue
    where, _ = glyph_pixels(row)
    ys, xs = where.nonzero()
    box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    shown = Image.fromarray(where).convert("L").crop(box).resize((32, 32))
    mask = glyph_clutter.glyph(path, character)
    drawn = np.asarray(mask.crop(mask.getbbox()).resize((32, 32)), float)
    match = np.corrcoef(np.asarray(shown, float).ravel(), drawn.ravel())
    mirrored = np.corrcoef(
      np.asarray(shown, float).ravel(), drawn[:, ::-1].ravel()
    )
    wins.append(match[0, 1] > mirrored[0, 1])
  assert len(wins) > 15 and np.mean(wins) > 0.8  # tilted glyphs may fail


def test_fonts_are_not_believed_about_characters_they_lack():
  """cmr10.ttf has other shapes at the codes of most symbols."""
  paths = [p for p in glyph_clutter.typefaces() if p.endswith("cmr10.ttf")]
  assert len(glyph_clutter.typefaces()) == 21 and len(paths) == 1
  assert glyph_clutter.glyph(paths[0], "®") is None
  assert glyph_clutter.glyph(paths[0], "R") is not None
  assert all(
    glyph_clutter.glyph(path, "\ue123") is None
    for path in glyph_clutter.typefaces()
  )
