"""What small archives and folders are made of, for tests: see `fake`."""

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
  """A published benchmark with its first few classes of each split, and so many
  images of each. `per_class` may be a function of the class name. Copies have
  16 pixels: those of 160 would enlarge the images, which is refused."""
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
  """Hashable and equal by content, as the published ones are."""

  text: str

  def __call__(self):
    return json.loads(self.text)


def names(name, split, classes=3):
  """The first classes of a split of a published benchmark."""
  return list(catalogue.BENCHMARKS[name].counts(split))[:classes]


def all_names(name, classes=3):
  found = catalogue.BENCHMARKS[name].splits
  return [c for split in found for c in names(name, split, classes)]


@functools.cache
def picture(seed, height=24, width=32, kind="JPEG", mode="RGB", **options):
  """The bytes of an image: smooth random colors, another for each seed."""
  rng = np.random.default_rng(abs(hash_of(seed)))
  pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
  image = Image.fromarray(pixels).resize((width, height)).convert(mode)
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def hash_of(seed):
  """A number for a text or a number, the same in every process."""
  return int.from_bytes(str(seed).encode()[-8:], "big")


def tar(path, files, mode="w:gz"):
  """Writes {member name: bytes} into a tar, in that order."""
  path.parent.mkdir(parents=True, exist_ok=True)
  target = path
  if mode == "w:gz":  # as the real ones: one stream, compressed a little
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
  """Writes {name: bytes} below a folder."""
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return root
