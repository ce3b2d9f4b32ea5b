"""A config.json from a stranger, or a damaged one, is read or refused."""

import json
import os
import random
import re

import pytest

from deepemd_jax.config import defaults, resolve, stored
from deepemd_jax.config import workdir as workdirs
from deepemd_jax.errors import InputError

FIELDS = json.loads(defaults.get_config().to_json_best_effort())
FIELDS["streams"] = 2


@pytest.fixture
def path(tmp_path):
  """The config.json of a new run."""
  workdirs.claim(tmp_path, FIELDS)
  return tmp_path / "config.json"


def refusal(path):
  """Returns the line with which both readers refuse a file."""
  with pytest.raises(InputError) as error:
    stored.read(path)
  with pytest.raises(InputError) as another:
    workdirs.check(path.parent, FIELDS, trains=True)
  message = str(error.value)
  assert str(another.value) == f"{message}; or give another --workdir"
  assert "\n" not in message and str(path) in message and len(message) < 700
  return message


def flipped(content, rng):
  """Returns the content with one bit or one byte changed."""
  place = rng.randrange(len(content))
  byte = content[place] ^ (1 << rng.randrange(8))
  if rng.random() < 0.5:
    byte = rng.choice(sorted({*range(256)} - {content[place]}))
  return content[:place] + bytes([byte]) + content[place + 1 :]


def test_500_flips_are_refused_or_change_nothing(path):
  content = path.read_bytes()
  settings = resolve.resolve(stored.read(path))
  rng = random.Random(0)
  refused = 0
  for _ in range(500):
    path.write_bytes(flipped(content, rng))
    try:
      fields, config = stored.read_fields(path), stored.read(path)
    except InputError as error:
      assert "\n" not in str(error) and str(path) in str(error)
      refused += 1
    else:
      assert fields == FIELDS
      assert resolve.resolve(config) == settings
  assert 400 < refused < 500


def test_500_flips_of_a_file_without_a_checksum_are_one_line_at_worst(path):
  """Older, converted and handwritten files have no checksum."""
  content = json.dumps(FIELDS).encode()
  rng = random.Random(1)
  read = 0
  for _ in range(500):
    path.write_bytes(flipped(content, rng))
    try:
      resolve.resolve(stored.read(path))
      read += 1
    except InputError as error:
      assert "\n" not in str(error)
  assert read > 10


def test_every_single_character_of_the_checksum_counts(path):
  text = path.read_text()
  start = text.index('"checksum"')
  for place in range(start, text.index("\n", start) - 1):
    other = "x" if text[place] not in "x " else "y"
    path.write_text(text[:place] + other + text[place + 1 :])
    with pytest.raises(InputError):
      stored.read(path)


def test_an_edit_is_told_from_none_and_how_to_mean_it(path):
  text = path.read_text()
  path.write_text(text.replace('"width": 1.0', '"width": 0.5'))
  assert "was edited: it does not match its checksum" in refusal(path)
  assert "delete the line 'checksum'" in refusal(path)
  lines = path.read_text().splitlines()
  path.write_text("\n".join(x for x in lines if '"checksum"' not in x))
  assert stored.read(path).model.width == 0.5


def test_order_and_space_do_not_count(path):
  fields = json.loads(path.read_text())
  path.write_text(json.dumps(dict(reversed(fields.items())), indent=7))
  assert stored.read_fields(path) == FIELDS


@pytest.mark.parametrize(
  "fields",
  [
    {"model": {"width": 0.25}},  # written by `convert`
    {name: x for name, x in FIELDS.items() if name not in ("streams", "nodes")},
    FIELDS,
    {},
  ],
)
def test_files_without_a_checksum_and_with_fewer_fields_are_read(path, fields):
  path.write_text(json.dumps(fields))
  assert stored.read_fields(path) == fields
  assert stored.read(path).sfc.epochs == 100
  workdirs.check(path.parent, FIELDS | fields, trains=False)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"seed": NaN}', "NaN is not a finite number"),
    ('{"emd": {"epsilon": Infinity}}', "Infinity is not a finite number"),
    ('{"image": {"mean": [1, 2, -Infinity]}}', "-Infinity is not a finite"),
    ('{"emd": {"epsilon": 1e999}}', "1e999 is not a finite number"),
    ('{"emd": {"epsilon": 1%s}}' % ("0" * 400), "is not a finite number"),
    ('{"seed": 1%s}' % ("0" * 9000), "is not a finite number"),
    ('{"seed": 0, "seed": 1}', "'seed' occurs more than once"),
    ('{"emd": {"form": "QP", "form": "L2"}}', "'form' occurs more than"),
    ('{"sed": 0}', "does not know: 'sed'; correct or delete"),
    ('{"model": {"widht": 1}, "x": 0}', "does not know: 'x', 'model.widht';"),
    ('{"a\\nb": {}}', "does not know: 'a\\\\nb';"),
    (json.dumps(dict.fromkeys("abcdefgh")), "'a', .* 'e' and 3 more;"),
    ('{"streams": "2"}', "streams is '2', which should be a whole number"),
    ('{"data": {"name": 3}}', "data.name is 3, which should be text"),
    ('{"data": []}', "data is .., which should be an object"),
    ('{"evaluate": {"heads": [1]}}', "evaluate.heads .* a list of names"),
    ('{"stages": [{}]}', "stages is .* a list of names"),
    ('{"seed": ' + "[" * 400 + "]" * 400 + "}", "seed is .*whole number"),
    ('{"seed": -1}', "config.seed is -1; use an integer >= 0"),
    (
      '{"image": {"size": 100000}}',
      "config.image.size is 100000; .* most 4096",
    ),
    ('{"nodes": {"grid": [2, 33]}}', "config.nodes.grid is .* at most 32"),
    ('{"nodes": {"pyramid": [9, 31, 1, 9]}}', "config.nodes.pyramid is"),
    ('{"seed": 9223372036854775808}', "config.seed must be at most"),
    (
      '{"model": {"width": 1e300}}',
      "config.model.width is 1e.300; .* most 100",
    ),
    ("[" * 30_000, "nested too deep"),
    ('{"a":' * 10_000, "nested too deep"),
    ("[" * 1_000_000, "larger than 65536 bytes"),
    ("", "not the config of a run"),
  ],
  ids=lambda text: text[:30],
)
def test_what_is_refused(path, text, message):
  path.write_text(text)
  assert re.search(message, refusal(path)), refusal(path)


def test_a_checksum_does_not_hide_depth(path):
  """A file that can be read may be nested too deeply to be written."""
  for depth in range(50, 1500, 50):
    nested = "[" * depth + "]" * depth
    path.write_text('{"checksum": "", "seed": ' + nested + "}")
    refusal(path)


def test_gigabytes_are_not_read(path):
  os.truncate(path, 5 * 2**30)
  assert "larger than 65536 bytes" in refusal(path)


def test_a_pipe_is_not_waited_for(path):
  path.unlink()
  os.mkfifo(path)
  assert "not a regular file" in refusal(path)
