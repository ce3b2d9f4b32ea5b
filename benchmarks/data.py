"""Measures the cost of reading an episode, and the effect of stored copies.

    python -m benchmarks.data               # tables, JSON on request
    python -m benchmarks.data --smoke       # small, for CI

For reading, a 5-way 1-shot episode with 15 queries per class has 80 images with
a random resized crop each. The ways to read take turns in one run, and the
table has medians. "A core" is the number of episodes per second of CPU time of
all threads. `PIL on the host` does what a PyTorch loader does with the same
copies in the same memory map: crop, resize to 84, flip. It decodes nothing.

For copies, the table has the mean difference in gray levels between random
crops of squashed copies and the same crops of the originals. The photographs
come from installed wheels (matplotlib and scikit-learn) or from `--photos`.
Their longer side is at most 500 pixels, as in ImageNet and CUB.
"""

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import multiprocessing
import pathlib
import resource
import tempfile
import time

import jax
import numpy as np
from PIL import Image

from deepemd_jax.config import defaults, resolve
from deepemd_jax.data import boxes as box_geometry
from deepemd_jax.data import image_io, picture_files, views
from deepemd_jax.data.image_set import COPY_FILTER
from deepemd_jax.data.published import catalogue, prepare
from deepemd_jax.data.published_source import PublishedSource
from deepemd_jax.training import metatrain

SIZE = 84
NAME = "photographs"
IN_WHEELS = {
  "matplotlib": "mpl-data/sample_data/grace_hopper.jpg",
  "sklearn": "datasets/images/*.jpg",
}


def photographs(folder: str | None) -> dict[str, Image.Image]:
  """Returns {name: real photograph of at most 500 pixels on a side}."""
  if folder:
    paths = [pathlib.Path(folder).rglob("*")]
  else:
    paths = []
    for package, pattern in IN_WHEELS.items():
      if spec := importlib.util.find_spec(package):
        paths.append(pathlib.Path(spec.origin).parent.glob(pattern))
  images = {}
  for path in sorted(path for several in paths for path in several):
    if picture_files.is_picture(path):
      images[path.name] = image_io.read_rgb(path)
      images[path.name].thumbnail((500, 500), Image.Resampling.LANCZOS)
  return images


def differences(images: dict, sides, crops: int) -> dict[int, dict]:
  """Returns {side: {photograph: mean difference of crops in gray levels}}."""
  rows: dict = {side: {} for side in sides}
  for name, image in images.items():
    size = np.array([[image.height, image.width]]).repeat(crops, 0)
    boxes = box_geometry.random_resized_crop(np.random.default_rng(0), size)
    expected = np.stack(
      [
        np.asarray(
          image.crop(tuple(box)).resize((SIZE, SIZE), Image.BILINEAR), np.int16
        )
        for box in boxes.astype(int).tolist()
      ]
    )
    for side in sides:
      copy = np.asarray(image.resize((side, side), COPY_FILTER))
      found = views.crop_resize(
        np.broadcast_to(copy, (crops, *copy.shape)),
        box_geometry.to_stored(boxes, size, side),
        np.zeros(crops, bool),
        size=SIZE,
      )
      rows[side][name] = float(np.abs(np.asarray(found) - expected).mean())
  return rows


