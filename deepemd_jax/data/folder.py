"""The user's own images: one directory per class, or a CSV.

    root/<class>/*.jpg                      classes split by fractions
    root/{train,val,test}/<class>/*.jpg     as it stands
    CSV label,split                         which split a class belongs to
    CSV filename,label,split                images anywhere below root

Images of any kind become the RGB a person expects: turned by their EXIF tag,
alpha on white, 16-bit grey scaled to 8. What cannot be read is an error that
names every bad file.
"""

import concurrent.futures
import csv
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from deepemd_jax.errors import InputError

SPLITS = ("train", "val", "test")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_LISTED = 10


def listing(
  root: str | os.PathLike,
  *,
  fractions: Sequence[float] = (0.64, 0.16, 0.2),
  table: str | os.PathLike | None = None,
  seed: int = 0,
) -> dict[str, dict[str, list[pathlib.Path]]]:
  """{split: {class name: sorted image paths}}; opens no image.

  Args:
    root: the image folder.
    fractions: shares of the classes for train, val and test, when neither the
      folder nor `table` says. Classes are shuffled by `seed`.
    table: a CSV, see the module's docstring.
    seed: of the shuffle.

  Raises:
    InputError: there is no such folder, nothing in it, or the CSV does not fit.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise InputError(f"image folder {str(root)!r} does not exist")
  if not os.access(root, os.R_OK | os.X_OK):
    raise InputError(f"image folder {str(root)!r} cannot be read")
  if table:
    return _from_table(root, pathlib.Path(table))
  ready = [root / split for split in SPLITS if (root / split).is_dir()]
  if ready:
    found = {split: _classes(root / split, root) for split in SPLITS}
  else:
    classes = _classes(root, root)
    found = {split: {} for split in SPLITS}
    for name, split in _assign(list(classes), fractions, seed).items():
      found[split][name] = classes[name]
  if not any(found.values()):
    raise InputError(
      f"image folder {str(root)!r} holds no images; put those of each class "
      f"into a directory of their own ({', '.join(SUFFIXES)})"
    )
  return found


def _classes(folder: pathlib.Path, root) -> dict[str, list[pathlib.Path]]:
  if not folder.is_dir():
    return {}
  inside = root.resolve()
  found = {}
  for child in sorted(folder.iterdir()):
    if not child.is_dir() or child.name.startswith("."):
      continue
    paths = [
      path
      for path in sorted(child.rglob("*"))
      if path.suffix.lower() in SUFFIXES
      and not any(p.startswith(".") for p in path.relative_to(child).parts)
      and path.is_file()
      # A link out of the folder would smuggle in what nobody looked at.
      and path.resolve().is_relative_to(inside)
    ]
    if paths:
      found[child.name] = paths
  return found


def _assign(names: list[str], fractions, seed: int) -> dict[str, str]:
  """Class -> split; rounds so that all classes are used."""
  if len(fractions) != 3 or min(fractions) < 0 or sum(fractions) <= 0:
    raise InputError(
      f"config.data.fractions is {tuple(fractions)}; give three shares, none "
      "negative, such as (0.64, 0.16, 0.2)"
    )
  order = np.random.default_rng(seed).permutation(len(names))
  shares = np.cumsum(fractions) / sum(fractions)
  first, second = np.round(shares[:2] * len(names)).astype(int)
  split_of = np.repeat(
    SPLITS, [first, second - first, len(names) - second]
  ).tolist()
  return {names[i]: split for i, split in zip(order, split_of, strict=True)}


def _from_table(root, table):
  """Reads a CSV with columns label,split or filename,label,split."""
  try:
    with open(table, newline="", encoding="utf-8-sig") as file:
      rows = list(csv.DictReader(file))
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"cannot read the CSV {str(table)!r}: {error}") from error
  if not rows or not {"label", "split"} <= set(rows[0]):
    raise InputError(
      f"CSV {str(table)!r} needs a header with label,split or "
      f"filename,label,split; it has {list(rows[0]) if rows else 'no rows'}"
    )
  found: dict = {split: {} for split in SPLITS}
  classes = None if "filename" in rows[0] else _classes(root, root)
  inside = root.resolve()
  for number, row in enumerate(rows, 2):
    label, split = row["label"], row["split"]
    if split not in SPLITS:
      raise InputError(
        f"CSV {str(table)!r} line {number}: split is {split!r}; use one of "
        f"{', '.join(SPLITS)}"
      )
    if classes is not None:
      if label not in classes:
        raise InputError(
          f"CSV {str(table)!r} line {number}: class {label!r} has no images "
          f"in {str(root)!r}"
        )
      found[split][label] = classes[label]
      continue
    path = root / row["filename"]
    if not path.is_file() or not path.resolve().is_relative_to(inside):
      raise InputError(
        f"CSV {str(table)!r} line {number}: no file {row['filename']!r} in "
        f"{str(root)!r}"
      )
    found[split].setdefault(label, []).append(path)
  return found


def to_rgb(image: Image.Image) -> Image.Image:
  """The picture as a person sees it, in RGB."""
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I") or image.mode == "F":
    values = np.asarray(image, np.float64)
    values = values / 257 if values.max(initial=0) > 255 else values
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert(
      "RGB"
    )
  if "A" in image.getbands() or "transparency" in image.info:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
  return image.convert("RGB")


def _read(path: pathlib.Path, side: int):
  """(uint8 [side, side, 3], (height, width)), or the reason why not."""
  try:
    with Image.open(path) as file:
      image = to_rgb(file)
    squashed = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(squashed), (image.height, image.width)
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    return str(e).replace(str(path), "it")


def read(
  paths: Sequence[pathlib.Path], side: int
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes images and squashes them to side x side.

  Returns:
    uint8 [N, side, side, 3], and int32 [N, 2] original heights and widths.

  Raises:
    InputError: some cannot be read; it names them.
  """
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    results = list(pool.map(lambda path: _read(path, side), paths))
  bad = [
    f"{path} ({result})"
    for path, result in zip(paths, results, strict=True)
    if isinstance(result, str)
  ]
  if bad:
    more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    raise InputError(
      f"{len(bad)} of {len(paths)} images cannot be read: "
      f"{', '.join(bad[:_LISTED])}{more}; repair or remove them"
    )
  images = np.stack([pixels for pixels, _ in results])
  return images, np.array([size for _, size in results], np.int32)
