"""The bytes after the last file of an archive are checked, too."""

import gzip
import io
import tarfile
import zipfile

import fake
import hostile
import pytest
from commands import assert_refused, call
from preparing import read

from deepemd_jax.data.published import archive_members
from deepemd_jax.errors import InputError

PACKED = [n for n, (_, file) in hostile.KINDS.items() if file.endswith("gz")]


def rest(content):
  """Returns the place where the last file of a tar ends."""
  with tarfile.open(fileobj=io.BytesIO(content)) as archive:
    archive.getmembers()
    return archive.offset


def changes(content):
  """Returns {what is wrong: changed archive} for a tar.gz."""
  plain = gzip.decompress(content)
  end = rest(plain)
  foreign = plain[:end] + bytes(1024) + plain[:512]
  return {
    "a wrong CRC": content[:-8] + bytes([content[-8] ^ 1]) + content[-7:],
    "a wrong length": content[:-1] + bytes([content[-1] ^ 1]),
    "no length": content[:-4],
    "half a CRC": content[:-6],
    "no trailer": content[:-8],
    "the padding cut off": content[:-12],
    "garbage behind": content + b"garbage",
    "another archive behind": content + content,
    "files behind the end": gzip.compress(foreign),
    "no end": gzip.compress(plain[:end]),
    "half of an end": gzip.compress(plain[: end + 100]),
    "a damaged end": gzip.compress(plain[:end] + b"\1" + plain[end + 1 :]),
    "endless padding": gzip.compress(plain + bytes(1 << 25), 1),
  }


@pytest.mark.parametrize("name", PACKED)
def test_a_damaged_tail_is_refused(name, tmp_path):
  path, benchmark = hostile.make(name, tmp_path)
  content = path.read_bytes()
  found = read(benchmark, path)
  for what, changed in changes(content).items():
    path.write_bytes(changed)
    with pytest.raises(InputError, match="is damaged.*fetch it again") as error:
      read(benchmark, path)
    assert "\n" not in str(error.value), what
  for fine in (content + bytes(512), gzip.compress(gzip.decompress(content))):
    path.write_bytes(fine)  # gzip allows zeros at the end
    assert read(benchmark, path) == found


def test_a_tar_does_not_end_at_a_damaged_header(tmp_path):
  """tarfile takes a damaged header for the end, without an error."""
  path, benchmark = hostile.make("miniimagenet", tmp_path)
  content = bytearray(path.read_bytes())
  found = read(benchmark, path)
  with tarfile.open(path) as archive:
    outer = archive.getmembers()[1:]
  inner = []
  for info in outer:
    here = io.BytesIO(content[info.offset_data :][: info.size])
    with tarfile.open(fileobj=here) as archive:
      inner += [info.offset_data + m.offset for m in archive.getmembers()]
  for place in [*(info.offset for info in outer), *inner]:
    changed = content.copy()
    changed[place + 3] ^= 4
    path.write_bytes(changed)
    with pytest.raises(InputError, match="is damaged"):
      read(benchmark, path)
  for info in outer:  # cut between two files
    path.write_bytes(content[: info.offset])
    with pytest.raises(InputError, match="is damaged"):
      read(benchmark, path)
  path.write_bytes(content[: rest(content) + 1024])  # without padding
  assert read(benchmark, path) == found


def test_the_command_ends_with_one_line_and_code_2(tmp_path, capsys):
  path = fake.cub_archive(tmp_path / "x.tgz")
  path.write_bytes(path.read_bytes()[:-3])
  arguments = ("--directory", tmp_path / "tfds", "--from", path)
  code, out, errors = call(capsys, "data", "prepare", "cub", *arguments)
  started, line = errors.splitlines(keepends=True)
  assert started.startswith("preparing deepemd_cub in ")
  assert_refused((code, out, line), "x.tgz' is damaged.*fetch it again")


def test_a_table_that_grows_is_refused(tmp_path, monkeypatch):
  """A few compressed bytes of a zip can become any number of bytes."""
  monkeypatch.setattr(archive_members, "_LARGEST_TABLE", 1000)
  path = tmp_path / "x.zip"
  for size in (1000, 1001):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
      archive.writestr("a/images.txt", "1" * size)
    if size == 1000:
      assert archive_members.read_texts(path, "images.txt") == ["1" * size]
  with pytest.raises(InputError, match="images.txt has more than 1000 bytes"):
    archive_members.read_texts(path, "images.txt")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_cannot_be_unpacked_in_pieces_is_refused(method, tmp_path):
  """A few kilobytes would become gigabytes, even if only a part is read."""
  path = tmp_path / "x.zip"
  with zipfile.ZipFile(path, "w", method) as archive:
    archive.writestr("a/images.txt", "1")
  with pytest.raises(InputError, match="unusual compression"):
    archive_members.read_texts(path, "images.txt")


def test_a_file_with_holes_is_refused(tmp_path):
  """Many small pieces after a large hole would take hours to read."""
  info = tarfile.TarInfo("images/x.jpg")
  info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
  path = tmp_path / "x.tar"
  path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
  with pytest.raises(InputError, match="holes"):
    list(archive_members.read_members(path))
