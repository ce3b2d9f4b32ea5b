"""Makes small archives and folders with the layout of the official ones.

`small` makes a benchmark that expects the few images that they have.
"""

import functools
import io
import json
import pathlib
import tarfile
import zipfile

import numpy as np
from fake_basics import all_names, names, picture, small, tar, unpack
from fake_cars import cars_folder

from deepemd_jax.data.published import catalogue, splits


@functools.cache
def fine_labels():
  """Returns the 100 fine labels of CIFAR-100, in their order."""
  lists = splits.load("fc100")["splits"]
  return sorted(name for split in lists.values() for name in split)


def cifar_files(per_class=2):
  """Makes cifar-100-binary with random pixels.

  The first images of a class are in train.bin. About a sixth of them, at least
  one, are in test.bin.
  """
  rng = np.random.default_rng(0)
  files = {}
  held_out = max(per_class // 6, 1)
  for part, each in (("train", per_class - held_out), ("test", held_out)):
    records = rng.integers(0, 256, (100 * each, 3074), np.uint8)
    records[:, 0] = 0
    records[:, 1] = np.arange(100 * each) % 100
    files[f"cifar-100-binary/{part}.bin"] = records.tobytes()
  labels = "\n".join(fine_labels()) + "\n"
  # This file comes after the images: its place in the archive is not fixed.
  files["cifar-100-binary/fine_label_names.txt"] = labels.encode()
  files["cifar-100-binary/coarse_label_names.txt"] = b"aquatic_mammals\n"
  return files


def cifar_archive(path, per_class=2):
  """Makes cifar-100-binary.tar.gz, with `per_class` images of each class."""
  return tar(pathlib.Path(path), cifar_files(per_class))


def cub_files(per_class=2, classes=None, change=None):
  """Makes CUB_200_2011, with images of 24 x 32 and the box 4 2 20 16.

  Args:
    change: files to replace, as {path below images/: bytes}.
  """
  images = {}
  for label in classes or all_names("cub"):
    for i in range(per_class):
      name = f"{label}/{label[4:]}_{i:04d}_{i + 7}.jpg"
      content = (change or {}).get(name)
      default = picture(f"{i}{name[::-1]}")
      images[name] = default if content is None else content
  lines = [f"{i} {name}" for i, name in enumerate(images, 1)]
  boxes = [f"{i} 4.0 2.0 20.0 16.0" for i in range(1, len(images) + 1)]
  files = {f"CUB_200_2011/images/{n}": content for n, content in images.items()}
  files["CUB_200_2011/images.txt"] = ("\n".join(lines) + "\n").encode()
  files["CUB_200_2011/bounding_boxes.txt"] = ("\n".join(boxes) + "\n").encode()
  files["attributes.txt"] = b"1 has_bill_shape::curved\n"
  return files


def cub_archive(path, per_class=2, classes=None, change=None):
  """Makes CUB_200_2011.tgz."""
  return tar(pathlib.Path(path), cub_files(per_class, classes, change))


def ilsvrc_files(per_class=2, classes=None):
  """Returns {wnid: {file name: bytes}}.

  A class of miniImageNet has images with the first numbers in easyfsl's list,
  and one image that is not in this list.
  """
  listed = splits.file_numbers("miniimagenet")
  files = {}
  for label in classes or all_names("miniimagenet"):
    numbers = sorted(listed.get(label, range(1, per_class + 1)))[:per_class]
    if label in listed:
      numbers.append(next(n for n in range(10**6) if n not in listed[label]))
    named = [f"{label}_{number}.JPEG" for number in numbers]
    files[label] = {name: picture(name) for name in named}
  return files


def ilsvrc_folder(path, per_class=2, classes=None):
  """Makes a folder with <wnid>/*.JPEG for each class."""
  for label, files in ilsvrc_files(per_class, classes).items():
    unpack(files, pathlib.Path(path) / label)
  return path


def ilsvrc_archive(path, per_class=2, classes=None):
  """Makes ILSVRC2012_img_train.tar, which is a tar of tars."""
  inner = {}
  for label, files in ilsvrc_files(per_class, classes).items():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
      for name, content in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    inner[f"{label}.tar"] = file.getvalue()
  return tar(pathlib.Path(path), inner, mode="w")


def products_files(per_class=2, classes=3):
  """Makes the files of Stanford_Online_Products."""
  files, number = {}, 0
  for split, table in (("train", "Ebay_train"), ("test", "Ebay_test")):
    lines = ["image_id class_id super_class_id path"]
    for label in names("stanford_online_products", split, classes):
      for i in range(per_class):
        number += 1
        name = f"bicycle_final/{label}_{i}.JPG"
        lines.append(f"{number} {int(label)} 1 {name}")
        files[f"Stanford_Online_Products/{name}"] = picture(name)
    text = "\n".join(lines) + "\n"
    files[f"Stanford_Online_Products/{table}.txt"] = text.encode()
  return files


def products_archive(path, per_class=2, classes=3):
  """Makes Stanford_Online_Products.zip."""
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in products_files(per_class, classes).items():
      archive.writestr(name, content)
  return path


def ready_files(name, per_class=2, classes=3, side=0):
  """Returns {split: {class: {file name: bytes}}} for the ready layouts.

  If a side is given, the images are squares of this side.
  """
  side = side or catalogue.BENCHMARKS[name].native
  size = {"height": side, "width": side} if side else {}
  return {
    split: {
      label: {
        f"{pathlib.Path(label).name}_{i}.jpg": picture(
          f"{i}{label[::-1]}", **size
        )
        for i in range(per_class)
      }
      for label in names(name, split, classes)
    }
    for split in catalogue.BENCHMARKS[name].splits
  }


def ready_folders(root, name, per_class=2, classes=3, *, meta=False):
  """Makes {train,val,test}/<class>/<image>.

  This is the layout of FC100, CIFAR-FS and tieredImageNet in the official code
  of DeepEMD. With `meta`, the folders are meta-train and so on.
  """
  root = pathlib.Path(root)
  for split, labels in ready_files(name, per_class, classes).items():
    for label, files in labels.items():
      unpack(files, root / f"{'meta-' * meta}{split}" / label)
  return root


def ready_tables(
  root, name, per_class=2, classes=3, *, below="images/", side=0
):
  """Makes images/ and split/*.csv.

  This is the layout of miniImageNet and CUB in the official code of DeepEMD. It
  is also the layout of FEAT, whose header has spaces.
  """
  root = pathlib.Path(root)
  for split, labels in ready_files(name, per_class, classes, side).items():
    lines = ["filename, label"]
    for label, files in labels.items():
      unpack(files, root / below)
      lines += [f"{file},{label}" for file in files]
    unpack({f"split/{split}.csv": "\n".join(lines).encode()}, root)
  return root


def easyfsl_tables(root, name, per_class=2, classes=3):
  """Makes images/<class>/<image> and {split}.csv: class_name,image_name."""
  root = pathlib.Path(root)
  for split, labels in ready_files(name, per_class, classes).items():
    lines = [",class_name,image_name"]
    for label, files in labels.items():
      unpack(files, root / "images" / label)
      lines += [f"{i},{label},{file}" for i, file in enumerate(files)]
    unpack({f"{split}.csv": "\n".join(lines).encode()}, root)
  return root


def easyfsl_lists(root, name, per_class=2, classes=3):
  """Makes images/<class>/<image> and {split}.json: class_names, class_roots."""
  root = pathlib.Path(root)
  for split, labels in ready_files(name, per_class, classes).items():
    for label, files in labels.items():
      unpack(files, root / "images" / label)
    content = {
      "class_names": [f"a name of {label}" for label in labels],
      "class_roots": [f"./data/{name}/images/{label}" for label in labels],
    }
    unpack({f"{split}.json": json.dumps(content).encode()}, root)
  return root


# The function that makes the source of a published data set:
# `make(path, per_class)`. A data set that is not listed is a ready folder.
SOURCES = {
  "cub": cub_archive,
  "cub_full": cub_archive,
  "fc100": cifar_archive,
  "cifar_fs": cifar_archive,
  "miniimagenet": ilsvrc_archive,
  "cub_retrieval": cub_archive,
  "cars196": cars_folder,
  "stanford_online_products": products_archive,
}


def classes_of(name, classes=3):
  """Returns the number of classes of a split in the source; CIFAR's has all."""
  return 100 if SOURCES.get(name) is cifar_archive else classes


def source(name, path, per_class=2, classes=3):
  """Makes the source of a data set.

  Returns:
    Its path, and a benchmark that expects its images.
  """
  make = SOURCES.get(name)
  if make is None:
    ready_folders(path, name, per_class, classes)
  elif make is cifar_archive:
    make(path, per_class)
  elif make in (cub_archive, ilsvrc_archive):
    make(path, per_class, all_names(name, classes))
  else:
    make(path, per_class, classes)
  return path, small(name, per_class, classes_of(name, classes))
