"""The record of a test's conditions, for repeating or comparing its numbers."""

import dataclasses
import pathlib
import platform
from typing import Any

import jax
import numpy as np

from deepemd_jax.config import resolve, stored
from deepemd_jax.config.settings import Settings
from deepemd_jax.data.sources import open_source
from deepemd_jax.data.views import View
from deepemd_jax.distributed import sharding
from deepemd_jax.emd.api import default_solver
from deepemd_jax.emd.solvers import SOLVERS
from deepemd_jax.utils.version import VERSION


@dataclasses.dataclass(frozen=True)
class Protocol:
  """The conditions of a test.

  Attributes:
    data: the name of the data set in the config.
    trained_on: "name" and "title" of the training data of the encoders, and the
      "seed" of the training.
    tested_on: "name" and "title" of the test data.
    image: the view: "size", "crop" of whole images, "mean" and "std"; and the
      ranges of the random crops ("scale", "aspect", "flip").
    model: the settings of the backbone.
    emd: the solver, its settings, and the temperature; "sinkhorn_epsilon"
      belongs to the head deepemd_sinkhorn.
    sfc: the settings of the training of the structured FC layer.
    seed: seed of all random draws of the test.
  """

  data: str
  trained_on: dict[str, Any]
  tested_on: dict[str, str]
  image: dict[str, Any]
  model: dict[str, Any]
  emd: dict[str, Any]
  sfc: dict[str, Any]
  seed: int

  @classmethod
  def of(cls, settings: Settings, workdir: pathlib.Path) -> "Protocol":
    """Returns the protocol of a run; its encoders may have seen other data."""
    return cls(
      data=settings.data.name,
      trained_on=_trained_on(settings, workdir),
      tested_on=_described(open_source(settings.data, split="test")),
      image=_image(settings.view),
      model=settings.model,
      emd={
        "solver": _solver(settings.solver_name),
        **settings.solver_settings,
        "temperature": settings.heads.temperature,
        "sinkhorn_epsilon": settings.heads.sinkhorn.epsilon,
      },
      sfc=dataclasses.asdict(settings.heads.sfc),
      seed=settings.seed,
    )

  def to_json(self) -> dict:
    """Returns the fields in results.json, with current versions and devices."""
    return {
      "data": self.data,
      "protocol": {
        "trained on": self.trained_on,
        "tested on": self.tested_on,
      },
      "image": self.image,
      "model": self.model,
      "emd": self.emd,
      "sfc": self.sfc,
      "seed": self.seed,
      "versions": _versions(),
      "device": sharding.describe_devices(),
    }

  def data_title(self) -> str:
    """Returns the name of the data set, or "TRAINED_ON to TESTED_ON"."""
    trained, tested = self.trained_on["name"], self.tested_on["name"]
    return tested if trained == tested else f"{trained} to {tested}"


def _versions() -> dict[str, str]:
  import flax
  import jaxlib

  return {
    "deepemd_jax": VERSION,
    "python": platform.python_version(),
    "jax": jax.__version__,
    "jaxlib": jaxlib.__version__,
    "flax": flax.__version__,
    "numpy": np.__version__,
  }


def _solver(name: str) -> str:
  """Returns the name of a solver; "auto" gives that of this platform."""
  if SOLVERS[name].path:
    return name
  path = f":{type(default_solver()).__name__}"
  return next(x for x, entry in SOLVERS.items() if entry.path.endswith(path))


def _image(view: View) -> dict[str, Any]:
  names = ("mean", "std", "scale", "aspect", "flip")
  values = {name: getattr(view, name) for name in names}
  return {"size": view.size, "crop": view.whole_crop} | values


def _described(source) -> dict[str, str]:
  return {"name": source.protocol, "title": source.title}


def _trained_on(settings: Settings, workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the training data of the encoders in a workdir."""
  fields = stored.read_fields(workdir / "config.json")
  if "data" not in fields:  # written by `convert`
    title = "a file from other code, which does not name its training data"
    return {"name": "converted checkpoint", "title": title}
  data = resolve.stored_data(settings.data, fields)
  seed = {"seed": fields["seed"]} if "seed" in fields else {}
  return _described(open_source(data)) | seed
