"""Exported folders that are forged or damaged are refused in one line."""

import json
import os
import random
import shutil

import jaxtyping
import pytest

from deepemd_jax.config import stored
from deepemd_jax.errors import InputError
from deepemd_jax.inference import export


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
  """An export for the CPU alone, because other platforms take long."""
  directory = tmp_path_factory.mktemp("exported") / "mine"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(export, "PLATFORMS", ("cpu",))
    # The check of shapes (see conftest.py) would refuse symbols.
    jaxtyping.config.update("jaxtyping_disable", True)
    export.save(run, directory)
  yield directory
  jaxtyping.config.update("jaxtyping_disable", False)


def test_damage_and_other_folders_are_told(run, exported, tmp_path):
  with pytest.raises(InputError, match="not a file that export wrote"):
    export.load(run)
  broken = tmp_path / "broken"
  broken.mkdir()
  for name in ("manifest.json", "encoder.stablehlo", "classifier.stablehlo"):
    (broken / name).write_bytes((exported / name).read_bytes())
  export.load(broken)
  content = bytearray((exported / "encoder.stablehlo").read_bytes())
  content[len(content) // 2] ^= 1
  (broken / "encoder.stablehlo").write_bytes(content)
  with pytest.raises(InputError, match="encoder.stablehlo' is damaged"):
    export.load(broken)
  (broken / "encoder.stablehlo").unlink()
  with pytest.raises(InputError, match="No such file"):
    export.load(broken)


def test_500_flips_of_the_manifest(exported, tmp_path):
  """Each changed file is refused in one line, or has the same meaning."""
  broken = shutil.copytree(exported, tmp_path / "broken")
  path = broken / "manifest.json"
  content, manifest = path.read_bytes(), export.load(broken).manifest
  rng = random.Random(0)
  refused = 0
  for number in range(500):
    place = rng.randrange(len(content))
    other = content[place] ^ 1 << rng.randrange(8)
    if number % 2:
      other = rng.choice(sorted({*range(256)} - {content[place]}))
    damaged = bytearray(content)
    damaged[place] = other
    path.write_bytes(damaged)
    try:
      assert export.load(broken).manifest == manifest
    except InputError as error:
      refused += 1
      assert "\n" not in str(error) and str(broken) in str(error)
  assert refused > 450


def rewritten(exported, directory, seal=True, **fields):
  """Copies an export with a changed manifest."""
  shutil.copytree(exported, directory, dirs_exist_ok=True)
  manifest = json.loads((exported / "manifest.json").read_text()) | fields
  manifest = {name: x for name, x in manifest.items() if x is not None}
  if seal:
    manifest = stored.sealed(manifest)
  (directory / "manifest.json").write_text(json.dumps(manifest))
  return directory


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"format": 3},
      "has format 3, but this version reads up to 2; use a newer",
    ),
    ({"format": 10**200}, "has format 1e.200, .* use a newer deepemd_jax"),
    ({"format": True}, "format is True, .* whole number; export it again"),
    ({"format": None}, "format is None, .* export it again"),
    ({"checksum": None, "seal": False}, "match its checksum; export it again"),
    ({"platforms": [], "seal": False}, "match its checksum; export it again"),
    (
      {"programs": {}},
      "is not a folder that export wrote .'encoder.stablehlo'",
    ),
    ({"programs": "\n"}, "is not a folder that export wrote"),
  ],
)
def test_manifests_that_are_refused(exported, tmp_path, fields, message):
  with pytest.raises(InputError, match=message) as error:
    export.load(rewritten(exported, tmp_path, **fields))
  assert "\n" not in str(error.value)


def test_a_manifest_of_the_first_format_has_no_checksum(exported, tmp_path):
  old = {"format": 1, "checksum": None, "seal": False}
  assert export.load(rewritten(exported, tmp_path, **old)).manifest["load"]
  sums = {name: {"sha256": "0" * 64} for name in export._NAMES}
  with pytest.raises(InputError, match="encoder.stablehlo' is damaged"):
    export.load(rewritten(exported, tmp_path, programs=sums, **old))


def test_a_program_that_is_no_file_is_not_waited_for(exported, tmp_path):
  broken = rewritten(exported, tmp_path)
  (broken / "encoder.stablehlo").unlink()
  os.mkfifo(broken / "encoder.stablehlo")
  with pytest.raises(InputError, match="not a regular file"):
    export.load(broken)
  os.truncate(broken / "classifier.stablehlo", 5 * 2**30)
  (broken / "encoder.stablehlo").unlink()
  shutil.copy(exported / "encoder.stablehlo", broken)
  with pytest.raises(InputError, match="larger than"):
    export.load(broken)
