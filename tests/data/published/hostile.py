"""Makes archives of each kind, and checks how reading a damaged one ends."""

import contextlib
import signal

import fake
from preparing import expected, labels, read

from deepemd_jax.errors import InputError

# name of a data set -> function that makes its archive, and the file's name
KINDS = {
  "cub": (fake.cub_archive, "CUB_200_2011.tgz"),
  "fc100": (fake.cifar_archive, "cifar-100-binary.tar.gz"),
  "miniimagenet": (fake.ilsvrc_archive, "ILSVRC2012_img_train.tar"),
  "cars196": (lambda path: fake.cars_folder(path.parent), "car_ims.tgz"),
  "stanford_online_products": (
    fake.products_archive,
    "Stanford_Online_Products.zip",
  ),
}


def make(name, folder):
  """Makes the archive of a data set; returns its path and the benchmark."""
  maker, file = KINDS[name]
  folder.mkdir(parents=True, exist_ok=True)
  maker(folder / file)
  return folder / file, fake.small(name, classes=fake.classes_of(name))


class TooLong(BaseException):
  """Reading takes too long. It is no `Exception`, because those are caught."""


@contextlib.contextmanager
def in_time(seconds=10):
  """Raises if the block takes longer, because it may hang."""

  def ring(*unused):
    raise TooLong(f"more than {seconds} s")

  before = signal.signal(signal.SIGALRM, ring)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def read_or_refuse(benchmark, path):
  """Returns the images of an archive, or None if it is refused in one line.

  It also returns None if images are missing: a preparation then refuses them.
  """
  try:
    with in_time():
      found = read(benchmark, path)
  except InputError as refused:
    message = str(refused)
    assert str(path) in message and message.isprintable(), message
    assert len(message) < 500 + len(str(path)), message
    return None
  whole = labels(found) == expected(benchmark)
  listed = all(content is not None for _, content, _ in found.values())
  return found if whole and listed else None
