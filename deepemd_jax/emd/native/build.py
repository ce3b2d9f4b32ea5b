"""Compiles the native network simplex if there is a C++ compiler.

    python -m deepemd_jax.emd.native.build

It uses the compiler of the environment variable CXX, else `c++`, `g++` or
`clang++`. It loads neither JAX nor NumPy.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
SOURCES = ("handler.cc", "transport_problem.cc", "transport_simplex.cc")
FLAGS = ("-std=c++17", "-O3")
NAME = "_transport"


def include_dir() -> str:
  """Returns the folder of the headers that come with jaxlib."""
  spec = importlib.util.find_spec("jaxlib")
  assert spec is not None and spec.origin is not None
  return str(pathlib.Path(spec.origin).parent / "include")


def find_compiler() -> str | None:
  """Returns the name of a C++ compiler, or None."""
  own = os.environ.get("CXX")
  names = [own] if own else ["c++", "g++", "clang++"]
  return next((name for name in names if shutil.which(name)), None)


def build(target: pathlib.Path, *flags: str) -> str:
  """Compiles into a file, which is replaced as a whole or not at all.

  Args:
    target: the library to write.
    *flags: more flags of the compiler.

  Returns:
    An error message of one line, or "" if the compilation succeeded.
  """
  compiler = find_compiler()
  if compiler is None:
    return "there is no C++ compiler"
  scratch = target.with_name(f".{target.name}.{os.getpid()}")
  command = [compiler, *FLAGS, *flags, "-shared", "-fPIC", "-pthread"]
  command += ["-isystem", include_dir(), "-o", str(scratch)]
  command += [str(HERE / source) for source in SOURCES]
  try:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      errors = [x for x in done.stderr.splitlines() if "error" in x]
      return f"{compiler} failed: {(errors or ['it did not say why'])[0]}"
    os.replace(scratch, target)
  except OSError as error:
    return f"the compilation failed: {error.strerror or error}"
  finally:
    scratch.unlink(missing_ok=True)
  return ""


def main() -> None:
  """Compiles into this folder and prints the result."""
  problem = build(HERE / f"{NAME}.so")
  if problem:
    print(f"deepemd_jax: {problem}; POT's network simplex is used instead")
  else:
    print("deepemd_jax: the native network simplex is compiled")


if __name__ == "__main__":
  sys.exit(main())
