"""Makes environments for the wheel, without the network."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import sysconfig
import venv

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = pathlib.Path(sysconfig.get_paths()["purelib"])


class Environment:
  """A fresh virtual environment.

  Attributes:
    python: its interpreter.
    packages: its site-packages.
  """

  def __init__(self, place: pathlib.Path) -> None:
    venv.create(place, symlinks=True, with_pip=False)
    self.python = place / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    self.packages = place / "lib" / version / "site-packages"

  def install(self, wheel: pathlib.Path) -> None:
    """Installs a wheel without its dependencies."""
    self.pip("install", "--no-deps", "--no-index", "--no-compile", str(wheel))

  def pip(self, *arguments: str) -> str:
    """Runs pip of the tests' environment on this one; returns its output."""
    pip = [sys.executable, "-m", "pip", "--python", str(self.python)]
    pip += ["--disable-pip-version-check", *arguments]
    done = subprocess.run(pip, capture_output=True, text=True, env=_variables())
    assert done.returncode == 0, done.stderr
    return done.stdout

  def call(self, *arguments, cwd: pathlib.Path):
    """Runs its Python, or a command of its bin folder, in the folder `cwd`."""
    program, *rest = map(str, arguments)
    line = [str(self.python.with_name(program)), *rest]
    return subprocess.run(
      line, capture_output=True, text=True, cwd=cwd, env=_variables()
    )


def _variables() -> dict[str, str]:
  """Returns the environment variables without PYTHONPATH."""
  return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def needs(requirements: list[str]) -> set[str]:
  """Returns all packages that requirements need, without extras."""
  names: set[str] = set()
  waiting = list(requirements)
  while waiting:
    requirement = Requirement(waiting.pop())
    name = canonicalize_name(requirement.name)
    marker = requirement.marker
    if name in names or (marker and not marker.evaluate({"extra": ""})):
      continue
    names.add(name)
    assert not requirement.extras, f"{requirement}: follow its extras, too"
    waiting += importlib.metadata.requires(name) or []
  return names


def link(names: set[str], packages: pathlib.Path) -> None:
  """Makes the given packages of the tests' environment visible in another."""
  for name in names:
    distribution = importlib.metadata.distribution(name)
    for top in {file.parts[0] for file in distribution.files}:
      source = pathlib.Path(distribution.locate_file(top))
      if top not in ("..", "__pycache__") and not (packages / top).exists():
        (packages / top).symlink_to(source)


def link_all(packages: pathlib.Path) -> None:
  """Makes every package of the tests' environment visible in another."""
  (packages / "tests.pth").write_text(f"{HERE}\n")
