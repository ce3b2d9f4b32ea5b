"""Archives with changed bytes give the same images or are refused in one line.

A seed determines the change, so a failure can be repeated.
"""

import gzip
import io
import random
import struct
import tarfile

import fake
import hostile
import pytest
from preparing import read

from deepemd_jax.errors import InputError

SHORT = range(40)
LONG = range(40, 1500)


@pytest.fixture
def around(tmp_path, monkeypatch):
  """Runs a test in an empty folder, and checks that it stays empty."""
  empty = tmp_path / "a" / "b"
  empty.mkdir(parents=True)
  monkeypatch.chdir(empty)
  yield
  assert [p.name for p in (tmp_path / "a").rglob("*")] == ["b"]


def headers(content, start=0):
  """Yields the places of the headers of a tar, and of tars inside it."""
  with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
    for info in archive.getmembers():
      yield start + info.offset
      if info.name.endswith(".tar"):
        inner = content[info.offset_data :][: info.size]
        yield from headers(inner, start + info.offset_data)


def change(content, places, rng):
  """Changes up to four bytes at some of the places."""
  changed = bytearray(content)
  for _ in range(rng.choice([1, 1, 2, 4])):
    changed[rng.choice(places)] = rng.choice([0, 32, 48, 55, 128, 255])
  return bytes(changed)


def same_or_refused(name, tmp_path, seeds):
  path, benchmark = hostile.make(name, tmp_path / "source")
  content, found = path.read_bytes(), read(benchmark, path)
  places = range(len(content))
  plain = path.suffix == ".tar"  # only its headers have checksums
  if plain:
    places = [p + i for p in headers(content) for i in range(512)]
  refused = 0
  for seed in seeds:
    rng = random.Random(f"{name} {seed}")
    changed = change(content, places, rng)
    if plain:  # two changes may leave a checksum unchanged
      changed = change(content, [rng.choice(places)], rng)
    path.write_bytes(changed)
    outcome = hostile.read_or_refuse(benchmark, path)
    assert outcome in (None, found), seed
    refused += outcome is None
  assert refused > len(seeds) / 4


@pytest.mark.parametrize("name", hostile.KINDS)
def test_changed_bytes(name, tmp_path, around):
  same_or_refused(name, tmp_path, SHORT)


@pytest.mark.soak
@pytest.mark.parametrize("name", hostile.KINDS)
def test_many_changed_bytes(name, tmp_path, around):
  same_or_refused(name, tmp_path, LONG)


NUMBERS = [
  *(b"\xff" * 12, b"\xff" * 10 + b"\xfe\x00", b"\x80" + b"\xff" * 11),
  *(b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7, b"77777777777\0", b"-1000\0"),
  *(b"x" * 12, bytes(12), b"00000001000\0", b"00000000001\0", b"1e9\0"),
]
NAMES = [b"/tmp/x.jpg", b"../../x.jpg", b"\xff\xfe.jpg", b"", b"\n\x1b[2J.jpg"]
RECORDS = [
  *("size=-512", "size=-1", "size=99999999999999999999", "size=x"),
  *("path=../../x", "path=", "hdrcharset=BINARY", "GNU.sparse.major=1"),
  *("GNU.sparse.minor=0", "GNU.sparse.map=0,1,-5,9", "GNU.sparse.map=x"),
  *("GNU.sparse.size=-3", "GNU.sparse.realsize=-9", "GNU.sparse.name=/x"),
  *("GNU.sparse.offset=5", "GNU.sparse.numbytes=-5", "mtime=nan"),
]
TYPES = b"01234567LKxgXSVMN\0AD"


def forged(header, rng):
  """Returns a header with other fields and a correct checksum."""
  header = bytearray(header)
  field = rng.randrange(5)
  if field == 0:
    header[124:136] = rng.choice(NUMBERS).ljust(12, b"\0")
  elif field == 1:
    header[156] = rng.choice(TYPES)
  elif field == 2:
    header[0:100] = rng.choice(NAMES).ljust(100, b"\0")
  elif field == 3:
    header[156] = ord("S")
    header[386:496] = b"".join(rng.choices(NUMBERS, k=9))[:108] + b"\1\0"
  else:
    place = rng.randrange(512)
    header[place] = rng.randrange(256)
  return checked(header)


def checked(header):
  header[148:156] = b" " * 8
  header[148:156] = b"%06o\0 " % sum(header)
  return bytes(header)


def extra(rng):
  """Returns a pax or GNU header and its content, to precede another header."""
  records = [
    f"{len(text) + 4:02} {text}\n"
    for text in rng.choices(RECORDS, k=rng.randrange(1, 4))
  ]
  content = "".join(records).encode()
  if rng.random() < 0.2:
    content = rng.choice([b"0 a=b\n", b"9" * 5000 + b" a=b\n", b"\xff" * 40])
  info = tarfile.TarInfo("extra")
  info.size, info.type = len(content), rng.choice([b"x", b"g", b"L", b"K"])
  padding = bytes(-len(content) % 512)
  return info.tobuf(tarfile.USTAR_FORMAT) + content + padding


def forge(content, places, rng):
  """Changes some headers of a tar, and inserts others."""
  changed = bytearray(content)
  for place in sorted(rng.sample(places, min(len(places), 3)), reverse=True):
    if rng.random() < 0.5:
      changed[place : place + 512] = forged(changed[place : place + 512], rng)
    if rng.random() < 0.5:
      changed[place:place] = extra(rng)
  return bytes(changed)


def forged_ends_well(name, tmp_path, seeds):
  path, benchmark = hostile.make(name, tmp_path / "source")
  content = path.read_bytes()
  packed = path.suffix != ".tar"
  if packed:
    content = gzip.decompress(content)
  places = list(headers(content))
  for seed in seeds:
    changed = forge(content, places, random.Random(f"{name} {seed}"))
    path.write_bytes(gzip.compress(changed, 1) if packed else changed)
    hostile.read_or_refuse(benchmark, path)


TARS = [n for n, (_, file) in hostile.KINDS.items() if file[-3:] != "zip"]


@pytest.mark.parametrize("name", TARS)
def test_forged_headers(name, tmp_path, around):
  """The checksums are correct, so the images may be others or fewer."""
  forged_ends_well(name, tmp_path, SHORT)


@pytest.mark.soak
@pytest.mark.parametrize("name", TARS)
def test_many_forged_headers(name, tmp_path, around):
  forged_ends_well(name, tmp_path, LONG)


@pytest.mark.parametrize("size", [-512, -1536, -1, 1 << 62])
@pytest.mark.parametrize("kind", ["header", "pax"])
def test_a_size_that_leads_backwards_is_refused(size, kind, tmp_path):
  """tarfile would read the same header again and again."""
  path, _ = hostile.make("cub", tmp_path)
  content = bytearray(gzip.decompress(path.read_bytes()))
  with tarfile.open(path) as archive:
    last = archive.getmembers()[-1].offset  # no image, so it is skipped
  if kind == "header":
    field = struct.pack(">q", size).rjust(12, b"\xff" if size < 0 else b"\0")
    field = bytes([field[0] | 0x80]) + field[1:]
    content[last + 124 : last + 136] = field
    content[last : last + 512] = checked(content[last : last + 512])
  else:
    text = f"size={size}\n"
    info = tarfile.TarInfo("extra")
    info.type, info.size = tarfile.XHDTYPE, len(text) + 3
    record = f"{info.size} {text}".encode().ljust(512, b"\0")
    content[last:last] = info.tobuf() + record
  path.write_bytes(content)
  with hostile.in_time(), pytest.raises(InputError, match="is damaged"):
    read(fake.small("cub_full"), path)
