"""Inputs that several tests rebuild from their seeds."""

import json
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"


def recipe_state_dict():
  """The state dict that the recording used, rebuilt from its seed."""
  recorded = json.loads((GOLDEN / "resnet12_state_dict.json").read_text())
  rng = np.random.default_rng(0)
  state = {}
  for key, shape in sorted(recorded["resnet_state_dict"].items()):
    if key.endswith("num_batches_tracked"):
      value = np.zeros(shape)
    elif len(shape) == 4:
      fan = np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
      value = rng.standard_normal(shape) * fan
    elif key.endswith("running_mean"):
      value = 0.1 * rng.standard_normal(shape)
    elif key.endswith("running_var"):
      value = 0.5 + rng.random(shape)
    elif key.endswith("weight"):
      value = 0.8 + 0.4 * rng.random(shape)
    else:
      value = 0.1 * rng.standard_normal(shape)
    state[key] = value.astype(np.float32)
    total, first = recorded["recipe_sum_and_first_value"][key]
    np.testing.assert_allclose(state[key].sum(dtype=np.float64), total, 1e-6)
    np.testing.assert_allclose(np.ravel(state[key])[0], first, 1e-6)
  return state
