"""Archives that are cut, changed or hostile, and files that are no archives."""

import contextlib
import tarfile
import zipfile

import fake
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import expected, read

from deepemd_jax.data.published import archive_members
from deepemd_jax.errors import InputError

MAKERS = {
  "cub": fake.cub_archive,
  "fc100": fake.cifar_archive,
  "miniimagenet": fake.ilsvrc_archive,
  "stanford_online_products": fake.products_archive,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  root = tmp_path_factory.mktemp("whole")
  return {n: make(root / n).read_bytes() for n, make in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_something_else_is_not_taken_for_an_archive(name, whole, tmp_path):
  benchmark = fake.small(name)
  path = tmp_path / "archive"
  others = [whole[other] for other in MAKERS if other != name]
  for content in (b"", b"<!DOCTYPE html>" + b" " * 2000, *others):
    path.write_bytes(content)
    with contextlib.suppress(InputError):
      assert read(benchmark, path) == {}  # the counts will then be wrong
  path.write_bytes(b"<!DOCTYPE html>" + b" " * 2000)
  with pytest.raises(
    InputError, match="'.*archive' is damaged.*fetch it again"
  ):
    read(benchmark, path)


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(sorted(MAKERS)), cut=st.floats(0, 0.999))
def test_a_cut_off_archive_is_refused_or_lacks_images(
  name, cut, whole, tmp_path_factory
):
  path = tmp_path_factory.mktemp("cut") / "archive"
  content = whole[name]
  path.write_bytes(content[: int(cut * len(content))])
  benchmark = fake.small(name, classes=3)
  try:
    found = read(benchmark, path)
  except InputError as refused:
    assert str(path) in str(refused) and "\n" not in str(refused)
    return
  # An uncompressed tar may be cut between two files. In any archive, the part
  # after the last image may be missing without an effect.
  lacks = len(found) < sum(expected(benchmark).values())
  assert name == "miniimagenet" if lacks else cut > 0.9


@settings(deadline=None, max_examples=60)
@given(
  name=st.sampled_from(sorted(MAKERS)),
  flips=st.lists(
    st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4
  ),
)
def test_a_flipped_byte_never_crashes(name, flips, whole, tmp_path_factory):
  path = tmp_path_factory.mktemp("flip") / "archive"
  content = bytearray(whole[name])
  for place, bits in flips:
    content[int(place * (len(content) - 1))] ^= bits
  path.write_bytes(content)
  with contextlib.suppress(InputError):
    read(fake.small(name), path)


def test_names_in_an_archive_are_only_read(tmp_path):
  """Members with absolute paths, `..` or links write no files."""
  label = fake.all_names("cub")[0]
  files = {
    f"/tmp/CUB_200_2011/images/{label}/absolute.jpg": fake.picture("a"),
    f"../../../images/{label}/climbing.jpg": fake.picture("b"),
  }
  path = fake.tar(tmp_path / "a" / "evil.tgz", files)
  with tarfile.open(tmp_path / "a" / "links.tar", "w") as archive:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
      info = tarfile.TarInfo(f"images/{label}/{kind.decode()}.jpg")
      info.type, info.linkname = kind, "/etc/passwd"
      archive.addfile(info)
    info = tarfile.TarInfo(f"images/{label}/plain.jpg")
    archive.addfile(info)
  before = sorted(tmp_path.rglob("*"))
  benchmark = fake.small("cub_full")
  assert set(read(benchmark, path)) == {
    f"{label}/absolute.jpg",
    f"{label}/climbing.jpg",
  }
  assert set(read(benchmark, tmp_path / "a" / "links.tar")) == {
    f"{label}/plain.jpg"
  }
  assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_unpacks_to_far_too_much_is_refused(tmp_path, monkeypatch):
  """The header of a zip of some kB says that an image has many MB."""
  assert archive_members._LARGEST_MEMBER <= 300e6
  monkeypatch.setattr(archive_members, "_LARGEST_MEMBER", 1 << 20)
  path = tmp_path / "bomb.zip"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in fake.products_files().items():
      bomb = name.endswith("00001_0.JPG")
      archive.writestr(name, bytes(3 << 20) if bomb else content)
  assert path.stat().st_size < 1 << 20
  with pytest.raises(InputError, match="00001_0.JPG' has 3145728 bytes"):
    read(fake.small("stanford_online_products"), path)


def test_cifar_records_are_checked(tmp_path):
  files = fake.cifar_files()
  benchmark = fake.small("fc100", classes=100)
  name = "cifar-100-binary/train.bin"

  def refuse(message, **changed):
    path = fake.tar(tmp_path / "x.tar.gz", files | changed)
    with pytest.raises(InputError, match=message):
      read(benchmark, path)

  refuse("train.bin is damaged at image 99", **{name: files[name][:-1]})
  wrong = files[name][:1] + b"\xc8" + files[name][2:]
  refuse("train.bin is damaged at image 0", **{name: wrong})
  del files[name]
  refuse("holds no train.bin")


def test_boxes_must_fit_the_images(tmp_path):
  files = fake.cub_files()
  name = "CUB_200_2011/bounding_boxes.txt"

  def refuse(message, content):
    path = fake.tar(tmp_path / "x.tgz", files | {name: content})
    with pytest.raises(InputError, match=message):
      read(fake.small("cub"), path)

  refuse("no bounding box for", b"1 1.0 1.0 2.0 2.0\n")
  refuse("do not fit each other", b"1 1.0 one 2.0 2.0\n")
  refuse("do not fit each other", b"99999 1.0 1.0 2.0 2.0\n")
  del files[name]
  with pytest.raises(InputError, match="holds no bounding_boxes.txt"):
    read(fake.small("cub"), fake.tar(tmp_path / "x.tgz", files))
