"""Settings of all tests.

Only in tests, the shapes in public signatures are checked at run time. Programs
are compiled with few optimizations, because most of the tests' time is
compilation.
"""

import gc
import importlib.metadata
import os
import pathlib
import signal
import sys
import tempfile

# If a shell starts the tests in the background, they and their child processes
# ignore SIGINT. Some tests have to interrupt a child process.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

gc.set_threshold(50_000, 20, 20)  # as `main` does
# Containers often set this variable. Then each of dozens of processes would
# compile the Python files of the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# This must be set before anything imports JAX.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FAST = "--xla_backend_optimization_level=0"
_FAST += " --xla_llvm_disable_expensive_passes=true"
_FAST += " --xla_cpu_parallel_codegen_split_count=1"
# XLA's fusion emitters take two thirds of the time. Later versions do not know
# this flag, and abort.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  _FAST += " --xla_cpu_use_fusion_emitters=false"
# `make soak` sets it to nothing, as it is for users.
os.environ.setdefault("XLA_FLAGS", _FAST)
# All workers, and the commands that they start, share their compiled programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _shared = tempfile.TemporaryDirectory(prefix="deepemd_jax_tests_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _shared.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

_HOOK = jaxtyping.install_import_hook(
  ["deepemd_jax.emd", "deepemd_jax.models.matching"], "beartype.beartype"
)


# This plugin has a tiny run, which is made once for all tests.
pytest_plugins = ["fixtures_runs"]


@pytest.fixture(autouse=True, scope="module")
def few_programs():
  """Clears compiled programs before there are too many.

  Linux allows a process 65,530 memory mappings. Every program takes some of
  them, and XLA ends the process when there are none left.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
    jax.clear_caches()
    gc.collect()


def pytest_collection_modifyitems(items):
  """Puts the files that take longest first (see the Makefile).

  So no worker is left alone with a long file at the end.
  """
  longest = [
    *("test_processes", "test_solvers", "test_end_to_end"),
    *("test_interruptions", "test_recorded", "test_many"),
    *("test_benchmark_runs", "test_notebook", "test_benchmarks"),
  ]
  names = {name: place for place, name in enumerate(longest)}
  items.sort(key=lambda item: names.get(item.path.stem, len(names)))
