"""The lists of classes are the published ones, and names are parsed right."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepemd_jax.data.published import catalogue, splits
from deepemd_jax.errors import InputError

BENCHMARKS = list(catalogue.BENCHMARKS.values())
# The classes and images of each split, as in the papers, and a checksum of the
# classes and their numbers, in order. It detects an accidental edit.
PUBLISHED = {
  "cub": ((100, 50, 50), (5891, 2932, 2965), "8adac63613a50dc7"),
  "cub_full": ((100, 50, 50), (5891, 2932, 2965), "8adac63613a50dc7"),
  "fc100": ((60, 20, 20), (36000, 12000, 12000), "f5aefa4ec7caf308"),
  "cifar_fs": ((64, 16, 20), (38400, 9600, 12000), "8e5ade0c7135d1f8"),
  "miniimagenet": ((64, 16, 20), (38400, 9600, 12000), "0a02624292c738f0"),
  "tieredimagenet": (
    *((351, 97, 160), (448695, 124261, 206209), "b366348185aac900"),
  ),
  "grocery": ((30, 10, 41), (2185, 570, 2666), "8969143fc5d01abc"),
  "cub_retrieval": ((100, 100), (5864, 5924), "205ed398d2b9922e"),
  "cars196": ((98, 98), (8054, 8131), "8832a7d431588694"),
  "stanford_online_products": (
    *((11318, 11316), (59551, 60502), "c445e1d4b479e53b"),
  ),
}


def checksum(rows):
  text = json.dumps(rows, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_all_published_sets_are_there():
  assert set(catalogue.BENCHMARKS) == set(PUBLISHED)
  assert all(b.name == name for name, b in catalogue.BENCHMARKS.items())


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda b: b.name)
def test_classes_and_images_are_as_published(benchmark):
  classes, images, published = PUBLISHED[benchmark.name]
  counts = [benchmark.counts(split) for split in benchmark.splits]
  assert tuple(len(c) for c in counts) == classes
  assert tuple(benchmark.total(s) for s in benchmark.splits) == images
  for split, count in zip(benchmark.splits, counts, strict=True):
    low = sum(count.values())
    if benchmark.exact(split):
      assert low == benchmark.total(split)
    else:
      assert min(count.values()) > 0 and low <= benchmark.total(split)
  assert checksum(counts) == published


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda b: b.name)
def test_splits_share_no_class(benchmark):
  names = [c for split in benchmark.splits for c in benchmark.counts(split)]
  assert len(names) == len(set(names))
  assert list(benchmark.split_of()) == names
  assert len(benchmark.lists()["source"]) > 40  # where the list comes from
  assert len(benchmark.title) < 100 and "\n" not in benchmark.title
  with pytest.raises(InputError, match="no split 'dev'; use one of train"):
    benchmark.counts("dev")


def test_both_cifar_sets_hold_all_classes_and_both_cub_sets_all_images():
  fc100, cifar_fs = (catalogue.BENCHMARKS[n] for n in ("fc100", "cifar_fs"))
  assert set(fc100.split_of()) == set(cifar_fs.split_of())
  assert fc100.split_of() != cifar_fs.split_of()
  few, all_ = (catalogue.BENCHMARKS[n] for n in ("cub", "cub_retrieval"))
  merged = [
    {c: n for s in b.splits for c, n in b.counts(s).items()}
    for b in (few, all_)
  ]
  assert merged[0] == merged[1] and sum(merged[0].values()) == 11788
  assert list(all_.counts("train"))[-1].startswith("100.")


def test_mini_is_cut_from_imagenet_by_a_list_of_600_files_a_class():
  numbers = splits.file_numbers("miniimagenet")
  benchmark = catalogue.BENCHMARKS["miniimagenet"]
  assert list(numbers) == list(benchmark.split_of())
  assert {len(found) for found in numbers.values()} == {600}
  rows = [[name, sorted(found)] for name, found in numbers.items()]
  assert checksum(rows) == "fb0fd4489f6379fb"


@pytest.mark.parametrize(
  ("name", "side", "full"),
  [
    ("cub", 160, "cub:160"),
    ("cub:84", 84, "cub:84"),
    ("cub:original", 0, "cub:original"),
    ("fc100", 32, "fc100:32"),
    ("fc100:32", 32, "fc100:32"),
    ("cifar_fs:original", 32, "cifar_fs:32"),
    ("tieredimagenet", 0, "tieredimagenet:original"),
    ("tieredimagenet:128", 128, "tieredimagenet:128"),
    ("stanford_online_products", 160, "stanford_online_products:160"),
  ],
)
def test_names(name, side, full):
  benchmark, found = catalogue.parse(name)
  assert (benchmark.name, found) == (name.partition(":")[0], side)
  assert catalogue.protocol(benchmark, found) == full
  assert catalogue.parse(full) == (benchmark, side)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("cubs", "no data set 'cubs'; did you mean cub"),
    ("", "no data set ''; use one of cub, cub_full"),
    ("imagenet", "miniimagenet"),
    ("cub:", "'' is not a size"),
    ("cub:0", "'0' is not a size"),
    ("cub:084", "'084' is not a size"),
    ("cub:8", "'8' is not a size"),
    ("cub:9999", "'9999' is not a size"),
    ("cub:84:84", "'84:84' is not a size"),
    ("cub:-84", "'-84' is not a size"),
    ("cub:²", "'²' is not a size"),
    ("fc100:84", "its images are 32 pixels wide"),
  ],
)
def test_wrong_names_are_refused(name, message):
  with pytest.raises(InputError) as refused:
    catalogue.parse(name)
  assert message in str(refused.value) and "\n" not in str(refused.value)


@given(st.text(max_size=12), st.sampled_from(["", "cub:", "fc100:"]))
def test_any_text_is_a_name_or_refused(text, prefix):
  try:
    benchmark, side = catalogue.parse(prefix + text)
  except InputError:
    return
  full = catalogue.protocol(benchmark, side)
  assert catalogue.parse(full) == (benchmark, side)
