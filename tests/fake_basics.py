"""Basic functions for `fake`, which makes small archives and folders."""

import dataclasses
import functools
import gzip
import io
import json
import tarfile

import numpy as np
from PIL import Image

from deepemd_jax.data.published import catalogue


def small(name, per_class=2, classes=3):
  """Returns a published benchmark with the first few classes of each split.

  Copies have 16 pixels. Copies of 160 pixels would enlarge the images, which is
  refused.

  Args:
    per_class: the number of images of a class, or a function of its name.
  """
  benchmark = catalogue.BENCHMARKS[name]
  count = per_class if callable(per_class) else lambda name: per_class
  lists = {
    "splits": {
      split: {c: {"images": count(c)} for c in names(name, split, classes)}
      for split in benchmark.splits
    }
  }
  return dataclasses.replace(
    benchmark,
    lists=Lists(json.dumps(lists)),
    side=benchmark.native or min(benchmark.side, 16),
  )


@dataclasses.dataclass(frozen=True)
class Lists:
  """Lists that are hashable and equal by content, like the published ones."""

  text: str

  def __call__(self):
    return json.loads(self.text)


def names(name, split, classes=3):
  """Returns the first classes of a split of a published benchmark."""
  return list(catalogue.BENCHMARKS[name].counts(split))[:classes]


def all_names(name, classes=3):
  found = catalogue.BENCHMARKS[name].splits
  return [c for split in found for c in names(name, split, classes)]


@functools.cache
def picture(seed, height=24, width=32, kind="JPEG", mode="RGB", **options):
  """Returns the bytes of an image of smooth random colors; the seed decides."""
  rng = np.random.default_rng(abs(hash_of(seed)))
  pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
  image = Image.fromarray(pixels).resize((width, height)).convert(mode)
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def hash_of(seed):
  """Returns a number for a text or a number, the same in every process."""
  return int.from_bytes(str(seed).encode()[-8:], "big")


def tar(path, files, mode="w:gz"):
  """Writes {member name: bytes} into a tar, in this order."""
  path.parent.mkdir(parents=True, exist_ok=True)
  target = path
  if mode == "w:gz":  # like the real archives: one stream, low compression
    target = gzip.open(path, "wb", compresslevel=1)
    mode = "w|"
  with tarfile.open(
    **{"name": target} if target is path else {"fileobj": target}, mode=mode
  ) as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  if target is not path:
    target.close()
  return path


def unpack(files, root):
  """Writes the files {name: bytes} below a folder."""
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return root
