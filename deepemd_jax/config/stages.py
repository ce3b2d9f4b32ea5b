"""The stages by name (to be replaced at the merge)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stage:
  title: str
  path: str
  trains: bool


STAGES = {
  "pretrain": Stage("", "deepemd_jax.training.pretrain:run", True),
  "metatrain": Stage("", "deepemd_jax.training.metatrain:run", True),
  "evaluate": Stage("", "deepemd_jax.evaluation.fewshot:run", False),
  "retrieve": Stage("", "deepemd_jax.evaluation.retrieval:run", False),
}
