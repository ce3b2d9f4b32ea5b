"""What a reader needs to repeat the numbers of a test, or to compare them."""

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
  """What a reader needs to repeat the numbers, or to compare them.

  Attributes:
    data: name of the data set in the config.
    trained_on: "name" and "title" of the data that the encoders have seen, and
      the "seed" of their training.
    tested_on: "name" and "title" of those that they were tested on.
    image: how images are looked at: "size" and "crop" of whole ones, "mean" and
      "std"; and what the random crops of the nodes "sampling" are drawn from.
    model: what the backbone was made from.
    emd: solver, its settings, and the temperature; "sinkhorn_epsilon" is of the
      head deepemd_sinkhorn.
    sfc: how the structured FC layer is trained.
    seed: of all draws of the test.
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
    """Of a run in a workdir whose encoders may have seen other data."""
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
    """As in results.json, with the versions and devices of this process."""
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
    """The data set, or "trained on to tested on"."""
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
  """The name of a solver; for "auto", of what it stands for here."""
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
  """The data that the workdir's encoders were trained on."""
  fields = stored.read_fields(workdir / "config.json")
  if "data" not in fields:  # written by `convert`
    title = "a file of other people's, which does not say what it has seen"
    return {"name": "converted checkpoint", "title": title}
  data = resolve.stored_data(settings.data, fields)
  seed = {"seed": fields["seed"]} if "seed" in fields else {}
  return _described(open_source(data)) | seed
