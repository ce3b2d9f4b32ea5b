"""The table of rules for the values of a config, and their check.

Nothing heavy is loaded, so that a mistake in a field is answered at once.
"""

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

from deepemd_jax.config.stages import STAGES
from deepemd_jax.data import registry as data_registry
from deepemd_jax.data.registry import NODE_KINDS
from deepemd_jax.emd.solvers import GRADIENTS, SOLVERS
from deepemd_jax.errors import InputError
from deepemd_jax.models.backbone import BACKBONES, PRECISIONS


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule for a value.

  Attributes:
    holds: a function that tells whether a value obeys the rule.
    remedy: what to do if it does not.
    each: whether the rule is for each element of a sequence.
  """

  holds: Callable[[Any], bool]
  remedy: str
  each: bool = False


def at_least(least: float) -> Rule:
  """Makes the rule: a number >= `least`."""
  return Rule(lambda value: value >= least, f"must be at least {least}")


def zero_or_at_least(least: int, meaning: str) -> Rule:
  """Makes the rule: a number >= `least`, or 0, which has another meaning."""
  return Rule(
    lambda value: value == 0 or value >= least,
    f"must be at least {least}, or 0 for {meaning}",
  )


def one_of(names, each: bool = False) -> Rule:
  """Makes the rule: one of some names, or with `each` a sequence of them.

  Names that are added to a registry later are legal, too.
  """
  return Rule(
    lambda value: value in names, f"use one of {', '.join(names)}", each
  )


def counts(least: int) -> Rule:
  """Makes the rule: at least `least` whole numbers >= 1."""
  return Rule(
    lambda values: len(values) >= least and all(x >= 1 for x in values),
    "use whole numbers of at least 1",
  )


def increasing(most: float = math.inf) -> Rule:
  """Makes the rule: (low, high), both above 0 and at most `most`."""
  bound = "" if most == math.inf else f" and at most {most:g}"
  return Rule(
    lambda x: len(x) == 2 and 0 < x[0] <= x[1] <= most,
    f"use (low, high), both above 0{bound}",
  )


def levels(values) -> bool:
  """Tells whether there are three gray levels, or none."""
  return len(values) in (0, 3)


# In float32, smaller numbers become 0, and squares of larger ones overflow.
ABOVE_0 = Rule(
  lambda value: 1e-12 <= value <= 1e12, "must be above 0 (1e-12 to 1e12)"
)
BACKBONES_OWN = "the backbone's own"

# Field -> its rules. Functions below have the rules for several fields and for
# the name of the data set. The content of a folder is checked when it is
# opened. A field without a rule may have any value of its type.
RULES: dict[str, tuple[Rule, ...]] = {
  "seed": (Rule(lambda value: value >= 0, "use an integer >= 0"),),
  "stages": (
    Rule(bool, f"name at least one of {', '.join(STAGES)}"),
    one_of(STAGES, each=True),
  ),
  "data.workers": (at_least(0),),
  "image.size": (zero_or_at_least(16, BACKBONES_OWN),),
  "image.pretrain_size": (zero_or_at_least(16, "config.image.size"),),
  "image.crop": (one_of(("center", "whole")),),
  "image.mean": (
    Rule(levels, f"use 3 numbers, or () for {BACKBONES_OWN}"),
    Rule(
      lambda values: all(abs(x) <= 1e3 for x in values),
      "use gray levels, 0 to 255",
    ),
  ),
  "image.std": (
    Rule(levels, f"use 3 numbers, or () for {BACKBONES_OWN}"),
    Rule(
      lambda values: all(1e-3 <= x <= 1e3 for x in values),
      "must be above 0 (0.001 to 1000)",
    ),
  ),
  "image.crop_scale": (increasing(1.0),),
  "image.crop_ratio": (increasing(),),
  "model.backbone": (one_of(BACKBONES),),
  "model.projection": (at_least(0),),
  "model.width": (ABOVE_0,),
  "model.pools": (Rule(lambda value: 1 <= value <= 4, "use 1 to 4"),),
  "model.precision": (one_of(PRECISIONS),),
  "nodes.kind": (one_of(NODE_KINDS),),
  "nodes.cells": (at_least(0),),
  "nodes.pyramid": (counts(0),),
  "nodes.grid": (counts(1),),
  "nodes.ratio": (ABOVE_0,),
  "nodes.train_ratio": (increasing(),),
  "nodes.patches": (at_least(1),),
  "nodes.test_patches": (at_least(0),),
  "emd.solver": (one_of(SOLVERS),),
  "emd.gradient": (one_of(GRADIENTS),),
  "emd.form": (one_of(("L2", "QP")),),
  "emd.l2_strength": (ABOVE_0,),
  "emd.epsilon": (ABOVE_0,),
  "emd.temperature": (ABOVE_0,),
  "sfc.epochs": (at_least(0),),
  "sfc.lr": (ABOVE_0,),
  "sfc.batch_size": (at_least(1),),
  "sfc.gradient": (one_of(GRADIENTS),),
  "episode.way": (at_least(2),),
  "episode.shot": (at_least(1),),
  "episode.query": (at_least(1),),
  "pretrain.label_smoothing": (
    Rule(lambda value: 0 <= value < 1, "use a share, at least 0 and below 1"),
  ),
  "metatrain.way": (zero_or_at_least(2, "config.episode.way"),),
  "metatrain.shot": (zero_or_at_least(1, "config.episode.shot"),),
  "metatrain.query": (zero_or_at_least(1, "config.episode.query"),),
  "metatrain.steps": (at_least(1),),
  "metatrain.batch_norm": (one_of(("batch", "fixed")),),
  "evaluate.episodes": (at_least(2),),
  "evaluate.batch_size": (at_least(1),),
  "evaluate.encode_batch_size": (at_least(1),),
  "evaluate.variant_episodes": (at_least(2),),
  "evaluate.more_episodes": (at_least(2),),
  "evaluate.pictures": (at_least(0),),
  "evaluate.epsilon": (ABOVE_0,),
  "evaluate.memory": (at_least(0),),
  "evaluate.heads": (
    Rule(lambda x: not x or "deepemd" in x, "include deepemd"),
  ),
  "retrieve.split": (one_of(("val", "test")),),
  "retrieve.depths": (counts(1),),
  "retrieve.recalls": (counts(1),),
  "retrieve.batch_size": (at_least(1),),
  "retrieve.search_batch_size": (at_least(1),),
  "retrieve.block": (at_least(1),),
  "retrieve.queries": (at_least(0),),
  "retrieve.pictures": (at_least(0),),
}
# Both training stages have these fields.
RULES |= {
  f"{stage}.{field}": rules
  for stage in ("pretrain", "metatrain")
  for field, rules in {
    "optimizer": (one_of(("sgd", "adamw")),),
    "schedule": (one_of(("step", "cosine")),),
    "lr": (ABOVE_0,),
    "weight_decay": (at_least(0),),
    "epochs": (at_least(1),),
    "batch_size": (at_least(1),),
    "validate_every": (at_least(1),),
    "validation_episodes": (at_least(1),),
    "decay_every": (at_least(1),),
    "decay_rate": (ABOVE_0,),
  }.items()
}


def validate(config) -> None:
  """Raises an error if a config cannot run. It reads no data, and imports JAX
  only if heads are named.

  Args:
    config: a ConfigDict like that of `defaults.get_config`.

  Raises:
    InputError: fields are illegal, or do not fit together. The message names
      all problems in one line.
  """
  problems = broken_rules(config)
  problems += _data_problems(config)
  problems += _combinations(config)
  problems += _test_problems(config)
  if problems:
    raise InputError("; ".join(dict.fromkeys(problems)))


def broken_rules(config, sections: Collection[str] | None = None) -> list[str]:
  """Returns the problems with the values of single fields, one clause each.

  Args:
    config: a ConfigDict.
    sections: the first parts of the names of the fields to check; None is all.
  """
  return [
    problem
    for field, rules in RULES.items()
    if sections is None or field.split(".")[0] in sections
    for problem in _broken(config, field, rules)
  ]


def _value(config, field: str):
  for part in field.split("."):
    config = config[part]
  return config


def _problem(config, field: str, remedy: str) -> str:
  return f"config.{field} is {_value(config, field)!r}; {remedy}"


def _broken(config, field: str, rules) -> list[str]:
  value = _value(config, field)
  return [
    _problem(config, field, rule.remedy)
    for rule in rules
    if not all(map(rule.holds, value if rule.each else [value]))
  ]


def _data_problems(config) -> list[str]:
  problems = []
  for field in ("name", "test_name"):
    name = config.data[field]
    if field == "test_name" and not name:
      continue
    try:
      data_registry.check_name(name, config.image.size)
    except InputError as error:
      problems.append(f"config.data.{field}: {error}")
    if name.partition(":")[0] == "folder" and not config.data.folder:
      remedy = "name your image folder"
      problems.append(_problem(config, "data.folder", remedy))
  return problems


def _combinations(config) -> list[str]:
  """Returns the problems with fields that do not fit each other."""
  problems = []
  for name in ("pretrain", "metatrain"):
    stage = config[name]
    if not 0 <= stage.warmup_epochs < max(stage.epochs, 1):
      remedy = "must be >= 0 and below epochs"
      problems.append(_problem(config, f"{name}.warmup_epochs", remedy))
  entry = BACKBONES.get(config.model.backbone)
  takes = entry is not None and "weights" in entry.settings
  if bool(config.model.weights) != takes:
    remedy = "give the folder of the vit" if takes else "only vit has a folder"
    problems.append(_problem(config, "model.weights", remedy))
  sampling = config.nodes.kind == "sampling"
  if "retrieve" in config.stages and sampling and config.nodes.redraw:
    remedy = "retrieve encodes each image once; use False"
    problems.append(_problem(config, "nodes.redraw", remedy))
  return problems


def _test_problems(config) -> list[str]:
  """Returns the problems with the heads and with the changes of the test."""
  from deepemd_jax.config.changes import SHOTS

  more = one_of((*NODE_KINDS, "5-shot (or another number)"), each=True)
  changes = [x for x in config.evaluate.more if not SHOTS.fullmatch(x)]
  problems = []
  if not all(map(more.holds, changes)):
    problems.append(_problem(config, "evaluate.more", more.remedy))
  if config.evaluate.heads:
    from deepemd_jax.models.heads import HEADS  # loads JAX

    problems += _broken(config, "evaluate.heads", [one_of(HEADS, each=True)])
  return problems
