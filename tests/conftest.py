"""Shapes in public signatures are checked at run time, here only. Programs are
compiled fast rather than well: most of the tests' time is compilation."""

import gc
import importlib.metadata
import os
import pathlib
import signal
import sys
import tempfile

# A shell that starts the tests in the background has them ignore Ctrl-C, and so
# their children, some of which are to be interrupted.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

gc.set_threshold(50_000, 20, 20)  # as `main` does
# Containers often set it; dozens of processes would each compile the package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Before anything imports JAX.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FAST = "--xla_backend_optimization_level=0"
_FAST += " --xla_llvm_disable_expensive_passes=true"
_FAST += " --xla_cpu_parallel_codegen_split_count=1"
# Which take two thirds of the time. Later versions end at a flag they do not
# know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  _FAST += " --xla_cpu_use_fusion_emitters=false"
# `make soak` sets it to nothing, which is how users run.
os.environ.setdefault("XLA_FLAGS", _FAST)
# All workers, and the commands that they start, share what is compiled.
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


# A tiny run that is made once, for all tests.
pytest_plugins = ["fixtures_runs"]


@pytest.fixture(autouse=True, scope="module")
def few_programs():
  """Forgets compiled programs before there are too many: Linux gives a process
  65,530 pieces of memory, every program takes some, and XLA ends the process
  when there are no more."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
    jax.clear_caches()
    gc.collect()


def pytest_collection_modifyitems(items):
  """The files that take longest first, so that no worker is alone with them at
  the end (see the Makefile)."""
  longest = [
    *("test_processes", "test_solvers", "test_end_to_end"),
    *("test_interruptions", "test_recorded", "test_many"),
    *("test_benchmark_runs", "test_notebook", "test_benchmarks"),
  ]
  names = {name: place for place, name in enumerate(longest)}
  items.sort(key=lambda item: names.get(item.path.stem, len(names)))
