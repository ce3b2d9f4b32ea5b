"""The exact EMDs of other libraries, called as without this library.

POT and OpenCV are called here in Python loops. The package `wasserstein` needs
NumPy 1 and JAX needs NumPy 2, so the package has its own interpreter:

    python -m venv peers
    peers/bin/pip install wasserstein
    python -m benchmarks.emd_solvers --wasserstein peers/bin/python

(Flamary et al., JMLR 2021; Komiske, Metodiev, Thaler, PRL 2019, whose code is
https://github.com/thaler-lab/Wasserstein.)
"""

import importlib.util
import os
import pathlib
import subprocess
import tempfile

import numpy as np
from ot.lp.emd_wrap import emd_c

_HERE = pathlib.Path(__file__).parent


def loop_over_pot(cost, a, b):
  """Returns the values [count] of POT in float64."""
  values = []
  for c, p, q in zip(
    *(x.astype(np.float64) for x in (cost, a, b)), strict=True
  ):
    flow = emd_c(p, q * (p.sum() / q.sum()), c, 1_000_000, 1)[0]
    values.append((flow * c).sum())
  return np.array(values)


def loop_over_opencv(cost, a, b):
  """Returns the values [count] of OpenCV, which the official code uses."""
  import cv2

  values = []
  for c, p, q in zip(cost, a, b, strict=True):
    flow = cv2.EMD(p[:, None], q[:, None], cv2.DIST_USER, c)[2]
    values.append((flow.astype(np.float64) * c).sum())
  return np.array(values)


def has_opencv() -> bool:
  """Returns whether OpenCV is installed."""
  return importlib.util.find_spec("cv2") is not None


class Wasserstein:
  """The package `wasserstein`, in a process that waits for its turns.

  Attributes:
    seconds: the time of the last turn in that process, without the time to
      transfer the problems.
  """

  def __init__(self, python: str, task: str, **arrays: np.ndarray) -> None:
    """Starts the process and transfers the problems.

    Args:
      python: an interpreter that has the package.
      task: the name of a function in `wasserstein_worker`.
      **arrays: the arrays of the problems.
    """
    self.seconds = 0.0
    self._folder = tempfile.TemporaryDirectory()
    folder = pathlib.Path(self._folder.name)
    self._values = folder / "values.npy"
    np.savez(folder / "given.npz", **arrays)
    code = "import wasserstein_worker; wasserstein_worker.main()"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    self._process = subprocess.Popen(
      [python, "-c", code, task, str(folder)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=_HERE,
      env=environment,
    )

  def __call__(self, *unused) -> np.ndarray:
    """Solves all problems once and returns the values."""
    print("turn", file=self._process.stdin, flush=True)
    answer = self._process.stdout.readline()
    if not answer:
      raise RuntimeError("the process of the package wasserstein ended")
    self.seconds = float(answer)
    return np.load(self._values)

  def close(self) -> None:
    """Ends the process."""
    self._process.communicate()
    self._folder.cleanup()