def register(count: int) -> list[str]:
  """Registers a data set of `count` photographs; returns its class names.

  Each class has 20 images.
  """
  names = [f"c{i:04d}" for i in range(count // 20)]
  lists = {"splits": {"train": {name: {"images": 20} for name in names}}}
  catalogue.BENCHMARKS[NAME] = catalogue.Benchmark(
    NAME,
    "parts of photographs",
    layouts=("folders",),
    splits=("train",),
    lists=lambda: lists,
  )
  return names


def make_ready(root: pathlib.Path, photos, count: int, side: int) -> None:
  """Prepares JPEGs of parts of the photographs, and their copies.

  It runs in a separate process, so that its memory is not counted.
  """
  names = register(count)
  images = list(photographs(photos).values())
  rng = np.random.default_rng(0)
  distinct = []
  for i in range(min(count, 200)):  # further images repeat these
    photo = images[i % len(images)]
    size = np.array([[photo.height, photo.width]])
    (box,) = box_geometry.random_resized_crop(rng, size, scale=(0.5, 1.0))
    file = io.BytesIO()
    part = photo.crop(tuple(box)).resize((500, 375), Image.BILINEAR)
    part.save(file, "JPEG", quality=90)
    distinct.append(file.getvalue())
  for c, name in enumerate(names):
    (root / "ready" / "train" / name).mkdir(parents=True)
    for i in range(20):
      path = root / "ready" / "train" / name / f"{i}.jpg"
      path.write_bytes(distinct[(20 * c + i) % len(distinct)])
  with contextlib.redirect_stderr(io.StringIO()):
    prepare.prepare(
      catalogue.BENCHMARKS[NAME], str(root), source=root / "ready"
    )
    for kept in (str(side), "original"):
      opened(root, kept)


def opened(root: pathlib.Path, kept: str):
  """Returns the stored copies or the originals as an image set."""
  return PublishedSource(f"{NAME}:{kept}", str(root)).load("train")


def on_host(make):
  """Returns a function from a step to crops [80, 84, 84, 3] that PIL cuts."""

  def batch(step):
    found = []
    for part in make(step).values():
      copies = part["images"].reshape(-1, *part["images"].shape[-3:])
      boxes, flips = part["boxes"].reshape(-1, 4), part["flip"].ravel()
      whole = np.stack([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], 1)
      for copy, box, flip in zip(
        copies, whole.reshape(-1, 4).astype(int).tolist(), flips, strict=True
      ):
        crop = Image.fromarray(copy).crop(box)
        crop = np.asarray(crop.resize((SIZE, SIZE), Image.BILINEAR))
        found.append(crop[:, ::-1] if flip else crop)
    return np.stack(found)

  return batch


def measure(work: dict, turns: int) -> list[dict]:
  """Returns rows of episodes per second, medians over turns.

  "per core" counts CPU seconds, and "per second" counts wall-clock seconds.
  """
  spent: dict = {name: [] for name in work}
  for turn in range(turns + 1):  # the first turn compiles and opens files
    for name, (make, episodes) in work.items():
      wall, cpu = time.perf_counter(), time.process_time()
      for step in range(turn * episodes, (turn + 1) * episodes):
        jax.block_until_ready(make(step))
      spent[name].append(
        (
          (time.perf_counter() - wall) / episodes,
          (time.process_time() - cpu) / episodes,
        )
      )
  rows = []
  for name, seconds in spent.items():
    wall, cpu = np.median(seconds[1:], 0)
    rows.append({"path": name, "per core": 1 / cpu, "per second": 1 / wall})
  return rows


def reading(root: pathlib.Path, options) -> tuple[list[dict], dict]:
  """Returns rows of all ways to read, and peak memories in GB."""
  settings = resolve.resolve(defaults.get_config())
  extract = jax.jit(
    functools.partial(views.crop_on_device, settings.view, SIZE)
  )
  read = metatrain.make_batches(settings, opened(root, str(options.side)))
  decode = metatrain.make_batches(settings, opened(root, "original"))

  def crop(step):
    return [extract(part) for part in read(step).values()]

  many = 1 if options.smoke else 40
  memory = {"before": peak()}
  measure({"read": (read, many)}, options.turns)
  memory["after reading"] = peak()
  rows = measure(
    {
      "read": (read, many),
      "read + device crops": (crop, max(many // 10, 1)),
      "array_record JPEG + PIL": (decode, max(many // 20, 1)),
      "PIL on the host": (on_host(read), max(many // 4, 1)),
    },
    options.turns,
  )
  for row in rows:
    row["against PIL"] = row["per core"] / rows[-1]["per core"]
  return rows, memory | {"after device crops": peak()}


def peak() -> float:
  """Returns this process's peak memory in GB, with mapped pages."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
  """Prints both tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--side", type=int, default=160, help="of the copies")
  parser.add_argument("--images", type=int, default=5000)
  parser.add_argument("--crops", type=int, default=1000, help="of a photograph")
  parser.add_argument("--turns", type=int, default=7)
  parser.add_argument("--photos", help="a folder of photographs")
  parser.add_argument("--json", help="also write the rows to this file")
  parser.add_argument("--smoke", action="store_true")
  options = parser.parse_args()
  sides = (84, 128, 160, 256)
  if options.smoke:
    options.images, options.crops, options.turns = 100, 20, 1
    sides = (options.side,)

  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    child = multiprocessing.get_context("spawn").Process(
      target=make_ready,
      args=(root, options.photos, options.images, options.side),
    )
    child.start()
    child.join()
    register(options.images)
    rows, memory = reading(root, options)
  images = photographs(options.photos)
  levels = differences(images, sides, options.crops)
  report(options, images, levels, rows, memory)
  if options.json:
    result = {"reading": rows, "gray levels": levels, "peak GB": memory}
    with open(options.json, "w") as file:
      json.dump(result, file, indent=2)


def report(options, images, levels, rows, memory) -> None:
  """Prints the tables."""
  print(
    f"mean difference in gray levels, {options.crops} random crops each of\n"
    f"{', '.join(images)}\n"
  )
  print(f"{'copies of':<12}{'mean':>8}{'worst photograph':>20}")
  for side, by_image in levels.items():
    mean, worst = np.mean(list(by_image.values())), max(by_image.values())
    print(f"{side:<12}{mean:>8.2f}{worst:>20.2f}")
  print(
    f"\nepisodes of 80 images; {options.images} copies of {options.side}; "
    f"JPEGs of 500 x 375; {jax.devices()[0].device_kind}\n"
  )
  print(f"{'path':<28}{'a core':>10}{'a second':>12}{'against PIL':>14}")
  for row in rows:
    print(
      f"{row['path']:<28}{row['per core']:>10.1f}{row['per second']:>12.1f}"
      f"{row['against PIL']:>14.2f}"
    )
  spent = ", ".join(f"{when} {gb:.2f}" for when, gb in memory.items())
  print(f"\npeak memory in GB, with the pages of the map: {spent}")


if __name__ == "__main__":
  main()
