"""What a test says of itself: the protocol, the file and the table."""

import copy
import json
import os
import pathlib
import platform

import jax
import numpy as np

from deepemd_jax.config import resolve
from deepemd_jax.distributed import sharding
from deepemd_jax.evaluation import figures


def protocol(config, workdir: pathlib.Path) -> dict:
  """What a reader needs to repeat or compare the numbers."""
  import flax
  import jaxlib

  from deepemd_jax import __version__

  return {
    "data": config.data.name,
    "protocol": {
      "trained on": _trained_on(config, workdir),
      "tested on": _described(resolve.source(config, split="test")),
    },
    "image": {"size": config.image.size, "crop": config.image.crop},
    "model": config.model.to_dict(),
    "nodes": nodes_fields(config),
    "episode": config.episode.to_dict(),
    "seed": config.seed,
    "versions": {
      "deepemd_jax": __version__,
      "python": platform.python_version(),
      "jax": jax.__version__,
      "jaxlib": jaxlib.__version__,
      "flax": flax.__version__,
      "numpy": np.__version__,
    },
    "device": sharding.describe_devices(),
  }


def _described(source) -> dict:
  return {"name": source.protocol, "title": source.title}


def _trained_on(config, workdir: pathlib.Path) -> dict:
  """The data that the workdir's encoders were trained on: they may be tested on
  others."""
  fields = json.loads((workdir / "config.json").read_text())
  if "data" not in fields:  # written by `convert`
    title = "a file of other people's, which does not say what it has seen"
    return {"name": "converted checkpoint", "title": title}
  found = copy.deepcopy(config)
  for part in ("data", "image"):
    before = fields[part]
    found[part].update({k: before[k] for k in found[part] if k in before})
  return _described(resolve.source(found))


def nodes_fields(config) -> dict:
  """What `config.nodes` says of test time."""
  used = {
    "fcn": ["pyramid"],
    "grid": ["grid", "ratio"],
    "sampling": ["patches", "redraw"],
  }
  spec = config.nodes
  found = {"kind": spec.kind} | {name: spec[name] for name in used[spec.kind]}
  if spec.kind == "sampling":
    found["patches"] = spec.test_patches or spec.patches
  return found


def save(config, workdir: pathlib.Path, results: dict) -> None:
  """Writes results.json, which is of the latest test, and the same into
  results/, where one test does not wipe out what another has found."""
  write(workdir / "results.json", results)
  write(workdir / "results" / f"{_tested(config, results)}.json", results)


def _tested(config, results: dict) -> str:
  """What was tested, as a file name: cub-160_5way_1shot_fcn."""
  shape = config.episode
  kind = [config.nodes.kind, *map(str, config.nodes.pyramid)]
  heads = [f"{len(config.evaluate.heads)}heads"] * bool(config.evaluate.heads)
  data = results["protocol"]["tested on"]["name"].replace(":", "-")
  parts = data, f"{shape.way}way", f"{shape.shot}shot", "-".join(kind), *heads
  return "_".join(parts)


def write(path: pathlib.Path, results: dict) -> None:
  """A JSON file, whole or not at all."""
  path.parent.mkdir(exist_ok=True)
  scratch = path.with_suffix(".tmp")
  scratch.write_text(json.dumps(results, indent=2) + "\n")
  os.replace(scratch, path)


def table(results: dict) -> str:
  """The results as text, for the terminal."""
  lines = [*_rows(results, results)]
  for measured in results["more"].values():
    lines += ["", *_rows(results, measured)]
  if results["variants"]:
    names = results["heads"]
    lines += ["", "clutter" + " " * 9 + "".join(f"{h:>26}" for h in names)]
    for variant, measured in results["variants"].items():
      cells = [
        f"{row['accuracy']:.1f} +- {row['ci95']:.1f}"
        for row in measured["heads"].values()
      ]
      lines.append(f"{variant:<16}" + "".join(f"{c:>26}" for c in cells))
  return "\n".join(lines)


def _rows(results: dict, measured: dict):
  """The lines of one set of episodes."""
  shape = measured["episode"]
  spec = ", ".join(f"{k} {v}" for k, v in measured["nodes"].items() if v)
  data, trained = (
    results["protocol"][which]["name"] for which in ("tested on", "trained on")
  )
  if trained != data:
    data = f"{trained} to {data}"
  yield (
    f"{data}: {shape['way']}-way {shape['shot']}-shot, "
    f"{shape['query']} queries a class, {measured['episodes']} test episodes, "
    f"seed {results['seed']}; nodes: {spec.removeprefix('kind ')}"
  )
  yield ""
  yield f"{'':<59}{'episodes/s':>12}{'with':>10}"
  yield f"{'head':<28}{'accuracy %':>16}{'encoder':>15}{'':>12}{'encoding':>10}"
  timing = measured["timing"]
  for head, row in measured["heads"].items():
    found = results["encoders"].get(head, results["encoders"]["deepemd"])
    accuracy = f"{row['accuracy']:.2f} +- {row['ci95']:.2f}"
    where = f"{found['stage']} {found['step']}"
    speed = timing["episodes_per_second"][head]
    whole = timing["episodes_per_second_with_encoding"][head]
    title = figures.results_title(head, shape["shot"])
    yield f"{title:<28}{accuracy:>16}{where:>15}{speed:>12}{whole:>10}"
  yield ""
  yield "paired differences on the same episodes"
  for pair, row in measured["paired"].items():
    yield f"{pair:<40}{row['mean']:+.2f} +- {row['ci95']:.2f}"
