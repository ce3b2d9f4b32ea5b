"""Solves problems with the native code of an installed wheel.

    python solve_natively.py

Run it in an environment in which a wheel has just been installed. It does not
need pytest. It fails if the wheel was built without the native code.
"""

import pathlib

import jax
import numpy as np

import deepemd_jax
from deepemd_jax import emd

solver = emd.NetworkSimplex(native=True)
cost = np.array([[0.0, 1.0], [1.0, 0.5]], np.float32)
mass = np.array([0.5, 0.5], np.float32)
value, flow = jax.value_and_grad(emd.distance)(cost, mass, mass, solver)
np.testing.assert_allclose(value, 0.25, rtol=1e-6)
np.testing.assert_allclose(flow, [[0.5, 0], [0, 0.5]], rtol=1e-6)
distances = emd.pairwise([cost, cost[:1]], solver=solver)
np.testing.assert_allclose(distances[0, 1], np.sqrt(0.625), rtol=1e-6)
print("solved natively in", pathlib.Path(deepemd_jax.__file__).parent)
