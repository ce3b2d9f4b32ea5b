"""The results of a test as typed values, as JSON and as a table.

`FewShotResults.to_json()` gives the content of `results.json`, and
`FewShotResults.table()` gives the table on the terminal.
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
    mean: the mean of the values.
    ci95: the half width of the interval.
  """

  mean: float
  ci95: float

  @classmethod
  def of(cls, values: np.ndarray) -> "Estimate":
    """Returns the estimate from independent values [n]."""
    return cls(float(np.mean(values)), statistics.ci95(values))


@dataclasses.dataclass(frozen=True)
class Timing:
  """The time that a test took.

  Attributes:
    encoding_seconds: the time to encode all images with each stage's encoder.
    encoded_images: number of images that all encoders encoded.
    episodes_per_second: {head: episodes per second, without encoding}.
    with_encoding: {head: episodes per second, with its share of the encoding}.
  """

  encoding_seconds: float
  encoded_images: int
  episodes_per_second: dict[str, float]
  with_encoding: dict[str, float]

  def to_json(self) -> dict:
    """Returns the fields in results.json."""
    return {
      "encoding_seconds": self.encoding_seconds,
      "encoded_images": self.encoded_images,
      "episodes_per_second": self.episodes_per_second,
      "episodes_per_second_with_encoding": self.with_encoding,
    }


@dataclasses.dataclass(frozen=True)
class EpisodeResults:
  """The results of all heads on the same episodes.

  Attributes:
    accuracy: {head: accuracy in percent}.
    paired: {"deepemd - other": difference on the same episodes, in percentage
      points}.
    episodes: number of episodes.
    timing: the time that the test took.
    shape: the size of the episodes.
    nodes: the settings of the matched nodes.
  """

  accuracy: dict[str, Estimate]
  paired: dict[str, Estimate]
  episodes: int
  timing: Timing
  shape: EpisodeShape
  nodes: dict[str, Any]

  def to_json(self) -> dict:
    """Returns the fields in results.json."""
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
  """The results of the stage evaluate.

  Attributes:
    main: the results on the test episodes.
    more: {change of the settings: results with that change}.
    variants: {variant of the data set: results on that variant}.
    encoders: {"deepemd" and "prototype": the encoder of these heads}.
    validation: {"deepemd" and "prototype": the encoder's validation
      accuracies}.
    protocol: the conditions of the test.
    seconds: the time of the whole stage.
  """

  main: EpisodeResults
  more: dict[str, EpisodeResults]
  variants: dict[str, EpisodeResults]
  encoders: dict[str, BestEncoder]
  validation: dict[str, dict[str, float]]
  protocol: Protocol
  seconds: float

  def to_json(self) -> dict:
    """Returns the content of results.json."""
    results = self.main.to_json()
    results["timing"]["seconds"] = round(self.seconds, 1)
    results["more"] = {name: x.to_json() for name, x in self.more.items()}
    results["variants"] = {}
    for name, variant in self.variants.items():
      fields = variant.to_json()
      for other in ("timing", "episode", "nodes"):  # as in the main test
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
    """Returns the encoder that a head was tested with."""
    return self.encoders[encoder_name(head)]

  def table(self) -> str:
    """Returns the table for the terminal."""
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
    """Yields the lines about one set of episodes."""
    shape, timing = results.shape, results.timing
    yield (
      f"{self.protocol.data_title()}: {shape.way}-way {shape.shot}-shot, "
      f"{shape.query} queries per class, {results.episodes} test episodes, "
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
    """Writes results.json and a file in results/; see the function `save`."""
    save(workdir, "results.json", self.test_name(), self.to_json())

  def test_name(self) -> str:
    """Returns the test's file name, like cub-160_5way_1shot_fcn_seed0_1f2e3d4c.

    See the function `test_name`.
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
  """Returns the key of a head's encoder, "deepemd" or "prototype"."""
  return "prototype" if heads.HEADS[head].is_pooled else "deepemd"


def nodes_fields(settings: Settings) -> dict[str, Any]:
  """Returns the settings of the nodes at test time, for the results."""
  view = settings.view
  fields = {
    "fcn": {"pyramid": list(settings.pyramid)}
    | ({"cells": view.cells} if view.cells else {}),
    "grid": {"grid": list(view.grid), "ratio": view.ratio},
    "sampling": {"patches": view.test_patches, "redraw": view.redraw},
  }
  return {"kind": view.kind} | copy.deepcopy(fields[view.kind])


def nodes_text(fields: dict[str, Any]) -> str:
  """Returns `nodes_fields` as text, such as "grid, grid (2, 3), ratio 2.0"."""
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
  """Returns a unique file name: data set, `words`, seed and a number.

  The number is a checksum of everything that affects the results, such as the
  solver, the temperature, the number of episodes and the weights.

  Args:
    protocol: the conditions of the test.
    words: the parts of the name that people look for.
    encoders: the encoders of the test.
    settings: the other settings of the test, as JSON values.
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
  """Writes the results of a test to two files.

  The next test replaces the file `latest`. The file in results/ stays.

  Args:
    workdir: the run's folder.
    latest: the name of the file with the latest results.
    name: the name of the test, from `test_name`.
    document: the JSON values.
  """
  _write_json(workdir / latest, document)
  _write_json(workdir / "results" / f"{name}.json", document)


def _write_json(path: pathlib.Path, document: dict) -> None:
  """Writes a JSON file, completely or not at all."""
  path.parent.mkdir(exist_ok=True)
  files.write(path, json.dumps(document, indent=2) + "\n")
