"""The stages of a run: what a config's `stages` may name.

A new stage is one file with a `run(settings, workdir)` and one line here.
Fields of its own also need `defaults.py`, `validate.py`, `settings.py` and
`resolve.py`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stage:
  """What the command line knows of a stage before it loads it.

  Attributes:
    title: what it does, for people.
    path: "package.module:function", called with the settings and the workdir.
    trains: whether it makes an encoder; if not, it only looks at one, and a
      workdir's data, nodes and episodes may differ from those of training.
    splits: of the data set, those that it draws episodes from or searches; a
      run is refused if they hold too few classes or images for that.
  """

  title: str
  path: str
  trains: bool
  splits: tuple[str, ...]


STAGES = {
  "pretrain": Stage(
    "trains the encoder to tell all training classes apart",
    "deepemd_jax.training.pretrain:run",
    trains=True,
    splits=("val",),
  ),
  "metatrain": Stage(
    "trains the encoder on episodes, through the EMD",
    "deepemd_jax.training.metatrain:run",
    trains=True,
    splits=("train", "val"),
  ),
  "evaluate": Stage(
    "tests the encoder on episodes of new classes",
    "deepemd_jax.evaluation.fewshot:run",
    trains=False,
    splits=("val", "test"),
  ),
  "retrieve": Stage(
    "finds images of the same class among all test images",
    "deepemd_jax.evaluation.retrieval:run",
    trains=False,
    splits=("val", "test"),
  ),
}
# In the order in which they train; each keeps its encoder in WORKDIR/NAME.
TRAINING_STAGES = tuple(n for n, stage in STAGES.items() if stage.trains)
EVAL_STAGES = frozenset(n for n, stage in STAGES.items() if not stage.trains)
