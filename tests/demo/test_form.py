"""Correct forms are classified; wrong forms are refused with a reason."""

import base64
import io
import json
import re
import struct
import tempfile
import zlib

import numpy as np
import pytest
from forms import BLUE, RED, TEXT, TRICK, ask, classify, encode, fields, png
from PIL import Image

from deepemd_jax import FewShotClassifier
from deepemd_jax.inference import class_nodes


def bomb(side: int) -> bytes:
  """Returns a small PNG whose header has side x side pixels."""
  chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),)
  chunks += ((b"IDAT", zlib.compress(bytes(99))), (b"IEND", b""))
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(content))
    + kind
    + content
    + struct.pack(">I", zlib.crc32(kind + content))
    for kind, content in chunks
  )


def opened(url: str) -> Image.Image:
  content = base64.b64decode(url.removeprefix("data:image/png;base64,"))
  return Image.open(io.BytesIO(content))


def test_classified_as_the_classifier_does(port, run):
  images = [png(BLUE, 1), png(RED, 3), png((20, 200, 20), 4)]
  support = [[(image, f"{k}.png")] for k, image in enumerate(images)]
  values = fields(
    ["sky", TRICK, "a  b "],
    **{f"support{k}": files for k, files in enumerate(support)},
    query=[(png(RED, 9, (40, 20)), "q.png")],
    variant=["grid"],
    solver=["network_simplex"],
  )
  status, found = classify(port, values)
  assert status == 200, found
  decoded = [Image.open(io.BytesIO(image)) for image in images]
  ours = FewShotClassifier(run, "grid", "network_simplex")
  ours.fit(decoded, [0, 1, 2])
  query = Image.open(io.BytesIO(values["query"][0][0]))
  (expected,) = ours.predict_proba([query])
  rows = found["classes"]
  np.testing.assert_allclose([r["probability"] for r in rows], expected, 1e-4)
  assert [r["name"] for r in rows] == ["sky", TRICK, "a b"]
  assert [r["images"] for r in rows] == [1, 1, 1]
  assert found["predicted"] == expected.argmax()
  assert found["facts"]["variant"] == "grid, 4 nodes"
  assert found["facts"]["solver"] == "NetworkSimplex"
  assert opened(found["query"]).size == (20, 40)
  for row in rows:
    total = sum(pair["contribution"] for pair in row["pairs"])
    assert total + row["remainder"] == pytest.approx(row["logit"], abs=1e-4)
    assert abs(row["remainder"]) < 1e-2
    assert (row["query"]["width"], row["query"]["height"]) == (20, 40)
    assert opened(row["support"]["picture"]).size == (30, 24)
    plain = np.asarray(opened(found["query"]), int)
    weighted = np.asarray(opened(row["query"]["weighted"]), int)
    assert (weighted <= plain).all() and weighted.sum() < plain.sum()


def test_several_images_of_a_class(port, run, monkeypatch):
  # This replaces the fit, which takes seconds to compile.
  mean = lambda support, order, **_: support.mean(1)  # noqa: E731
  monkeypatch.setattr(class_nodes, "_fit", mean)
  images = [png(BLUE, 1), png(BLUE, 2), png(RED, 3)]
  status, found = classify(
    port,
    fields(
      support0=[(images[0], "1.png"), (images[1], "1.png")],
      support1=[(images[2], "2.png")],
    ),
  )
  assert status == 200, found
  assert [row["images"] for row in found["classes"]] == [2, 1]
  ours = FewShotClassifier(run)
  decoded = [Image.open(io.BytesIO(image)) for image in images]
  ours.fit(decoded, [0, 0, 1])
  query = Image.open(io.BytesIO(fields()["query"][0][0]))
  (expected,) = ours.predict_proba([query])
  probabilities = [row["probability"] for row in found["classes"]]
  np.testing.assert_allclose(probabilities, expected, 1e-4)


