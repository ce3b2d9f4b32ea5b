"""Functions for processes that are killed, interrupted or out of disk space.

`forked` calls these functions. They print the results for the test.
"""

import contextlib
import dataclasses
import os
import resource
import signal
import sys

import fake

from deepemd_jax.data import glyph_clutter, glyph_source, image_io, pixel_cache
from deepemd_jax.data.published import prepare
from deepemd_jax.errors import InputError


def kill_at(module, name, moment, number=signal.SIGKILL, calls=None):
  """Makes the `moment`-th call of module.name send a signal to this process."""
  function, calls = getattr(module, name), [] if calls is None else calls

  def until_killed(*arguments, **more):
    calls.append(name)
    if len(calls) == moment:
      os.kill(os.getpid(), number)
    return function(*arguments, **more)

  setattr(module, name, until_killed)


def loaded(*names):
  """Returns those of the given modules that are loaded."""
  return [name for name in names if name in sys.modules]


def prepare_cub(directory, source):
  """Prepares 45 images of CUB; prints whether they are ready."""
  benchmark = fake.small("cub", 5)
  prepare.prepare(benchmark, directory, source=source)
  print(prepare.is_ready(benchmark, directory), loaded("tensorflow", "jax"))


def prepare_cub_until_killed(directory, source, image, number):
  """Calls `prepare_cub`, with a signal while the given image is encoded."""
  kill_at(image_io, "as_rgb_file", image, number)
  prepare_cub(directory, source)


def prepare_cub_on_a_full_disk(directory, source, limits):
  """Calls `prepare_cub` with each limit, in bytes, for the size of a file."""
  for limit in limits:
    try:
      with limited(limit):
        prepare_cub(directory, source)
    except InputError as error:
      print(error, prepare.is_ready(fake.small("cub", 5), directory))


def load_glyphs(directory, variant, split):
  """Loads glyphs; prints the number of images."""
  source = glyph_source.GlyphClutterSource(directory, variant=variant)
  images = source.load(split)
  heavy = loaded("tensorflow", "matplotlib", "jax")
  print(len(images.labels), heavy)


def load_glyphs_until_killed(directory, variant, split, scene):
  """Calls `load_glyphs`, and is killed when the given scene is drawn."""
  kill_at(glyph_clutter, "scene", scene)
  load_glyphs(directory, variant, split)


def make_copies(place, items):
  """Makes copies of 16 pixels; an error is one line and exit code 1."""
  try:
    pixel_cache.load(
      place,
      lambda: items,
      count=len(items),
      side=16,
      made_from="these",
      name="them",
      data_set="folder",
    )
  except InputError as error:
    sys.exit(f"error: {error}")


def make_copies_until_killed(place, items, moment):
  """Calls `make_copies`, and is killed at a decoding, syncing or renaming."""
  calls = []
  for module, name in ((os, "fsync"), (os, "rename"), (pixel_cache, "_copy")):
    kill_at(module, name, moment, calls=calls)
  make_copies(place, items)


@contextlib.contextmanager
def limited(size):
  """Inside this context, a file cannot grow beyond so many bytes."""
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  free = resource.RLIM_INFINITY
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, free))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))


def make_copies_on_a_full_disk(place, items, limit):
  """Calls `make_copies`; a file cannot grow beyond so many bytes."""
  with limited(limit):
    make_copies(place, items)


def prepare_from(url, directory):
  """Downloads CUB from another address, and does not retry."""
  cub = fake.small("cub", 5)
  archive = dataclasses.replace(cub.archives[0], url=url)
  prepare.prepare(dataclasses.replace(cub, archives=(archive,)), directory)
