"""A few steps of both training stages and an evaluation, into an .npz: run with
any number of devices and processes, the numbers must be the same.

    python tests/sharded.py OUT IMAGES DATA [COORDINATOR COUNT INDEX]
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import folder
from deepemd_jax.config import resolve
from deepemd_jax.data import batches
from deepemd_jax.distributed import runtime, sharding
from deepemd_jax.evaluation import fewshot
from deepemd_jax.training import loop as train
from deepemd_jax.training import metatrain, pretrain

STEPS = 3


def config_for(images, data):
  """Small; its learning rates are low, so that rounding stays rounding."""
  config = folder.get_config()
  config.data.folder, config.data.directory = images, data
  config.data.fractions = (0.4, 0.3, 0.3)
  config.image.size = 32
  # Which "auto" is on several CPU devices, but not on one.
  config.emd.solver = "interior_point"
  config.model.width = 0.0625
  config.episode.update({"way": 2, "query": 3})
  config.pretrain.update({"batch_size": 16, "lr": 0.01})
  # Seven do not divide by any number of devices here. In float32 the interior
  # point method's gradient is exact to three digits, and the last digit of what
  # it is given shows in the fourth. At the published rate, 5e-4, jax 0.12 with
  # the tests' fast compiler made 2.5e-5 in three steps of 1.8e-6 in the first.
  config.metatrain.update({"batch_size": 7, "lr": 2e-4})
  config.evaluate.update({"batch_size": 3, "encode_batch_size": 10})
  return config


def steps_of(stage, config, batch, state, optimizer):
  """Losses [STEPS], gradients of the first step, and all variables after."""
  step = train.make_step(stage._loss_function(config), optimizer)
  state = sharding.replicate(state)
  found: dict = {"losses": []}
  for i in range(STEPS):
    state, measured = step(state, sharding.shard_batch(batch(i)))
    found["losses"].append(float(measured["loss"]))
    if i == 0:
      found["gradients"] = flat(state.opt_state[0])
  for kind, tree in train.variables_of(state).items():
    found[kind] = flat(tree)
  return found


def flat(tree):
  """All its leaves, one after the other."""
  leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)]
  return np.concatenate(leaves)


def recording(optimizer):
  """An optimizer that keeps the last gradients in its state, first."""
  kept = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradients, before, params=None: (gradients, gradients),
  )
  return optax.chain(kept, optimizer)


def main(out, images, data):
  """Writes all that was found."""
  config = config_for(images, data)
  source = resolve.source(config)
  images, test = source.load("train"), source.load("test")
  order = batches.ShuffledBatches(len(images.labels), 16, config.seed)
  optimizer = recording(
    resolve.optimizer(config.pretrain, order.steps_per_epoch)
  )
  variables = pretrain.init(config)
  classifier = pretrain._init_classifier(
    config, variables, len(images.class_names)
  )
  found = {
    "pretrain": steps_of(
      *(pretrain, config, pretrain._batches(config, images, order)),
      train.new_state(variables, optimizer, {"classifier": classifier}),
      optimizer,
    )
  }
  optimizer = recording(resolve.optimizer(config.metatrain, 10))
  solvers = ["interior_point"]
  if jax.local_device_count() == 1:
    solvers += ["network_simplex"]
  for solver in solvers:
    other = config.copy_and_resolve_references()
    other.emd.solver = solver
    found[f"metatrain, {solver}"] = steps_of(
      *(metatrain, other, metatrain._batches(other, images)),
      *(train.new_state(variables, optimizer), optimizer),
    )
  variables = sharding.replicate(variables)
  variants = [
    ("fcn", {}),
    ("file", {"evaluate.memory": 0.0, "evaluate.heads": ("prototype",)}),
    (
      "redrawn",
      {
        "nodes.kind": "sampling",
        "nodes.redraw": True,
        "evaluate.heads": ("prototype", "chamfer"),
      },
    ),
    (
      "four",
      {
        "episode.shot": 4,
        "episode.query": 2,
        "sfc.epochs": 3,
        "evaluate.heads": ("deepemd",),
      },
    ),
  ]
  if jax.local_device_count() == 1:
    variants += [("simplex", {"emd.solver": "network_simplex"})]
  for name, change in variants:
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(change)
    draw = fewshot.sampler(other, test, "test")
    encoded = fewshot.encoder(other)(variables, test)
    scored = {
      head: fewshot.accuracies(
        fewshot.scorer(other, function), encoded, draw, 11, 3
      )
      for head, function in fewshot.heads(other).items()
    }
    if name == "fcn":
      scored["nodes"] = np.asarray(encoded)
    found[name] = scored
  rows = {f"{a}.{b}": x for a, row in found.items() for b, x in row.items()}
  if runtime.is_main():
    np.savez(out, devices=jax.device_count(), **rows)


if __name__ == "__main__":
  paths, connection = sys.argv[1:4], sys.argv[4:]
  if connection:
    runtime.initialize(connection[0], *map(int, connection[1:]))
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
  main(*paths)
  if runtime.is_distributed():
    runtime.shutdown(0)