CASES = [
  (dict(name=["red"], support1=None), 400, "at least two classes", {}),
  (dict(name=None), 400, "at least two classes", {}),
  (dict(name=["red", "  "]), 400, "class 2 has no name", {"class": 1}),
  (dict(name=["x", "x "]), 400, "two classes are called “x”", {"class": 1}),
  (dict(name=["r", "b" * 31]), 400, "31 characters; at most 30", {"class": 1}),
  (dict(name=list("abcde")), 413, "5 classes; at most 4", {}),
  (dict(support1=None), 400, "“blue” has no image", {"class": 1}),
  (
    dict(support0=[(png(RED), "a.png")] * 4),
    *(413, "4 images of “red”; at most 3", {"class": 0}),
  ),
  (
    dict(support7=[(png(RED), "a.png")]),
    *(400, "no class for the files “support7”", {}),
  ),
  (dict(query=None), 400, "add a query", {"query": True}),
  (
    dict(query=[(png(RED), "a.png")] * 2),
    *(400, "2 queries; give one", {"query": True}),
  ),
  (
    dict(support0=[(png(RED), "a.png"), (TEXT, "b.png")]),
    *(415, "“b.png” cannot be read: a drawing", {"class": 0, "image": 1}),
  ),
  (
    dict(query=[(b"", "no.png")]),
    *(415, "“no.png” cannot be read: an empty file", {"query": True}),
  ),
  (
    dict(query=[(png(RED)[:400], "cut.png")]),
    *(415, "“cut.png” cannot be read: ", {"query": True}),
  ),
  (
    dict(query=[(png(RED) + bytes(600_000), "long.png")]),
    *(413, "“long.png” has 0.6 MiB; at most 0.57", {"query": True}),
  ),
  (
    dict(query=[(bomb(400), "wide.png")]),
    *(413, "has 400 x 400 pixels; at most 0.09 million", {"query": True}),
  ),
  (
    dict(query=[(bomb(60_000), "bomb.png")]),
    *(
      413,
      "“bomb.png”: 60000 x 60000 pixels; at most 250 million",
      {"query": True},
    ),
  ),
  (
    dict(
      support0=[(png(RED, 0, (290, 290)), "a.png")] * 3,
      query=[(png(RED, 0, (290, 290)), "b.png")],
    ),
    *(413, "up to “b.png” have more than 0.26 million", {"query": True}),
  ),
  (
    dict(query=[(b"\0\0\0\x1cftypheic" + bytes(40), "a.heic")]),
    *(415, "“a.heic” cannot be read: HEIC", {"query": True}),
  ),
  (dict(variant=["voc"]), 400, "variant is 'voc'; use one of fcn", {}),
  (dict(solver=["voc"]), 400, "solver is 'voc'; use one of auto", {}),
  (
    dict(query=[(TEXT, "../../etc/pass\x1b[2J\u202ewd.png")]),
    *(415, "“../../etc/pass\ufffd\\[2J\ufffdwd.png” cannot", {"query": True}),
  ),
  (
    dict(support0=[(TEXT, f"/etc/{'a' * 99}")]),
    *(415, "“/etc/a+…” cannot be read", {"class": 0, "image": 0}),
  ),
]


@pytest.mark.parametrize(
  ("changes", "status", "message", "where"),
  CASES,
  ids=[case[2] for case in CASES],
)
def test_refused(port, changes, status, message, where):
  got, found = classify(port, fields(**changes))
  assert (got, found["where"]) == (status, where), found
  assert re.search(message, found["error"]) and "\n" not in found["error"]


def test_names_of_files_are_no_paths(port, tmp_path, monkeypatch):
  """Existing files are neither read nor written, and no file is kept.

  The test allows no temporary files.
  """
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
  victim = tmp_path / "victim.png"
  victim.write_bytes(b"precious")
  monkeypatch.chdir(tmp_path)
  # By default, Werkzeug would write files above 500 kB to the disk.
  padded = png(RED) + bytes(550_000)
  values = fields(
    support0=[(padded, str(victim))], query=[(padded, "../victim.png")]
  )
  status, found = classify(port, values)
  assert status == 200 and found["predicted"] == 0
  assert [p.name for p in tmp_path.iterdir()] == ["victim.png"]
  assert victim.read_bytes() == b"precious"


def test_too_much_at_once(port):
  values = fields(support0=[(bytes(590_000), "a.png")] * 3)
  status, found = classify(port, values)
  assert status == 413 and "more than 1.43051 MiB" in found["error"]
  body, headers = encode(values)
  chunks = (body[i : i + 9999] for i in range(0, len(body), 9999))
  status, _, content = ask(port, "POST", "/classify", chunks, headers)
  assert status == 413 and b"too large" in content
  values = fields(support0=[(b"", f"{i}.png") for i in range(10_000)])
  status, found = classify(port, values)
  assert status == 413 and "4 classes of 3 images" in found["error"]
  values = fields(support0=[(b"", f"{i}.png") for i in range(20)])
  status, found = classify(port, values)
  assert status == 413 and "4 classes of 3 images" in found["error"]


def test_no_form(port):
  for headers, body, status in (
    ({"Content-Type": "application/json"}, b"{}", 415),
    ({}, b"", 415),
    ({"Content-Type": "multipart/form-data"}, b"x", 400),
    ({"Content-Type": "multipart/form-data; boundary=a"}, b"--a\r\nb", 400),
  ):
    got, _, content = ask(port, "POST", "/classify", body, headers)
    assert got == status and json.loads(content)["error"], content
