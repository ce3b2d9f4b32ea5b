"""The stages of a run, which a config's `stages` may name.

A new stage is one file, in `training/` or `evaluation/`, with a function
`run(settings, workdir)`, and one line here. All processes of a run call it;
only the main one (`runtime.is_main`) writes. New fields of a config also need
lines in `defaults.py`, `validate.py`, `settings.py` and `resolve.py`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stage:
  """The properties of a stage that are known before it is loaded.

  Attributes:
    title: a line that says what it does, for help texts.
    path: "package.module:function", called with the settings and the workdir.
    trains: whether it trains an encoder. If not, it only tests one, and a
      workdir's data, nodes and episodes may differ from those of training.
    episodes: the splits that it draws episodes from; a run is refused if they
      hold too few classes or images for that.
    galleries: the splits that it searches; a run is refused if a search there
      has nothing to find, or nothing to mistake it for.
  """

  title: str
  path: str
  trains: bool = False
  episodes: tuple[str, ...] = ()
  galleries: tuple[str, ...] = ()

  @property
  def splits(self) -> set[str]:
    """The splits that the data must have."""
    return {*self.episodes, *self.galleries}


STAGES = {
  "pretrain": Stage(
    "trains the encoder to tell all training classes apart",
    "deepemd_jax.training.pretrain:run",
    trains=True,
    episodes=("val",),
  ),
  "metatrain": Stage(
    "trains the encoder on episodes, through the EMD",
    "deepemd_jax.training.metatrain:run",
    trains=True,
    episodes=("train", "val"),
  ),
  "evaluate": Stage(
    "tests the encoder on episodes of new classes",
    "deepemd_jax.evaluation.fewshot:run",
    episodes=("val", "test"),
  ),
  "retrieve": Stage(
    "finds images of the same class among all test images",
    "deepemd_jax.evaluation.retrieval:run",
    galleries=("val", "test"),
  ),
}
# These are in the order in which they train. Each keeps its encoder in
# WORKDIR/NAME.
TRAINING_STAGES = tuple(n for n, stage in STAGES.items() if stage.trains)
EVAL_STAGES = frozenset(n for n, stage in STAGES.items() if not stage.trains)
