"""What a test found, as typed values; its JSON and its table.

`results.json` is `FewShotResults.to_json()`; the table on the terminal is
`FewShotResults.table()`.
"""

import copy
import dataclasses
import json
import pathlib
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from deepemd_jax.checkpoints.pretrained import BestEncoder
from deepemd_jax.config.settings import Settings
from deepemd_jax.data.episodes import EpisodeShape
from deepemd_jax.evaluation import statistics
from deepemd_jax.evaluation.protocol import Protocol
from deepemd_jax.models import heads
from deepemd_jax.utils import files


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean with its 95% interval.

  Attributes:
    mean: of the values.
    ci95: half width of the interval.
  """

  mean: float
  ci95: float

  @classmethod
  def of(cls, values: np.ndarray) -> "Estimate":
    """Returns the estimate from independent values [n]."""
    return cls(float(np.mean(values)), statistics.ci95(values))


@dataclasses.dataclass(frozen=True)
class Timing:
  """What a test cost.

  Attributes:
    encoding_seconds: of all images, once for each stage's encoder.
    encoded_images: by all encoders.
    episodes_per_second: by head, without encoding.
    with_encoding: the same, with the head's share of the encoding.
  """

  encoding_seconds: float
  encoded_images: int
  episodes_per_second: dict[str, float]
  with_encoding: dict[str, float]

  def to_json(self) -> dict:
    """As in results.json."""
    return {
      "encoding_seconds": self.encoding_seconds,
      "encoded_images": self.encoded_images,
      "episodes_per_second": self.episodes_per_second,
      "episodes_per_second_with_encoding": self.with_encoding,
    }


@dataclasses.dataclass(frozen=True)
class EpisodeResults:
  """What the heads did on the same episodes.

  Attributes:
    accuracy: by head, percent.
    paired: "deepemd - other" -> the difference on the same episodes, points.
    episodes: how many.
    timing: what it cost.
    shape: of the episodes.
    nodes: what was matched, for the record.
  """

  accuracy: dict[str, Estimate]
  paired: dict[str, Estimate]
  episodes: int
  timing: Timing
  shape: EpisodeShape
  nodes: dict[str, Any]

  def to_json(self) -> dict:
    """As in results.json."""
    return {
      "heads": {
        name: {"accuracy": accuracy.mean, "ci95": accuracy.ci95}
        for name, accuracy in self.accuracy.items()
      },
      "paired": {
        name: dataclasses.asdict(difference)
        for name, difference in self.paired.items()
      },
      "episodes": self.episodes,
      "timing": self.timing.to_json(),
      "episode": dataclasses.asdict(self.shape),
      "nodes": self.nodes,
    }


@dataclasses.dataclass(frozen=True)
class FewShotResults:
  """What stage evaluate found.

  Attributes:
    main: on the test episodes.
    more: change -> the same with that change.
    variants: variant of the data set -> on that.
    encoders: "deepemd" and "prototype" -> the encoder of their heads.
    validation: the same -> its validation accuracies.
    protocol: of the test.
    seconds: what all of it took.
  """

  main: EpisodeResults
  more: dict[str, EpisodeResults]
  variants: dict[str, EpisodeResults]
  encoders: dict[str, BestEncoder]
  validation: dict[str, dict[str, float]]
  protocol: Protocol
  seconds: float

  def to_json(self) -> dict:
    """As in results.json."""
    results = self.main.to_json()
    results["timing"]["seconds"] = round(self.seconds, 1)
    results["more"] = {name: x.to_json() for name, x in self.more.items()}
    results["variants"] = {}
    for name, variant in self.variants.items():
      fields = variant.to_json()
      for other in ("timing", "episode", "nodes"):  # as of the main test
        del fields[other]
      results["variants"][name] = fields
    results["encoders"] = {
      name: {
        "stage": best.stage,
        "step": best.step,
        "sha256": best.fingerprint,
        "validation": self.validation[name],
      }
      for name, best in self.encoders.items()
    }
    return results | self.protocol.to_json()

  def encoder_of(self, head: str) -> BestEncoder:
    """The encoder that a head was tested with."""
    return self.encoders[encoder_name(head)]

  def table(self) -> str:
    """For the terminal."""
    lines = [*self._rows(self.main)]
    for results in self.more.values():
      lines += ["", *self._rows(results)]
    if self.variants:
      names = "".join(f"{head:>26}" for head in self.main.accuracy)
      lines += ["", "clutter" + " " * 9 + names]
      for variant, results in self.variants.items():
        cells = [
          f"{accuracy.mean:.1f} +- {accuracy.ci95:.1f}"
          for accuracy in results.accuracy.values()
        ]
        lines.append(f"{variant:<16}" + "".join(f"{c:>26}" for c in cells))
    return "\n".join(lines)

  def _rows(self, results: EpisodeResults):
    """The lines of one set of episodes."""
    shape, timing = results.shape, results.timing
    yield (
      f"{self.protocol.data_title()}: {shape.way}-way {shape.shot}-shot, "
      f"{shape.query} queries a class, {results.episodes} test episodes, "
      f"seed {self.protocol.seed}; nodes: {nodes_text(results.nodes)}"
    )
    yield ""
    titles = {name: heads.title(name, shape.shot) for name in results.accuracy}
    width = max(28, *(len(title) + 1 for title in titles.values()))
    yield f"{'':<{width + 31}}{'episodes/s':>12}{'with':>10}"
    yield (
      f"{'head':<{width}}{'accuracy %':>16}{'encoder':>15}{'':>12}"
      f"{'encoding':>10}"
    )
    for head, accuracy in results.accuracy.items():
      best = self.encoder_of(head)
      cell = f"{accuracy.mean:.2f} +- {accuracy.ci95:.2f}"
      where = f"{best.stage} {best.step}"
      speed, whole = (
        timing.episodes_per_second[head],
        timing.with_encoding[head],
      )
      title = titles[head]
      yield f"{title:<{width}}{cell:>16}{where:>15}{speed:>12}{whole:>10}"
    yield ""
    yield "paired differences on the same episodes"
    for pair, difference in results.paired.items():
      yield f"{pair:<40}{difference.mean:+.2f} +- {difference.ci95:.2f}"

  def save(self, workdir: pathlib.Path) -> None:
    """Writes results.json and a file in results/; see `save`."""
    save(workdir, "results.json", self.test_name(), self.to_json())

  def test_name(self) -> str:
    """What was tested, as a file name: cub-160_5way_1shot_fcn_seed0_1f2e3d4c.

    See `test_name`.
    """
    shape, kind = self.main.shape, self.main.nodes["kind"]
    tests = {"": self.main} | self.more | self.variants
    settings = {
      name: [x.nodes, dataclasses.asdict(x.shape), x.episodes, [*x.accuracy]]
      for name, x in tests.items()
    }
    words = f"{shape.way}way", f"{shape.shot}shot", kind
    return test_name(self.protocol, words, self.encoders, settings)


def encoder_name(head: str) -> str:
  """Which encoder a head is tested with: "deepemd" or "prototype"."""
  return "prototype" if heads.HEADS[head].is_pooled else "deepemd"


def nodes_fields(settings: Settings) -> dict[str, Any]:
  """What is matched at test time, for the record."""
  view = settings.view
  fields = {
    "fcn": {"pyramid": list(settings.pyramid)}
    | ({"cells": view.cells} if view.cells else {}),
    "grid": {"grid": list(view.grid), "ratio": view.ratio},
    "sampling": {"patches": view.test_patches, "redraw": view.redraw},
  }
  return {"kind": view.kind} | copy.deepcopy(fields[view.kind])


def nodes_text(fields: dict[str, Any]) -> str:
  """The same for people: "grid, grid (2, 3), ratio 2.0"."""
  shown = [fields["kind"]]
  for name, value in fields.items():
    if value and name != "kind":
      value = tuple(value) if isinstance(value, list) else value
      shown.append(f"{name} {value}")
  return ", ".join(shown)


def test_name(
  protocol: Protocol,
  words: Iterable[str],
  encoders: dict[str, BestEncoder],
  settings: dict[str, Any],
) -> str:
  """A file name that no other test has: data set, `words`, seed and a number.

  The number tells apart what the words do not say: solver, temperature, number
  of episodes, the weights, and whatever else changes what a test finds.

  Args:
    protocol: of the test.
    words: what people look for in the name.
    encoders: of the test.
    settings: what else it was made with, as JSON has it.
  """
  seen = [
    dataclasses.asdict(protocol),
    {name: best.fingerprint for name, best in encoders.items()},
    settings,
  ]
  number = zlib.crc32(json.dumps(seen, sort_keys=True).encode())
  data = protocol.tested_on["name"].replace(":", "-")
  return "_".join((data, *words, f"seed{protocol.seed}", f"{number:08x}"))


def save(workdir: pathlib.Path, latest: str, name: str, document: dict) -> None:
  """Writes the latest test of its kind, and the same into results/, where one
  test does not wipe out what another has found.

  Args:
    workdir: of the run.
    latest: the name of the file that the next test replaces.
    name: as `test_name`.
    document: the JSON.
  """
  _write_json(workdir / latest, document)
  _write_json(workdir / "results" / f"{name}.json", document)


def _write_json(path: pathlib.Path, document: dict) -> None:
  """A JSON file, whole or not at all."""
  path.parent.mkdir(exist_ok=True)
  files.write(path, json.dumps(document, indent=2) + "\n")
